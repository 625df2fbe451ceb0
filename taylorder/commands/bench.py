"""``taylorder bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from taylorder.commands import options
from taylorder.commands._paths import model_of_run, run_and_config
from taylorder.commands._shared import load_described, print_report
from taylorder.errors import UsageError

_LENGTHS = (256, 1024, 4096)
_ORDER, _WINDOW, _SINKS = 2, 64, 4


def bench(
    model: options.Model = None,
    config: Annotated[
        Path | None,
        options.path(
            "Run with this orders.json, or that of a run; MODEL may be a run instead.",
            "--config",
            "FILE|DIR",
            f"order {_ORDER} around the mean, window {_WINDOW}, {_SINKS} sinks",
        ),
    ] = None,
    lengths: Annotated[
        str | None,
        options.value(
            "Measure after contexts of so many tokens.", "N,N…", "256, 1024 and 4096, those the model allows"
        ),
    ] = None,
    new_tokens: Annotated[int, options.number("Feed N tokens one by one after each context.", 1)] = 16,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    output: options.Format = "human",
) -> None:
    """Measure cache bytes and time per token, exact against adapted, by context length, on one thread.

    Example: taylorder bench --config taylorder-out/orders.json --lengths 256,1024
    """
    asked = options.parse_numbers("--lengths", lengths, 1)

    from taylorder.adapt.config import OrderConfig

    run, path = run_and_config(model, config)
    chosen = None if path is None else OrderConfig.load(path)
    if run is not None and chosen is not None:
        model = model_of_run(run, chosen.model.name)

    from taylorder.reports.progress import StderrProgress

    with StderrProgress() as progress:
        loaded, description = load_described(model, device, dtype, progress, run)

        from taylorder.evaluation.timing import bench as measure
        from taylorder.reports import generation

        if chosen is None:
            chosen = OrderConfig.uniform(description, _ORDER, "mean", _WINDOW, _SINKS)
            note = f"order {_ORDER} around the mean, window {_WINDOW}, {_SINKS} sinks for every head (no --config)"
        else:
            chosen.check(description)
            note = "--config" if run is None else str(path)
        measured = measure(
            loaded.model,
            description,
            chosen,
            lengths=_lengths(asked, description.max_context, new_tokens),
            new_tokens=new_tokens,
            seed=seed,
            progress=progress,
        )
        report = generation.BenchReport(
            model=description,
            config=chosen,
            config_path=None if path is None else str(path),
            note=note,
            bench=measured,
            seed=seed,
            device=device,
            dtype=description.dtype,
        )
    print_report(output, lambda: generation.as_document(report), generation.sections(report))


def _lengths(asked: tuple[int, ...] | None, max_context: int, new_tokens: int) -> tuple[int, ...]:
    """The lengths asked for, or those of the default that the model allows, or the longest there is."""
    longest = max_context - new_tokens
    if longest < 1:
        raise UsageError(f"--new-tokens is {new_tokens}, but the model sees {max_context} tokens at most; lower it")
    if asked is None:
        return tuple(length for length in _LENGTHS if length <= longest) or (longest,)
    if asked[-1] > longest:
        raise UsageError(
            f"--lengths has {asked[-1]}, with {new_tokens} new tokens {asked[-1] + new_tokens}, but the model sees "
            f"{max_context} at most; lower it to {longest} or less"
        )
    return asked
