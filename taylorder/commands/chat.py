"""``taylorder chat``."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from taylorder.commands import options
from taylorder.commands._paths import path_of
from taylorder.commands._shared import load_described
from taylorder.commands._stopping import interrupt_noted
from taylorder.commands._subject import subject
from taylorder.commands._texts import at_terminal, streamed, typed_lines
from taylorder.errors import UsageError
from taylorder.models.placement import Placement

if TYPE_CHECKING:
    from taylorder.reports.chat import ChatReport


def chat(
    model: options.ModelOfRun = None,
    config: options.Config = None,
    system: Annotated[
        str | None, options.value("Put this before the first turn.", "TEXT", "what the chat template has")
    ] = None,
    max_new_tokens: Annotated[int, options.number("Cut an answer after N tokens.", 1)] = 512,
    temperature: Annotated[float, options.value("Draw tokens at this temperature; 0 takes the likeliest.", "X")] = 0.0,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    device_map: options.DeviceMap = None,
    dtype: options.DtypeOfRun = None,
) -> None:
    """Talk with a model that runs with a config. Its cache keeps the history; a line says what it holds by now.

    Every line of standard input is a turn, in a terminal or a pipe. Answers go to standard output, the rest to standard
    error. In between, /exact has the model as it is answer the last turn, /save FILE writes the conversation, /help
    lists all commands. Ctrl-C stops an answer; the end of input ends the chat.

    Example: taylorder chat

    Example: echo "What is a kernel?" | taylorder chat
    """
    from taylorder.adapt.continuation import Sampling

    sampling = Sampling(max_new_tokens, temperature, seed)
    place = Placement.of(device, device_map)
    about = subject(model, config, dtype)
    chosen = about.config

    from taylorder.reports.progress import StderrProgress

    with StderrProgress() as progress:
        loaded, description = load_described(about.to_load, place, progress)
        chosen.check(description)

        from taylorder.adapt.chat_turns import has_template
        from taylorder.adapt.conversation import Conversation
        from taylorder.reports import chat as words

        conversation = Conversation(
            loaded.model,
            loaded.tokenizer,
            chosen,
            description,
            system=system,
            sampling=sampling,
        )
    report = words.ChatReport(conversation, str(about.path), str(place))
    if not has_template(loaded.tokenizer):
        _say(words.WITHOUT_TEMPLATE)
    if at_terminal():
        _say(f"{description.name} runs with {about.path}; type a line, or /help.")
    for line in typed_lines("> "):
        try:
            if not _taken(line, report):
                break
        except UsageError as error:
            if not at_terminal():
                raise
            _say(f"error: {error}")


def _taken(line: str, report: ChatReport) -> bool:
    """Do what a line asks for; whether the chat goes on."""
    from taylorder.reports import chat as words

    conversation = report.conversation
    if not line.startswith("/"):
        if said := line.strip():
            _write(conversation.answer(said), "")
            _say(words.after_answer(report))
        return True
    command, _, argument = line.partition(" ")
    match command, argument.strip():
        case "/quit", "":
            return False
        case "/help", "":
            _say(words.HELP)
        case "/exact", "":
            _write(conversation.exact(), "exact:\n")
            _say(words.after_exact(report))
        case "/save", file if file:
            _save(path_of("/save")(Path(file).expanduser()), report)
        case _:
            raise UsageError(
                f"{options.shortly(line)} is no command; /help lists them, and after a space a slash is part of a turn"
            )
    return True


def _write(pieces: Generator[str, None, None], heading: str) -> None:
    """Write an answer as it comes, until Ctrl-C."""
    with interrupt_noted() as interrupted:
        streamed(_until(interrupted, pieces), heading)


def _until(stopped: Callable[[], bool], pieces: Generator[str, None, None]) -> Generator[str, None, None]:
    with closing(pieces):
        for piece in pieces:
            yield piece
            if stopped():
                return


def _save(path: Path, report: ChatReport) -> None:
    from taylorder.reports.chat import as_document
    from taylorder.storage.files import replacing
    from taylorder.storage.finite_json import as_json

    try:
        with replacing(path) as temporary:
            temporary.write_text(as_json(as_document(report)), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"/save {path} cannot be written ({error.strerror}); name another file") from error
    _say(f"wrote {path}")


def _say(text: str) -> None:
    """Say something beside the answers: whole words in a terminal, one line for each sentence otherwise."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    console.print(text, style="dim", soft_wrap=not console.is_terminal)
