"""The rows of ``heads.csv`` that one module gives, from the sums over its query rows."""

from __future__ import annotations

import math

import torch

from taylorder.analysis.capture import LayerTensors
from taylorder.analysis.results import CandidateRow
from taylorder.analysis.statistics import certified_bound, fitted_floor, gaussian_prediction, logit_ranks
from taylorder.analysis.truncation import ErrorSums, ScoreSums, relative
from taylorder.models.description import AttentionModule
from taylorder.storage.processes import gather


def candidate_rows(
    module: AttentionModule, layer: LayerTensors, scores: ScoreSums, sums: ErrorSums
) -> list[CandidateRow]:
    """One row per head, expansion point and order; ``layer`` is the share of this process, the sums are of all."""
    sweep = sums.sweep
    elements = scores.rows * module.value_dim
    relative_l2 = {kind: relative(squared, scores.output_squared) for kind, squared in sums.squared.items()}
    rmse = {kind: (squared / elements).sqrt() for kind, squared in sums.squared.items()}
    median = torch.cat(sums.row_errors, dim=-1).quantile(0.5, dim=-1)
    std = (scores.squared_deviation / scores.count).sqrt()
    capped = layer.terms.softcap is not None
    largest_value = torch.stack(gather(layer.v.abs().amax((0, 2, 3)))).amax(0).tolist()
    ranks = logit_ranks(layer.q, layer.k, layer.valid)
    rows = []
    for head in range(module.heads):
        kv_head = head // module.group
        for index, expansion in enumerate(sweep.expansions):
            for order in range(1, sweep.max_order + 1):
                figure = (index, order - 1, head)
                rows.append(
                    CandidateRow(
                        module=module.name,
                        head=head,
                        kv_head=kv_head,
                        order=order,
                        expansion=expansion,
                        window=sweep.window,
                        sinks=sweep.sinks,
                        relative_l2=float(relative_l2["guarded"][figure]),
                        rmse=float(rmse["guarded"][figure]),
                        cosine=float(sums.cosine["guarded"][figure]) / scores.rows,
                        max_error=float(sums.largest["guarded"][figure]),
                        nonpositive_share=float(sums.guarded_rows[figure]) / scores.rows,
                        score_mean=float(scores.total[head]) / scores.count,
                        score_std=float(std[head]),
                        score_max=float(scores.largest[head]),
                        median_row_error=float(median[figure]),
                        raw_relative_l2=float(relative_l2["raw"][figure]),
                        raw_rmse=float(rmse["raw"][figure]),
                        raw_cosine=float(sums.cosine["raw"][figure]) / scores.rows,
                        raw_max_error=float(sums.largest["raw"][figure]),
                        gaussian_prediction=gaussian_prediction(float(std[head]), order),
                        fitted_floor=fitted_floor(float(std[head]), order),
                        # The bound is on the exponential of the score, which a cap changes.
                        certified_bound=None
                        if capped
                        else certified_bound(float(sums.far_radius[index, head]), order, largest_value[kv_head]),
                        log_keys=math.log(scores.keys),
                        logit_rank=ranks[head],
                    )
                )
    return rows
