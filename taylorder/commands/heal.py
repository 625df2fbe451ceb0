"""``taylorder heal``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from taylorder.commands import options
from taylorder.commands._shared import check_texts, check_writable, load_described, print_report
from taylorder.commands._stopping import kept
from taylorder.commands._subject import subject
from taylorder.errors import UsageError
from taylorder.models.placement import Placement
from taylorder.runs import run_files
from taylorder.storage import processes

if TYPE_CHECKING:
    from taylorder.adapt.config import OrderConfig
    from taylorder.healing.settings import Kind, Stage
    from taylorder.models.description import ModelDescription

_OUT = Path("taylorder-healed")
_TRAINING = "Training"
_KINDS = ("lora", "qkvo", "qk", "config", "probes")
_LONGEST, _CONTEXT = 2048, 1024
"""Tokens of the longest sequences unless asked for otherwise: at most, and where the config names no context."""


def heal(
    model: options.ModelOfRun = None,
    config: options.Config = None,
    out: Annotated[Path, options.path("Write the adapter, the config for it and a card here.", "--out", "DIR")] = _OUT,
    text: Annotated[
        list[Path] | None,
        options.path(
            "Learn from this UTF-8 file; repeat for several.",
            "--text",
            default="Python's language reference, docstrings of torch, transformers and pandas",
            group=_TRAINING,
        ),
    ] = None,
    train: Annotated[
        str,
        options.value(
            "Train low-rank additions, whole matrices, the config's polynomials, or which keys it keeps.",
            "|".join(_KINDS),
            group=_TRAINING,
        ),
    ] = "lora",
    stage: Annotated[
        str,
        options.value(
            "outputs: bring those of each layer near the exact model's; logits: those of the model; text: learn to "
            "predict the text. One of them, or outputs before another.",
            "STAGE,STAGE",
            group=_TRAINING,
        ),
    ] = "outputs,logits",
    minutes: Annotated[
        float | None,
        options.value("Train for so long, controls included.", "N", "30, without --tokens", _TRAINING, min=0.01),
    ] = None,
    tokens: Annotated[
        int | None, options.number("Train on so many tokens, or as long as --minutes.", 2, "no limit", _TRAINING)
    ] = None,
    context: Annotated[
        str | None,
        options.value(
            "Train on sequences of so many tokens, rising.",
            "N,N…",
            "half the config's context, then all of it, at most 2048",
            _TRAINING,
        ),
    ] = None,
    sequences: Annotated[
        int,
        options.number("Average the gradients of so many of the longest sequences in a step.", 1, group=_TRAINING),
    ] = 1,
    drop_window: Annotated[
        float,
        options.value(
            "Leave the near field of a layer with polynomials out with this probability.", "P", group=_TRAINING
        ),
    ] = 0.0,
    controls: Annotated[
        bool,
        options.flag(
            "--controls/--no-controls",
            "Train a window of equal bytes and the exact model likewise, for as many steps: most of the time.",
            _TRAINING,
        ),
    ] = True,
    fresh: Annotated[bool, options.flag("--fresh", "Begin anew, whatever was kept.", options.MACHINE)] = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    device_map: options.DeviceMap = None,
    output: options.Format = "human",
) -> None:
    """Train a model so that it runs with its config as it runs exactly, and show what that buys beside controls.

    Writes one folder: an adapter that peft loads, the config for the weights with it merged, and a card. eval,
    generate, chat and export take the folder as --config. An interrupted run goes on at the step where it was.

    Several processes share every step: torchrun --nproc-per-node 2 -m taylorder heal and the same options, with
    --sequences 2 at least.

    Example: taylorder heal --config small --minutes 30 --out small-healed

    Example: taylorder heal --config small --train qkvo --tokens 200000 --no-controls
    """
    placement = Placement.of(device, device_map)
    kind, stages = _kind(train), _stages(stage)
    lengths = options.parse_numbers("--context", context, 2)
    check_texts(text or [])
    _check_free(out)
    check_writable(out)
    about = subject(model, config, None)
    if about.to_load.adapter is not None:
        raise UsageError(
            f"{about.path.parent} is healed already, and its adapter is for another model: heal the config that it was "
            "made of for longer, or `taylorder export` it and heal the export"
        )

    from taylorder.reports.progress import StderrProgress

    records = out / "records"
    with StderrProgress() as progress:
        loaded, description = load_described(about.to_load, placement, progress)
        about.config.check(description)

        from taylorder.healing.heal import heal as train_and_measure
        from taylorder.healing.settings import MINUTES, HealSettings
        from taylorder.healing.text import training_text

        settings = HealSettings(
            contexts=lengths or _contexts(about.config, description),
            train=kind,
            stages=stages,
            minutes=minutes if minutes is not None or tokens is not None else MINUTES,
            tokens=tokens,
            drop_window=drop_window,
            sequences=sequences,
            seed=seed,
            controls=controls,
        )
        with kept(f"what was finished is kept in {records}: the same command goes on from there", errors=False):
            healing = train_and_measure(
                loaded.model,
                loaded.tokenizer,
                about.config,
                settings,
                directory=records,
                fresh=fresh,
                description=description,
                text=training_text(text) if text else None,
                progress=progress,
                say=progress.say,
            )

        from taylorder.reports import healing as report
        from taylorder.runs.healed_folder import write

        document = report.as_document(healing)
        if processes.is_first():
            write(out, healing, report.card(healing, out.name, about.to_load.model or description.name), document)
    print_report(output, lambda: document, report.sections(healing, str(out)))


def _kind(text: str) -> Kind:
    if text not in _KINDS:
        raise UsageError(f"--train is {options.shortly(text)}, expected one of {', '.join(_KINDS)}")
    return text  # type: ignore[return-value]


def _stages(text: str) -> tuple[Stage, ...]:
    from taylorder.healing.settings import check_stages

    words = tuple(word.strip() for word in text.split(","))
    check_stages(words)
    return words  # type: ignore[return-value]


def _contexts(config: OrderConfig, description: ModelDescription) -> tuple[int, ...]:
    longest = min(config.context or _CONTEXT, description.max_context, _LONGEST)
    return (longest // 2, longest) if longest % 2 == 0 and longest >= 2 * 256 else (longest,)


def _check_free(out: Path) -> None:
    """Refuse a folder that holds anything but a healing, which a new one replaces."""
    if out.is_file():
        raise UsageError(f"--out {out} is a file; name a folder")
    if (
        out.is_dir()
        and any(out.iterdir())
        and not any((out / name).exists() for name in ("records", run_files.HEALED[-1]))
    ):
        raise UsageError(f"--out {out} holds something else than a healed model; name another folder")
