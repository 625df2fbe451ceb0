"""Coordinates in which few carry most of a KV head's score variance (docs/math.md#7-ranks).

Balanced truncation (B. Moore, "Principal component analysis in linear systems", IEEE TAC 26, 1981), with queries and
keys in the place of observability and controllability. With Cholesky factors ``C_q = L_q L_q^T``, ``C_k = L_k L_k^T``
and ``L_q^T L_k = U S V^T``::

    A_q = S^(-1/2) V^T L_k^T,   A_k = S^(-1/2) U^T L_q^T,
    A_q^T A_k = I,   A_q C_q A_q^T = A_k C_k A_k^T = diag(S)

Rotated coordinate i carries ``S_i^2`` of the variance ``tr(C_q C_k)`` of unscaled centred scores, and no r coordinates
of any basis carry more than the first r of these: ``S`` are the singular values of the score as a bilinear form, with
queries and keys measured in units of their own moments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from taylorder.analysis.capture import LayerTensors
from taylorder.storage.processes import gather, total

RIDGE = 1e-6
"""Share of the mean eigenvalue of a moment that is added to all its eigenvalues, for moments that are singular."""


def balanced_rotations(layer: LayerTensors, centres: Tensor, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """Balance the queries and the centred keys of every KV head; padding is left out.

    ``C_q = E[q q^T]`` over all queries of the group and ``C_k = E[(k - c)(k - c)^T]``, each plus
    ``ridge * trace / d * I``; from there on as the module says. The sign of a coordinate is such that the largest entry
    of its row of ``A_q`` is positive.

    Args:
        layer: the captured tensors, any float dtype.
        centres: key centres c, ``[G, d]`` (:func:`~taylorder.analysis.truncation.key_centres`, and then ``C_k`` is the
            covariance of the keys).
        ridge: above 0.

    Returns:
        What the queries and the centred keys are multiplied by, as ``x @ A.T``: ``A_q`` and ``A_k`` of every KV head,
        float64 ``[G, d, d]`` each, on the device of the layer, coordinates by descending ``S``.

    Raises:
        ValueError: the ridge is not a positive number.
        torch.linalg.LinAlgError: queries or keys are not finite.

    """
    if not ridge > 0:
        raise ValueError(f"ridge is {ridge}, expected a number above 0: a singular moment cannot be balanced")
    _, G, _, d = layer.k.shape
    group = layer.q.shape[1] // G
    valid = layer.valid
    pairs = []
    for kv_head in range(G):
        queries = layer.q[:, kv_head * group : (kv_head + 1) * group].transpose(1, 2)[valid].double().view(-1, d)
        keys = layer.k[:, kv_head][valid].double() - centres[kv_head].double()
        pairs.append(_balance(_moment(queries, ridge), _moment(keys, ridge)))
    query, key = (torch.stack(matrices) for matrices in zip(*pairs, strict=True))
    return query, key


def _moment(vectors: Tensor, ridge: float) -> Tensor:
    """Mean of ``x x^T`` over vectors ``[N, d]`` of all processes, with the ridge: ``[d, d]``, invertible."""
    moment = total(vectors.T @ vectors) / sum(gather(len(vectors)))
    size = moment.diagonal().mean()
    # Vectors that are all zero have no size to be relative to, and any coordinates suit them.
    return moment + ridge * torch.where(size == 0, 1.0, size) * torch.eye(len(moment)).to(moment)


def _balance(query_moment: Tensor, key_moment: Tensor) -> tuple[Tensor, Tensor]:
    """``A_q`` and ``A_k`` ``[d, d]`` of two invertible moments."""
    query_factor, key_factor = torch.linalg.cholesky(query_moment), torch.linalg.cholesky(key_moment)
    left, values, right = torch.linalg.svd(query_factor.T @ key_factor)
    scale = values.rsqrt()[:, None]
    query, key = scale * (right @ key_factor.T), scale * (left.T @ query_factor.T)
    largest = query.gather(1, query.abs().argmax(1, keepdim=True))
    return query * largest.sign(), key * largest.sign()
