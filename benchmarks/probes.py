"""Ways to fit the probe that says which keys to keep, judged by the future attention that the kept keys receive.

    python benchmarks/probes.py

No adapted model is run. One forward pass per sequence gives what all variants are fitted to and judged by, kept in
``--records`` (4 GB) as every variant's figures are: a run that was interrupted goes on from there.

Rows are means over KV heads, held-out sequences and prefixes (as ``taylorder/selection/probe_report.py``): of the
attention that the keys of a prefix receive later, the share that goes to the eighth (a 16th, a quarter) of highest
priority; ``changed`` weighs attention by the distance of the value from the output; ``rank`` is Spearman's correlation.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from probe_variants.captured import capture
from probe_variants.texts import HELD_OUT, LENGTH, sequences
from probe_variants.variants import VARIANTS, Captured, fit
from torch import Tensor

from taylorder.analysis.future_attention import Reach
from taylorder.models.describe import describe
from taylorder.models.loading import load
from taylorder.selection.probe_report import Prefix, prefixes, rank_correlations
from taylorder.storage.files import replacing, sha256
from taylorder.storage.finite_json import as_json
from taylorder.storage.provenance import software_versions
from taylorder.storage.records import Records

SHARES = {"kept": 1 / 8, "kept of a 16th": 1 / 16, "kept of a quarter": 1 / 4}
FIGURES = (*SHARES, "changed", "rank")

Ranking = Callable[[Captured], Callable[[Prefix], Tensor]]
"""What the keys of the prefixes of a sequence are ranked by, ``[G, N]``."""

RIVALS: Mapping[str, Ranking] = {
    "oracle": lambda captured: lambda prefix: prefix.future,
    "H2O": lambda captured: lambda prefix: prefix.past,
    "Knorm": lambda captured: by_priority(-captured["k"].norm(dim=-1)),
    "random": lambda captured: by_priority(
        torch.rand(captured["k"].shape[:2], generator=torch.Generator().manual_seed(0))
    ),
}


def by_priority(priority: Tensor) -> Callable[[Prefix], Tensor]:
    """Rank by priorities ``[G, T]`` that stay."""
    return lambda prefix: priority[:, prefix.keys]


def main() -> None:
    """Capture, fit, judge, write."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    loaded = load()
    model = describe(loaded.model, loaded.name)
    texts = sequences(loaded.tokenizer)
    ids = sha256(str({kind: [one.tolist() for one in of_kind] for kind, of_kind in texts.items()}).encode())
    settings = {"model": model.fingerprint, "sequences": ids, "software": software_versions()}
    captures = Records(arguments.records / "captures", settings)
    figures = Records(arguments.records / "figures", settings)
    began = time.process_time()
    for kind, of_kind in texts.items():
        for number, sequence in enumerate(of_kind):
            capture(loaded.model, model, f"{kind}-{number}", sequence, captures)
            _say(f"{kind} {number + 1} of {len(of_kind)}", began)
    counts = {kind: len(of_kind) for kind, of_kind in texts.items()}
    for module in model.open_modules:
        judge_module(module.name, counts, captures, figures)
        _say(module.name, began)
    document = {
        "model": loaded.name,
        "length": LENGTH,
        "held_out": {kind: counts[f"held-out {kind}"] for kind in HELD_OUT},
        "software": software_versions(),
        "rows": [
            {"variant": name} | row(name, [module.name for module in model.open_modules], figures)
            for name in (*RIVALS, *(variant.name for variant in VARIANTS))
        ],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(arguments.out) as temporary:
        temporary.write_text(as_json(document), encoding="utf-8")
    show(document)


def judge_module(module: str, counts: Mapping[str, int], captures: Records, figures: Records) -> None:
    """Fit and judge every variant on one module, unless it was."""
    names = [*RIVALS, *(variant.name for variant in VARIANTS)]
    missing = [name for name in names if figures.get(_key(name, module)) is None]
    if not missing:
        return
    texts = {
        kind: [captures.tensors(f"{kind}-{number}-{module}") for number in range(count)]
        for kind, count in counts.items()
    }
    fitted = {variant.name: variant for variant in VARIANTS}
    for name in missing:
        ranking = RIVALS[name] if name in RIVALS else _ranking(fit(fitted[name], texts))
        judged = {kind: [judge(ranking, captured) for captured in texts[f"held-out {kind}"]] for kind in HELD_OUT}
        figures.put(_key(name, module), judged)


def judge(ranking: Ranking, captured: Captured) -> dict[str, list[float]]:
    """The figures of every KV head of a module on one sequence, means over prefixes."""
    reach = Reach.of(captured["k"].shape[1])
    of_prefixes: dict[str, list[Tensor]] = {figure: [] for figure in FIGURES}
    rank = ranking(captured)
    pairs = zip(prefixes(captured["received"], reach), prefixes(captured["changed"], reach), strict=True)
    for prefix, changed in pairs:
        ranked = rank(prefix)
        for figure, share in SHARES.items():
            of_prefixes[figure].append(prefix.kept(ranked, share))
        of_prefixes["changed"].append(changed.kept(ranked))
        of_prefixes["rank"].append(rank_correlations(ranked, prefix.future))
    return {figure: torch.stack(values).mean(0).tolist() for figure, values in of_prefixes.items()}


def row(name: str, modules: list[str], figures: Records) -> dict[str, Any]:
    """Means of a variant over KV heads and sequences by kind of text, and the figure ``kept`` of every sequence."""
    judged = [figures.get(_key(name, module)) for module in modules]
    means: dict[str, Any] = {}
    for kind in HELD_OUT:
        of_kind = {
            figure: np.array([[sequence[figure] for sequence in of_module[kind]] for of_module in judged])
            for figure in FIGURES
        }  # [modules, sequences, G]
        means[kind] = {figure: float(values.mean()) for figure, values in of_kind.items()}
        means[kind]["kept by sequence"] = of_kind["kept"].mean((0, 2)).tolist()
    return means


def show(document: dict[str, Any]) -> None:
    """Print a line per variant: what is kept of each kind of text, the rest as a mean over docstrings and code."""
    print(
        f"{'variant':58s}"
        + "".join(f"{kind:>11s}" for kind in (*HELD_OUT, "both", "16th", "quarter", "changed", "rank"))
    )
    for of in document["rows"]:
        both = [float(np.mean([of[kind][figure] for kind in HELD_OUT[:2]])) for figure in FIGURES]
        values = [of[kind]["kept"] for kind in HELD_OUT] + both
        print(f"{of['variant']:58s}" + "".join(f"{value:11.4f}" for value in values))


def _ranking(priority: Callable[[Captured], Tensor]) -> Ranking:
    return lambda captured: by_priority(priority(captured))


def _key(name: str, module: str) -> str:
    return f"{sha256(name.encode())[:12]}-{module}"


def _say(what: str, began: float) -> None:
    print(f"{what}: {time.process_time() - began:.0f} s of a processor", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--records", type=Path, default=Path("taylorder-out/probes"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "probes.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
