"""Balanced rotations: scores stay, both moments become the same diagonal, and its tail is all that truncation loses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from taylorder.analysis.capture import LayerTensors
from taylorder.analysis.truncation import key_centres
from taylorder.selection.rotations import RIDGE, balanced_rotations

G, GROUP = 2, 3


def random_layer(seed, d=6, tokens=50, batch=2):
    """Correlated queries and keys of uneven size, no padding."""
    generator = torch.Generator().manual_seed(seed)

    def draw(heads):
        mixing = torch.randn(heads, d, d, generator=generator) * torch.logspace(0, -2, d)
        offset = torch.randn(heads, 1, d, generator=generator)
        return torch.randn(batch, heads, tokens, d, generator=generator) @ mixing + offset

    return LayerTensors(draw(G * GROUP), draw(G), draw(G), None, 0.4, True)


def moments(layer, kv_head, ridge=0.0):
    """Second moment of the group's queries and covariance of the keys, ``[d, d]`` each, with numpy."""
    d = layer.k.shape[-1]
    valid = layer.valid.numpy()
    queries = np.concatenate(
        [layer.q[:, head].double().numpy()[valid] for head in range(kv_head * GROUP, (kv_head + 1) * GROUP)]
    )
    both = [queries.T @ queries / len(queries), np.cov(layer.k[:, kv_head].double().numpy()[valid].T, bias=True)]
    return [moment + ridge * np.trace(moment) / d * np.eye(d) for moment in both]


def lost(queries_moment, keys_moment, kept):
    """Variance of what scores lose when only ``kept`` coordinates are summed."""
    return float((queries_moment[kept:, kept:] * keys_moment[kept:, kept:]).sum())


def rotate(rotations, kv_head, queries_moment, keys_moment):
    A_q, A_k = rotations[0][kv_head].numpy(), rotations[1][kv_head].numpy()
    return A_q @ queries_moment @ A_q.T, A_k @ keys_moment @ A_k.T


def balanced(layer, **options):
    return balanced_rotations(layer, key_centres(layer), **options)


def test_scores_do_not_change():
    layer = random_layer(0)
    rotations = balanced(layer)
    assert rotations[0].dtype == rotations[1].dtype == torch.float64
    assert rotations[0].shape == rotations[1].shape == (G, 6, 6)
    identity = torch.eye(6, dtype=torch.float64).expand(G, -1, -1)
    torch.testing.assert_close(rotations[0].mT @ rotations[1], identity, rtol=0, atol=1e-9)
    q = layer.q.double().unflatten(1, (G, GROUP))
    k = layer.k.double()[:, :, None]
    rotated = (q @ rotations[0][:, None].mT) @ (k @ rotations[1][:, None].mT).mT
    torch.testing.assert_close(rotated, q @ k.mT, rtol=1e-9, atol=1e-9)
    assert (q @ rotations[0][:, None].mT - q).abs().max() > 0.1  # the rotation is not the identity


@pytest.mark.parametrize("ridge", [RIDGE, 0.1])
@pytest.mark.parametrize("kv_head", range(G))
def test_both_moments_become_the_same_descending_diagonal(kv_head, ridge):
    layer = random_layer(1)
    queries_moment, keys_moment = moments(layer, kv_head, ridge)
    for_queries, for_keys = rotate(balanced(layer, ridge=ridge), kv_head, queries_moment, keys_moment)
    # The squares of S are the eigenvalues of C_q C_k.
    S = np.sqrt(np.sort(linalg.eigvals(queries_moment @ keys_moment).real)[::-1])
    np.testing.assert_allclose(for_queries, np.diag(S), rtol=1e-6, atol=1e-9 * S[0])
    np.testing.assert_allclose(for_keys, np.diag(S), rtol=1e-6, atol=1e-9 * S[0])
    assert S[0] > 2 * S[-1]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), d=st.integers(2, 8), data=st.data())
