"""Alpha is WeightWatcher's, to the last digits; what is no fit has no figures; nothing of WeightWatcher leaks out."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import subprocess
import sys
import threading
import warnings
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from taylorder.analysis import _weightwatcher
from taylorder.analysis.results import ROLES, SpectralRow
from taylorder.analysis.spectral import NEAR_TIE, PER_HEAD_NOTE, Matrix, fit_spectra
from taylorder.errors import TaylorderError

PARITY = 1e-9
FIGURES = ("alpha", "D", "sigma", "tail", "alpha_low", "alpha_high", "spectral_norm", "stable_rank", "hill_alpha")


def heavy(rows, columns, seed=0):
    """A matrix with a broad spectrum, like trained weights: Gaussian with decaying column scales."""
    gaussian = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return gaussian * torch.arange(1, columns + 1).float().pow(-0.4)


def fit(weight):
    return fit_spectra([Matrix("m", "q", weight)])[0]


def attention(seed):
    """Linear layers ``{q,k,v,o}_proj``, grouped: k and v are not square."""
    module = nn.ModuleDict({f"{p}_proj": nn.Linear(48, 16 if p in "kv" else 48, bias=False) for p in ROLES})
    for linear in module.values():
        linear.weight.data = heavy(*linear.weight.shape, seed=(seed := seed + 1))
    return module


@pytest.fixture
def weightwatcher():
    """WeightWatcher's main module, imported the quiet way."""
    fit(heavy(16, 16))
    return sys.modules["weightwatcher.weightwatcher"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="WeightWatcher itself rounds to float16 where there is CUDA")
@pytest.mark.filterwarnings("ignore")
def test_equals_weightwatcher_on_the_model(weightwatcher):
    model = nn.ModuleDict({"first": attention(0), "second": attention(10)})
    rows = fit_spectra([Matrix(n, p, m[f"{p}_proj"].weight) for n, m in model.items() for p in ROLES])
    details = weightwatcher.WeightWatcher(model=model).analyze().set_index("longname")
    assert len(rows) == len(details) == 8
    for row in rows:
        expected = details.loc[f"{row.module}.{row.projection}_proj"]
        assert row.status == expected.status == "success"
        assert (row.tail, {row.rows, row.columns}) == (expected.num_pl_spikes, {expected.N, expected.M})
        for name in ("alpha", "D", "sigma", "stable_rank"):
            assert getattr(row, name) == pytest.approx(expected[name], rel=0, abs=PARITY)
        assert row.spectral_norm == pytest.approx(expected.spectral_norm**0.5, rel=PARITY)


@pytest.mark.parametrize("seed", range(4))
def test_near_ties_follow_from_the_eigenvalues(seed):
    weight = heavy(64, 48, seed)
    row = fit(weight)
    eigenvalues = np.sort(torch.linalg.svdvals(weight.double()).numpy() ** 2)
    assert row.spectral_norm == pytest.approx(eigenvalues[-1] ** 0.5, rel=PARITY)
    assert row.stable_rank == pytest.approx(eigenvalues.sum() / eigenvalues[-1], rel=PARITY)
    alphas, distances = [], []
    for start, smallest in enumerate(eigenvalues[:-1]):
        tail = eigenvalues[start:]
        alphas.append(1 + len(tail) / np.log(tail / smallest).sum())
        cumulative = 1 - (tail / smallest) ** (1 - alphas[-1])
        distances.append(np.abs(cumulative - np.arange(len(tail)) / len(tail)).max())
    tied = [alpha for alpha, d in zip(alphas, distances, strict=True) if d <= min(distances) + NEAR_TIE]
    assert row.alpha == pytest.approx(alphas[int(np.argmin(distances))], abs=PARITY)
    assert (row.alpha_low, row.alpha_high) == pytest.approx((min(tied), max(tied)), abs=PARITY)
    assert row.alpha_low <= row.alpha <= row.alpha_high
    assert row.hill_alpha == pytest.approx(alphas[24], abs=PARITY)  # 24 of 48 are left from there on
    assert abs(fit(weight + 0.01 * heavy(64, 48, seed + 1)).alpha - row.alpha) > PARITY


