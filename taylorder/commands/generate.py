"""``taylorder generate``."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taylorder.commands import options
from taylorder.commands._shared import load_described
from taylorder.commands._subject import subject
from taylorder.commands._texts import refuse_no_text, streamed
from taylorder.errors import UsageError
from taylorder.models.placement import Placement

if TYPE_CHECKING:
    from taylorder.adapt.config import OrderConfig
    from taylorder.adapt.continuation import Generated
    from taylorder.models.description import ModelDescription
    from taylorder.models.loading import LoadedModel


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT|-", help="Go on from this text; - reads standard input.", show_default=False),
    ] = None,
    prompt_file: Annotated[
        Path | None, options.path("Go on from the text in this UTF-8 file, as it is.", "--prompt-file", default=False)
    ] = None,
    config: options.Config = None,
    model: options.ModelOfRunOption = None,
    compare: Annotated[
        bool, options.flag("--compare", "Also run the model as it is, and show where the two texts part.")
    ] = False,
    max_new_tokens: Annotated[int, options.number("Make at most N tokens.", 1)] = 128,
    temperature: Annotated[float, options.value("Draw tokens at this temperature; 0 takes the likeliest.", "X")] = 0.0,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    device_map: options.DeviceMap = None,
    dtype: options.DtypeOfRun = None,
) -> None:
    """Continue a text with a config, streamed to standard output; speed and cache bytes go to standard error.

    The built-in model makes some fifteen tokens a second on two cores.

    Example: taylorder generate --prompt-file story.txt --compare
    """
    if not 0 <= temperature < math.inf:
        raise UsageError(f"--temperature is {temperature}, expected 0 (the likeliest token) or a positive number")

    prompt = _read(prompt, prompt_file)

    place = Placement.of(device, device_map)
    about = subject(model, config, dtype)
    chosen = about.config

    from taylorder.reports.progress import StderrProgress

    with StderrProgress() as progress:
        loaded, description = load_described(about.to_load, place, progress)
        chosen.check(description)
        _refuse(loaded, description, prompt, max_new_tokens)

        from taylorder.adapt.config import OrderConfig
        from taylorder.adapt.cost import config_bytes
        from taylorder.adapt.generate import compared, stream
        from taylorder.adapt.left_out import left_out
        from taylorder.reports import generation

    sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}

    def run(config: OrderConfig | None, heading: str) -> Generated:
        return streamed(stream(loaded.model, loaded.tokenizer, prompt, config, **sampling), heading)

    made = run(chosen, "adapted:\n" if compare else "")
    tokens_held = made.prompt_tokens + made.steps  # the last one made is not run
    if not compare:
        would_hold = config_bytes(OrderConfig.uniform(description, "exact"), description, tokens_held)
        _say(generation.figures("adapted", made, would_hold))
        return
    exact = run(None, "\nexact:\n")
    pair, left = compared(loaded.tokenizer, exact, made), left_out(chosen, description, tokens_held)
    print(f"\n{generation.parting(pair)} {generation.what_was_left_out(left)}", flush=True)
    _say(generation.beside(pair))


def _read(prompt: str | None, file: Path | None) -> str:
    """The prompt itself, standard input for ``-``, or what is in a file."""
    if (prompt is None) == (file is None):
        what = "neither PROMPT nor" if prompt is None else "both PROMPT and"
        raise UsageError(f"there is {what} --prompt-file; give one of them, or - as PROMPT to read standard input")
    if file is not None:
        try:
            prompt = file.read_bytes().decode("utf-8")
        except OSError as error:
            raise UsageError(f"--prompt-file {file} cannot be read ({error.strerror}); name a text file") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"--prompt-file {file} is no UTF-8 text; convert it") from error
    elif prompt == "-":
        if sys.stdin is None:
            raise UsageError("PROMPT is -, but standard input is closed; pipe the prompt in, or give it as PROMPT")
        try:
            prompt = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise UsageError(f"standard input is no {error.encoding} text ({error.reason}); convert it") from error
    text = prompt or ""
    refuse_no_text(text, "the prompt")
    return text


def _refuse(loaded: LoadedModel, description: ModelDescription, prompt: str, max_new_tokens: int) -> None:
    """Refuse a model without a head, and more tokens than the model sees, which some models would crash on."""
    from taylorder.adapt.continuation import refuse_without_head

    refuse_without_head(loaded.model)
    tokens, room = len(loaded.tokenizer(prompt, verbose=False).input_ids), description.max_context
    if tokens >= room:
        raise UsageError(f"the prompt has {tokens} tokens, but the model sees {room} at most; shorten it")
    if tokens + max_new_tokens > room:
        raise UsageError(
            f"--max-new-tokens is {max_new_tokens}, with {tokens} of the prompt {tokens + max_new_tokens}, but the "
            f"model sees {room} at most; ask for {room - tokens} or fewer"
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
