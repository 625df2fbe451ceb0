"""What ties a cache to a config: every field of a head but its provenance, and a new one cannot escape."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from config_forms import (
    DIM,
    EXACT,
    KV_HEADS,
    MODULES,
    PLAIN,
    PROBE_TEXT,
    RANKED,
    WINDOW,
    centres,
    config_of,
    example,
    probes,
)

from taylorder.adapt.config import HeadOrder, LayerOrders, OrderConfig
from taylorder.adapt.prepared import execution_digest
from taylorder.kernels.spec import Dropped, Exact, HeadSpec, Near, Taylor

OTHERS = {
    "order": Taylor(4, "mean"),
    "expansion": Taylor(3, "centre"),
    "ranks": Taylor(3, "mean", (8, 8, 4)),
    "coefficients": Taylor(3, "mean", None, (1.0, 1.0, 0.5)),
    "window": Near(5, 2),
    "sinks": Near(4, 3),
    "kept": Near(4, 2, 1),
}
"""For every field of what the head below runs, one in which it alone is another."""

KINDS = (Exact(), Dropped(), Taylor(1))

ABOUT = {"error": 0.5, "reason": "other", "nominal_bytes": 7, "break_even": 7}


def digest(far=None, near=None, **about):
    spec = HeadSpec(far or Taylor(3, "mean"), near or Near(4, 2))
    head = HeadOrder(spec=spec, **about)
    return execution_digest(config_of([head] * 3, EXACT, EXACT, EXACT))


def test_the_table_names_every_field():
    assert HeadOrder.model_fields.keys() == {"spec", *ABOUT}
    assert OTHERS.keys() == {field.name for kind in (Taylor, Near) for field in fields(kind)}


@pytest.mark.parametrize("name", OTHERS)
def test_every_field_of_what_a_head_runs_counts_in_the_digest(name):
    other = OTHERS[name]
    assert digest(**{"near" if isinstance(other, Near) else "far": other}) != digest()


def test_the_kind_of_far_field_counts_in_the_digest():
    digests = [execution_digest(config_of(*[[HeadOrder(spec=HeadSpec(far))] * 3] * 4)) for far in KINDS]
    assert len(set(digests)) == len(KINDS)


@pytest.mark.parametrize("name", ABOUT)
def test_provenance_does_not_count_in_the_digest(name):
    assert digest(**{name: ABOUT[name]}) == digest()


def test_everything_else_in_a_config_is_known_to_the_digest():
    """A new field of a layer or of a config has to enter the digest, or be named here as one that changes nothing."""
    # A layer of a shape of its own is exact, and cuts no group.
    assert LayerOrders.model_fields.keys() == {"module", "heads", "shape"}
    assert OrderConfig.model_fields.keys() == {"model", "calibration", "criterion", "software", "probe", "layers"}
    assert OrderConfig.__private_attributes__.keys() == {"_key_centres", "_rotations", "_probes"}
    plain = example()
    moved = config_of(WINDOW, EXACT, PLAIN, RANKED)
    other = plain.model_copy(update={"model": plain.model.model_copy(update={"fingerprint": "sha256:def"})})
    renamed = plain.model_copy(update={"calibration": {"seed": 1}, "software": {"torch": "0"}})
    probed = [plain.with_probes(probes(seed), PROBE_TEXT) for seed in (0, 1)]
    digests = [execution_digest(c) for c in (plain, moved, other, plain.with_key_centres(centres()), *probed)]
    assert len(set(digests)) == 6
    elsewhere = plain.with_probes(probes(), PROBE_TEXT | {"text": "other"})
    assert execution_digest(elsewhere) == execution_digest(probed[0])
    assert execution_digest(renamed) == execution_digest(plain)


def test_configs_without_kept_keys_have_the_digest_that_they_always_had():
    """States that were saved under it go on."""
    known = "sha256:80a364681d4fce907664df28de438168ecb2cef9816dc829645ac0a1ec15910c"
    assert execution_digest(example().with_key_centres({name: torch.ones(KV_HEADS, DIM) for name in MODULES})) == known