GOOD = {"square": heavy(16, 16), "tall": heavy(24, 12), "bf16": heavy(24, 16).bfloat16()}
BAD = {
    "identity": torch.eye(10),
    "orthogonal": torch.linalg.qr(heavy(32, 32))[0],
    "zeros": torch.zeros(16, 16),
    "empty": torch.zeros(0, 16),
    "nan": heavy(16, 16).index_fill(0, torch.tensor([3]), float("nan")),
    "infinite": heavy(16, 16).index_fill(0, torch.tensor([3]), float("inf")),
    "infinite in float32": heavy(16, 16).double() * 1e300,
    "too few eigenvalues": heavy(7, 48),
    "one row": heavy(1, 48),
    "rank 1": heavy(16, 1) @ heavy(1, 16),
    "rank 5": torch.cat([heavy(5, 20), torch.zeros(15, 20)]),
    "below the floor": heavy(16, 16) * 1e-5,
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_fit_has_no_figures(name, capfd, caplog):
    row = fit(BAD[name])
    assert (row.status, row.rows, row.columns) == ("failed", *BAD[name].shape)
    assert {getattr(row, figure) for figure in FIGURES} == {None}
    assert dataclasses.replace(row, status="unavailable", rows=0, columns=0) == SpectralRow("m", "q")
    assert (capfd.readouterr(), caplog.records) == (("", ""), [])


def test_singular_values_not_found_is_a_failed_fit(weightwatcher, monkeypatch):
    monkeypatch.setattr(weightwatcher, "svd_vals", Mock(side_effect=np.linalg.LinAlgError("SVD did not converge")))
    assert fit(heavy(16, 16)).status == "failed"


def test_nothing_that_differs_with_a_gpu_is_used(weightwatcher, monkeypatch):
    """Where there is CUDA, WeightWatcher replaces both: one rounds to float16, the other computes in float32."""
    expected = fit(heavy(16, 16))
    used = Mock(side_effect=AssertionError("differs with a GPU"))
    monkeypatch.setattr(weightwatcher, "torch_T_to_np", used)
    monkeypatch.setattr(sys.modules["weightwatcher.RMT_Util"], "_svd_vals_fast", used)
    assert fit(heavy(16, 16)) == expected


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from([*GOOD, *BAD]), max_size=6))
def test_one_row_per_matrix_in_order(names):
    weights = [(GOOD | BAD)[name] for name in names]
    matrices = [Matrix(f"m{i}", ROLES[i % 4], weight, head=i) for i, weight in enumerate(weights)]
    rows = fit_spectra(matrices)
    assert [(r.module, r.projection, r.head) for r in rows] == [(m.module, m.projection, m.head) for m in matrices]
    assert [row.status for row in rows] == ["success" if name in GOOD else "failed" for name in names]
    assert rows == tuple(row for matrix in matrices for row in fit_spectra([matrix]))


@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
def test_alpha_does_not_depend_on_scale_or_transposition(scale):
    row, scaled = fit(heavy(48, 32)), fit(heavy(48, 32).T * scale)
    assert scaled.alpha == pytest.approx(row.alpha, rel=1e-4)  # products in float32 move eigenvalues by 1e-7
    assert scaled.spectral_norm == pytest.approx(row.spectral_norm * scale, rel=1e-6)
    assert (scaled.tail, scaled.rows, scaled.columns) == (row.tail, 32, 48)


def test_heads_go_the_same_way_in_any_precision_and_weights_are_not_touched():
    weight = nn.Parameter(heavy(32, 48).bfloat16())
    before = weight.detach().clone()
    slices = [Matrix("m", "q", part, head) for head, part in enumerate(weight.split(16))]
    rows = fit_spectra([Matrix("m", "q", weight), *slices])
    assert [(r.head, r.rows, r.alpha is None) for r in rows] == [(None, 32, False), (0, 16, False), (1, 16, False)]
    assert rows[2] == dataclasses.replace(fit(before[16:].float()), head=1)
    assert torch.equal(weight, before)
    assert "noisy" in PER_HEAD_NOTE


