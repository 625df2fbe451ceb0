"""``taylorder bench``."""

from __future__ import annotations

from typing import Annotated

from taylorder.commands import options
from taylorder.commands._shared import load_described, print_report
from taylorder.commands._subject import subject
from taylorder.errors import UsageError
from taylorder.models.placement import Placement

_LENGTHS = (256, 1024, 4096)


def bench(
    model: options.ModelOfRun = None,
    config: options.Config = None,
    lengths: Annotated[
        str | None,
        options.value(
            "Measure after contexts of so many tokens.", "N,N…", "256, 1024 and 4096, those the model allows"
        ),
    ] = None,
    new_tokens: Annotated[int, options.number("Feed N tokens one by one after each context.", 1)] = 16,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    device_map: options.DeviceMap = None,
    dtype: options.DtypeOfRun = None,
    output: options.Format = "human",
) -> None:
    """Measure cache bytes and time per token, exact against adapted, by context length, on one thread.

    The built-in model takes a few minutes at the default lengths.

    Example: taylorder bench --lengths 256,1024
    """
    asked = options.parse_numbers("--lengths", lengths, 1)

    place = Placement.of(device, device_map)
    about = subject(model, config, dtype)

    from taylorder.reports.progress import StderrProgress

    with StderrProgress() as progress:
        loaded, description = load_described(about.to_load, place, progress)
        about.config.check(description)

        from taylorder.evaluation.timing import bench as measure
        from taylorder.reports import generation

        measured = measure(
            loaded.model,
            description,
            about.config,
            lengths=_lengths(asked, description.max_context, new_tokens),
            new_tokens=new_tokens,
            seed=seed,
            progress=progress,
        )
        report = generation.BenchReport(
            model=description,
            config=about.config,
            config_path=str(about.path),
            bench=measured,
            seed=seed,
            device=str(place),
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
