"""What ties a cache to a config: every field of a head but its provenance, and a new one cannot escape."""

from __future__ import annotations

import pytest
from config_forms import EXACT, PLAIN, RANKED, WINDOW, centres, config_of, example

from taylorder.adapt.config import HeadOrder, LayerOrders, OrderConfig
from taylorder.adapt.decisions import PROVENANCE
from taylorder.adapt.prepared import execution_digest

OTHERS = {
    "order": {"order": 4},
    "expansion": {"expansion": "centre"},
    "window": {"window": 5},
    "sinks": {"sinks": 3},
    "ranks": {"ranks": (8, 8, 4)},
    "coefficients": {"coefficients": (1.0, 1.0, 0.5)},
    "error": {"error": 0.5},
    "reason": {"reason": "other"},
    "nominal_bytes": {"nominal_bytes": 7},
    "break_even": {"break_even": 7},
}
"""For every field of a head, another value than that of the head below."""

MARKED = {"error", "reason", "nominal_bytes", "break_even"}


def test_every_field_of_a_head_is_executed_unless_it_is_marked_as_provenance():
    assert HeadOrder.model_fields.keys() == OTHERS.keys()
    assert {name for name, field in HeadOrder.model_fields.items() if PROVENANCE in field.metadata} == MARKED


@pytest.mark.parametrize("name", OTHERS)
def test_a_field_of_a_head_counts_in_the_digest_unless_it_is_provenance(name):
    def digest(**changes):
        own = HeadOrder(**{"order": 3, "expansion": "mean", "window": 4, "sinks": 2} | changes)
        return execution_digest(config_of([own] * 3, EXACT, EXACT, EXACT))

    assert (digest() == digest(**OTHERS[name])) == (name in MARKED)


def test_everything_else_in_a_config_is_known_to_the_digest():
    """A new field of a layer or of a config has to enter the digest, or be named here as one that changes nothing."""
    assert LayerOrders.model_fields.keys() == {"module", "heads"}
    assert OrderConfig.model_fields.keys() == {"model", "calibration", "criterion", "software", "layers"}
    assert OrderConfig.__private_attributes__.keys() == {"_key_centres", "_rotations"}
    plain = example()
    moved = config_of(WINDOW, EXACT, PLAIN, RANKED)
    other = plain.model_copy(update={"model": plain.model.model_copy(update={"fingerprint": "sha256:def"})})
    renamed = plain.model_copy(update={"calibration": {"seed": 1}, "software": {"torch": "0"}})
    digests = [execution_digest(c) for c in (plain, moved, other, plain.with_key_centres(centres()))]
    assert len(set(digests)) == 4
    assert execution_digest(renamed) == execution_digest(plain)