def test_a_weightwatcher_that_hides_its_fits_is_refused(monkeypatch):
    monkeypatch.setattr(_weightwatcher, "_recorded_fits", lambda _: contextlib.nullcontext([]))
    with pytest.raises(TaylorderError, match=r"install weightwatcher 0\.7\.7"):
        fit(heavy(16, 16))


def test_size_limits_are_lifted_and_one_thread_is_used(weightwatcher, monkeypatch):
    """By default WeightWatcher leaves out, without a word, what has over 15,000 eigenvalues or 50,000 rows."""
    asked, threads, analyze = [], [], weightwatcher.WeightWatcher.analyze

    def spy(self, **options):
        asked.append(options["max_evals"])
        threads.extend(lib["num_threads"] for lib in _weightwatcher._load()[1].info() if lib["user_api"] == "blas")
        return analyze(self, **options)

    monkeypatch.setattr(weightwatcher.WeightWatcher, "analyze", spy)
    assert fit(heavy(50_001, 8)).status == "success"
    assert (asked, set(threads)) == ([0], {1})


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(4, 4, 4), r"m: projection q is a tensor of shape \[4, 4, 4\], expected a matrix \[out, in\]"),
        (torch.zeros(16, 16, dtype=torch.uint8), r"of dtype torch.uint8, expected plain floating weights"),
        (torch.zeros(16, 16, device="meta"), r"on the meta device"),
    ],
)
def test_what_is_no_matrix_is_refused(weight, message):
    with pytest.raises(TaylorderError, match=message):
        fit_spectra([Matrix("m", "o", heavy(16, 16)), Matrix("m", "q", weight)])


def state(weightwatcher):
    logs = [(log.disabled, log.level, *log.handlers) for log in map(logging.getLogger, ("", "weightwatcher"))]
    threads = [library["num_threads"] for library in _weightwatcher._load()[1].info()]
    return weightwatcher.pl_fit, logs, tuple(warnings.filters), sys.stdout, sys.stderr, np.geterr(), threads


@pytest.mark.parametrize("stage", ["nowhere", "apply_esd", "apply_norm_metrics"])
def test_everything_is_restored_even_after_an_exception(stage, weightwatcher, monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = state(weightwatcher)
    monkeypatch.setattr(weightwatcher.WeightWatcher, stage, Mock(side_effect=KeyboardInterrupt), raising=False)
    with pytest.raises(KeyboardInterrupt) if stage != "nowhere" else contextlib.nullcontext():
        fit(heavy(16, 16))
    assert state(weightwatcher) == before
    assert [*tmp_path.iterdir(), *sys.modules["matplotlib.pyplot"].get_fignums()] == []
    assert capfd.readouterr() == ("", "")
    monkeypatch.undo()
    assert fit(heavy(16, 16)).status == "success"


def test_threads_do_not_disturb_one_another(weightwatcher):
    matrices = [Matrix("m", "q", heavy(24, 24, seed)) for seed in range(6)]
    expected, results, before = fit_spectra(matrices), [], state(weightwatcher)
    threads = [threading.Thread(target=lambda: results.append(fit_spectra(matrices))) for _ in range(3)]
    for step in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            step(thread)
    assert results == [expected] * 3
    assert state(weightwatcher) == before


FIRST_USE = """
import logging, sys, warnings
import matplotlib, torch
from taylorder.analysis.spectral import Matrix, fit_spectra

def state():
    root, plots = logging.getLogger(), logging.getLogger("matplotlib")
    backend = dict.__getitem__(matplotlib.rcParams, "backend")
    return root.level, list(root.handlers), plots.level, list(warnings.filters), sys.stdout, sys.stderr, backend

before = state()
assert "weightwatcher" not in sys.modules, "imported too early"
rows = fit_spectra([Matrix("m", "q", weight) for weight in (torch.randn(12, 32), torch.eye(32), torch.zeros(16, 16))])
assert "weightwatcher" in sys.modules and state() == before
assert [row.status for row in rows] == ["success", "failed", "failed"]
"""


def test_first_use_leaves_no_trace():
    result = subprocess.run([sys.executable, "-c", FIRST_USE], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