def test_no_basis_loses_less_variance(seed, d, data):
    layer = random_layer(seed, d, tokens=40)
    rank = data.draw(st.integers(1, d - 1), label="rank")
    rotations = balanced(layer)
    for kv_head in range(G):
        queries_moment, keys_moment = moments(layer, kv_head)
        found = lost(*rotate(rotations, kv_head, queries_moment, keys_moment), rank)
        with_ridge = moments(layer, kv_head, RIDGE)
        S_squared = np.sort(linalg.eigvals(with_ridge[0] @ with_ridge[1]).real)[::-1]
        assert found <= S_squared[rank:].sum() + 1e-9 * S_squared[0]
        assert found < lost(queries_moment, keys_moment, rank)
        # Nor does the best of all matrices of that rank (Eckart-Young, in units of the moments).
        roots = [linalg.sqrtm(moment).real for moment in with_ridge]
        optimum = (linalg.svdvals(roots[0] @ roots[1])[rank:] ** 2).sum()
        assert found <= optimum + 1e-9 * S_squared[0]


def test_the_lost_variance_is_that_of_real_scores():
    layer = random_layer(2)
    centres = key_centres(layer)
    rotations = balanced_rotations(layer, centres)
    q, k = layer.q[:, :GROUP].double().flatten(0, 2), (layer.k[:, 0].double() - centres[0]).flatten(0, 1)
    scores = q @ k.T
    truncated = (q @ rotations[0][0].T)[:, :2] @ (k @ rotations[1][0].T)[:, :2].T
    share = (scores - truncated).square().mean() / scores.square().mean()
    raw = (scores - q[:, :2] @ k[:, :2].T).square().mean() / scores.square().mean()
    S = rotate(rotations, 0, *moments(layer, 0))[0].diagonal()
    assert float(share) == pytest.approx((S[2:] ** 2).sum() / (S**2).sum(), rel=1e-3)
    assert share < 0.5 * raw


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_has_no_influence(side):
    layer = random_layer(3, batch=1)
    tokens = layer.k.shape[2]
    alone = balanced(layer)
    kept = torch.zeros(1, tokens + 7, dtype=torch.bool)
    kept[:, slice(7, None) if side == "left" else slice(tokens)] = True

    def padded(x):
        filled = torch.full((1, x.shape[1], tokens + 7, x.shape[3]), 1e3)
        filled[:, :, kept[0]] = x
        return filled

    mask = torch.ones(tokens + 7, tokens + 7, dtype=torch.bool).tril() & kept[:, None, None, :] & kept[:, None, :, None]
    with_padding = replace(layer, q=padded(layer.q), k=padded(layer.k), v=padded(layer.v), mask=mask)
    found = balanced(with_padding)
    torch.testing.assert_close(found[0], alone[0], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found[1], alone[1], rtol=1e-8, atol=1e-8)
    unmasked = balanced(replace(with_padding, mask=None))
    assert (unmasked[0] - alone[0]).abs().max() > 0.1  # negative control


def test_groups_are_pooled_and_kv_heads_are_their_own():
    layer = random_layer(4)
    both = balanced(layer)
    second = replace(layer, q=layer.q[:, GROUP:], k=layer.k[:, 1:], v=layer.v[:, 1:])
    torch.testing.assert_close(balanced(second)[0][0], both[0][1])
    order = [2, 0, 1, 3, 4, 5]
    torch.testing.assert_close(balanced(replace(layer, q=layer.q[:, order]))[0], both[0])
    order = [0, 1, 3, 2, 4, 5]
    assert (balanced(replace(layer, q=layer.q[:, order]))[0] - both[0]).abs().max() > 0.01


def test_signs_are_fixed():
    layer = random_layer(5)
    rotations = balanced(layer)
    largest = rotations[0].gather(2, rotations[0].abs().argmax(2, keepdim=True))
    assert (largest > 0).all()
    assert torch.equal(balanced(layer)[1], rotations[1])


@pytest.mark.parametrize("degenerate", ["few tokens", "no queries", "constant keys"])
def test_singular_moments_are_balanced_too(degenerate):
    layer = random_layer(6, d=8, tokens=2 if degenerate == "few tokens" else 20, batch=1)
    if degenerate == "no queries":
        layer = replace(layer, q=torch.zeros_like(layer.q))
    if degenerate == "constant keys":
        layer = replace(layer, k=torch.ones_like(layer.k))
    rotations = balanced(layer)
    query, key = rotations[0].float().double(), rotations[1].float().double()
    deviation = (query.mT @ key - torch.eye(8, dtype=torch.float64)).abs().max()
    assert deviation < 1e-3  # what a config accepts


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_a_ridge_that_is_none_is_refused(ridge):
    with pytest.raises(ValueError, match="expected a number above 0"):
        balanced(random_layer(0), ridge=ridge)
