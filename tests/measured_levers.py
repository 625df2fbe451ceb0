"""Tables of levers: measured on a tiny model, and made by hand."""

from __future__ import annotations

import torch
from tiny import tokens

from taylorder.adapt.probe import probe_width
from taylorder.kernels.spec import Dropped, Exact, HeadSpec, Near, Taylor
from taylorder.models.describe import describe
from taylorder.models.description import AttentionModule, ModelDescription
from taylorder.selection.candidates import Candidate
from taylorder.selection.config_of import window_instead
from taylorder.selection.lever_errors import LayerLevers, LeverRow
from taylorder.selection.lever_table import LeverTable, measure
from taylorder.selection.probes import Probes
from taylorder.storage.records import Records

LENGTH = 48
EXACT, DROPPED, FITTED_1, RANKED, EVEN, FITTED_2, CENTRE_3, LONG, SINKS_16, TAYLOR_1 = range(10)
CANDIDATES = (
    Candidate(HeadSpec(Exact())),
    Candidate(HeadSpec(Dropped(), Near(12, 4))),
    Candidate(HeadSpec(Taylor(1, "centre"), Near(6, 4)), fitted=True),
    Candidate(HeadSpec(Taylor(3, "mean", (8, 8, 3)), Near(4, 4))),
    Candidate(HeadSpec(Taylor(2, "centre"), Near(4, 4))),
    Candidate(HeadSpec(Taylor(2, "mean"), Near(4, 4)), fitted=True),
    Candidate(HeadSpec(Taylor(3, "centre"), Near(4, 4))),
    Candidate(HeadSpec(Dropped(), Near(100, 4))),
    Candidate(HeadSpec(Dropped(), Near(4, 16))),
    Candidate(HeadSpec(Taylor(1, "centre"), Near(6, 4))),
)


KEEPING = (
    *CANDIDATES,
    Candidate(HeadSpec(Dropped(), Near(3, 4, 7))),
    Candidate(HeadSpec(Dropped(), Near(6, 4, 5))),
    Candidate(HeadSpec(Taylor(1, "centre"), Near(2, 4, 3)), fitted=True),
    Candidate(HeadSpec(Taylor(2, "mean"), Near(1, 4, 3))),
)
"""With kept keys too: most of a near field, half of it, and both kinds of polynomial beside it."""
KEPT, HALF_KEPT, KEPT_1, KEPT_2 = range(len(CANDIDATES), len(KEEPING))


def made_up_probes(model):
    """Probes drawn at random."""
    generator = torch.Generator().manual_seed(11)
    weights = {
        module.name: torch.randn(module.kv_heads, probe_width(module.head_dim, module.value_dim), generator=generator)
        for module in describe(model, "tiny").open_modules
    }
    return Probes(weights, "made up", 1000, "0" * 64)


def measured(model, directory, candidates=CANDIDATES, sequences=1, length=LENGTH):
    """A table of a tiny model, and the sequences it was measured on."""
    ids = tokens(sequences, length, seed=3)
    probes = made_up_probes(model) if any(candidate.spec.near.kept for candidate in candidates) else None
    table = measure(
        model, describe(model, "tiny"), ids, candidates, window_instead, probes=probes, seed=0,
        records=Records(directory, {}), progress=lambda *_: None,
    )  # fmt: skip
    return table, ids


FEW = (
    Candidate(HeadSpec(Exact())),
    Candidate(HeadSpec(Dropped(), Near(60, 4))),
    Candidate(HeadSpec(Taylor(3, "mean"), Near(8, 4))),
    Candidate(HeadSpec(Taylor(2, "mean"), Near(8, 4))),
)


def hand_table(errors, weighted, guarded=None, candidates=FEW):
    """A table of as many layers of one KV head as there are rows of ``errors[KV head][candidate]``."""
    modules = tuple(AttentionModule(f"layers.{i}", 2, 1, 8, 8, 1.0, True, None) for i in range(len(errors)))
    layers = []
    for place, module in enumerate(modules):
        shares = guarded[place] if guarded else [0.0] * len(candidates)
        rows = tuple(
            LeverRow(module.name, 0, candidate, *figures)
            for candidate, figures in enumerate(zip(errors[place], weighted[place], shares, strict=True))
        )
        layers.append(LayerLevers(module.name, rows, {}, None))
    return LeverTable(
        ModelDescription("made up", "LlamaForCausalLM", modules, 4096, "sha256:0"), candidates, tuple(layers)
    )
