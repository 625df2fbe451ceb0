"""What claims measure of every head, beside a plain computation head by head, row by row, key by key."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from taylorder.analysis.capture import LayerTensors
from taylorder.claims.measurements import heads as module
from taylorder.claims.measurements.heads import DISTANCES, ORDERS, TIES, measure_heads
from taylorder.claims.rounding import PRECISIONS, rounded
from taylorder.kernels.spec import SINKS
from taylorder.models.describe import describe
from taylorder.storage.records import Records

H, G, T, D, DV, SCALING = 4, 2, 90, 6, 5, 0.5
ROWS = [torch.tensor([0, 5, 63, 64, 80, 89]), torch.tensor([70, 71])]


@pytest.fixture(scope="module")
def layer():
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, T, w, generator=draw) for n, w in ((H, D), (G, D), (G, DV)))
    return LayerTensors(2 * q, k + 1.0, v, None, SCALING, True)


@pytest.fixture(scope="module")
def found(layer):
    return {name: np.array(value) for name, value in vars(module._measure(layer, ROWS)).items()}


def weights_of(scores, order):
    """Weights of one row, order None for softmax."""
    x = scores - scores.mean()
    if order is None:
        w = np.exp(x - x.max())
    else:
        w = sum(x**p / math.factorial(p) for p in range(order))
        if w.sum() <= 1e-3 * len(x):
            w = np.ones_like(x)
    return w / w.sum()


def plain(layer):
    """Rows of every head: number of the sequence, query, scores, values."""
    k = layer.k.double() - layer.k.double().mean((0, 2))[:, None]
    for b, rows in enumerate(ROWS):
        for h in range(H):
            for i in rows.tolist():
                scores = SCALING * (k[b, h // 2, : i + 1] @ layer.q[b, h, i].double()).numpy()
                yield b, h, i, scores, layer.v[b, h // 2, : i + 1].double().numpy()


def test_errors_of_truncation(layer, found):
    output, errors = np.zeros(H), np.zeros((len(ORDERS), H))
    for _, h, _, scores, values in plain(layer):
        exact = weights_of(scores, None) @ values
        output[h] += exact @ exact
        for place, order in enumerate(ORDERS):
            errors[place, h] += np.square(weights_of(scores, order) @ values - exact).sum()
    np.testing.assert_allclose(found["output"], output)
    np.testing.assert_allclose(found["truncation"], errors)
    assert found["elements"].tolist() == [sum(map(len, ROWS)) * DV] * H
    assert (errors > 1e-3 * output).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_errors_of_rounding(layer, found, precision):
    q, k, v = (rounded(each, precision) for each in (layer.q, layer.k, layer.v))
    errors = np.zeros(H)
    for b, h, i, scores, values in plain(layer):
        own = SCALING * (k[b, h // 2, : i + 1] @ q[b, h, i]).numpy()
        low = weights_of(own, None) @ v[b, h // 2, : i + 1].numpy()
        errors[h] += np.square(low - weights_of(scores, None) @ values).sum()
    np.testing.assert_allclose(found["rounding"][PRECISIONS.index(precision)], errors, rtol=1e-6)


def test_weight_on_tied_keys(layer, found):
    rows, mass = np.zeros((len(TIES) + 1, H)), np.zeros((len(TIES) + 1, H))
    kept = np.zeros((len(TIES) + 1, len(ORDERS), H))
    for _, h, i, scores, _ in plain(layer):
        if i + 1 < 64:
            continue
        tied = scores >= scores.max() - math.log(2)
        bucket = next((place for place, end in enumerate(TIES) if tied.sum() <= end), len(TIES))
        rows[bucket, h] += 1
        mass[bucket, h] += weights_of(scores, None)[tied].sum()
        for place, order in enumerate(ORDERS):
            kept[bucket, place, h] += weights_of(scores, order)[tied].sum()
    np.testing.assert_allclose(found["tied_rows"], rows)
    np.testing.assert_allclose(found["tied_mass"], mass)
    np.testing.assert_allclose(found["tied_truncated"], kept)
    assert (rows.sum(1) > 0).sum() > 2


def bucket_of(i, j):
    if j < SINKS:
        return len(DISTANCES) + 1
    return next(place for place, end in enumerate(DISTANCES) if i - j + 1 <= end)


def test_weight_by_distance(layer, found):
    mass, truncated = np.zeros((len(DISTANCES) + 2, H)), np.zeros((len(ORDERS), len(DISTANCES) + 2, H))
    for _, h, i, scores, _ in plain(layer):
        for j in range(i + 1):
            mass[bucket_of(i, j), h] += weights_of(scores, None)[j]
            for place, order in enumerate(ORDERS):
                truncated[place, bucket_of(i, j), h] += weights_of(scores, order)[j]
    np.testing.assert_allclose(found["mass"], mass)
    np.testing.assert_allclose(found["truncated_mass"], truncated, atol=1e-12)
    assert mass.sum() == pytest.approx(H * sum(map(len, ROWS)))


def test_what_moved_weight_does_by_distance(layer, found):
    moved = np.zeros((len(ORDERS), len(DISTANCES) + 2, H))
    for _, h, i, scores, values in plain(layer):
        bucket = np.array([bucket_of(i, j) for j in range(i + 1)])
        for place, order in enumerate(ORDERS):
            given = weights_of(scores, order) - weights_of(scores, None)
            for each in set(bucket):
                moved[place, each, h] += np.square(given[bucket == each] @ values[bucket == each]).sum()
    np.testing.assert_allclose(found["moved"], moved, atol=1e-12)


def test_errors_by_number_of_keys_add_up(found):
    for name, whole in (("output", found["output"]), ("truncation", found["truncation"][ORDERS.index(4)])):
        np.testing.assert_allclose(found[f"by_keys_{name}"].sum(0), whole)
    np.testing.assert_allclose(found["by_keys_rounding"].sum(0), found["rounding"][PRECISIONS.index("int4")])
    assert (found["by_keys_output"][0] > 0).all()  # the row that sees one key
    assert (found["by_keys_output"][DISTANCES.index(2)] == 0).all()


def test_size_of_every_degree(layer, found):
    sums, whole = np.zeros((8, H)), np.zeros(H)
    for _, h, _, scores, values in plain(layer):
        x, scale = scores - scores.mean(), np.exp(scores.mean() - scores.max())
        whole[h] += np.square(np.exp(scores - scores.max()) @ values).sum()
        for degree in range(8):
            sums[degree, h] += np.square(scale * (x**degree / math.factorial(degree)) @ values).sum()
    np.testing.assert_allclose(found["degrees"], sums)
    np.testing.assert_allclose(found["numerator"], whole)


def test_finished_modules_are_found_again(builtin_free_model, tmp_path, monkeypatch):
    model, ids, rows = builtin_free_model
    described = describe(model, "tiny")
    records, told = Records(tmp_path, {}), []
    first = measure_heads(model, described, ids, rows, records=records, progress=lambda *call: told.append(call))
    assert [call[1] for call in told] == [1, 2]
    monkeypatch.setattr(module, "_measure", None)  # nothing is measured again
    again = measure_heads(model, described, ids, rows, records=records, progress=lambda *call: None)
    assert again == first


@pytest.fixture
def builtin_free_model():
    import tiny

    return tiny.llama(), torch.randint(4, tiny.VOCAB, (2, 40), generator=torch.Generator().manual_seed(0)), [
        torch.tensor([3, 30]), torch.tensor([39]),
    ]  # fmt: skip
