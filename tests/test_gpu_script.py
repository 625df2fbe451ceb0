"""``scripts/gpu.py``: every section on tiny sizes on a CPU, the time limits, and what is said where there is no GPU."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from gpu_run import run, sections
from gpu_run.sizes import sizes

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "gpu.py"
TINY = sizes(torch.device("cpu"), quick=True)


@pytest.fixture
def script():
    """The script as a module; scripts/ is not a package."""
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_section_runs_and_the_table_is_made_from_the_file(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sections, "TESTS", ("--version",))  # the tests themselves are skipped here, at length
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "there" / "gpu.json"
    script.main(["--device", "cpu", "--quick", "--out", str(out)])
    shown = capsys.readouterr().out
    document = json.loads(out.read_text())
    assert document["schema"] == "taylorder/gpu@1"
    assert document["machine"]["device"] == "cpu"
    assert document["software"]["torch"] == torch.__version__
    assert {name: section["ended"] for name, section in document["sections"].items()} == dict.fromkeys(run.LIMITS, "")
    (version,) = document["sections"]["tests"]["rows"]
    assert version["note"].startswith("exit code 0: pytest")
    timed = {name: document["sections"][name]["rows"] for name in ("prefill", "decode")}
    for rows in timed.values():
        assert [row["tokens"] for row in rows] == [tokens for tokens in TINY.lengths for _ in TINY.specs]
        assert [row["what"] for row in rows] == [*TINY.specs] * len(TINY.lengths)
        assert all(row["milliseconds"] > 0 for row in rows), rows
        assert [row["ratio"] for row in rows if row["what"] == "exact"] == [1.0] * len(TINY.lengths)
    rivals = {row["what"]: row for row in document["sections"]["attention"]["rows"]}
    assert rivals["SDPA"]["ratio"] == 1.0
    assert rivals["order 3, window 8"]["milliseconds"] > 0
    assert rivals["flash-attn"]["note"].startswith("not importable: No module named 'flash_attn'")
    generated = document["sections"]["generate"]["rows"]
    assert [row["what"] for row in generated[:4]] == [
        "prompt, exact",
        "token, exact",
        "prompt, order 3",
        "token, order 3",
    ]
    for row in (rivals["SDPA"], *generated):
        assert row["what"] in shown
        assert f"{row['milliseconds']:.3f}" in shown


def test_a_section_without_time_or_with_an_error_says_so_and_the_others_run(monkeypatch):
    def broken(_sizes):
        yield sections.Row("something", 1, 2.0, 1.0)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(sections, "TESTS", ("--version",))
    monkeypatch.setattr(sections, "prefill", broken)
    document = run.measured(TINY, None, run.LIMITS | {"attention": 0.0, "generate": 0.0, "tests": 0.001})
    found = document["sections"]
    assert found["attention"] | {"seconds": 0} == {
        "seconds": 0, "rows": [], "ended": "skipped from here on: its 0 s are used up",
    }  # fmt: skip
    assert found["generate"]["ended"].startswith("skipped")
    assert found["tests"]["rows"][0]["note"] == "not over after 0 s"
    assert (len(found["prefill"]["rows"]), found["prefill"]["ended"]) == (1, "stopped by RuntimeError: out of memory")
    assert len(found["decode"]["rows"]) == len(TINY.specs) * len(TINY.lengths)
    assert any("out of memory" in cell for column in run.table(document).columns for cell in column.cells)


def test_all_limits_together_are_less_than_six_minutes():
    assert sum(run.LIMITS.values()) < 360


def test_without_a_gpu_it_says_so_in_one_sentence_and_writes_nothing(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    script.main(["--out", str(tmp_path / "gpu.json")])
    shown = capsys.readouterr().out
    assert shown.startswith("There is no CUDA device here")
    assert len(shown.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
