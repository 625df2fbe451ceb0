"""What ``analyze`` leaves behind comes back exactly, is never half there, and is refused when damaged."""

import csv
import dataclasses
import errno
import json
import math
import os
from pathlib import Path

import pytest
import synthetic
import torch

from taylorder.commands._shared import write_run
from taylorder.errors import ConfigError, TaylorderError
from taylorder.evaluation.evaluate import Evaluation
from taylorder.reports.document import as_document
from taylorder.runs import run_directory
from taylorder.runs.run_files import FILES, RunDirectoryError
from taylorder.storage.finite_json import as_json

CONTRACT_HEADS = [
    "module", "head", "kv_head", "order", "expansion", "window", "sinks", "relative_l2", "rmse", "cosine", "max_error",
    "nonpositive_share", "score_mean", "score_std", "score_max",
]  # fmt: skip
CONTRACT_SPECTRAL = ["module", "projection", "alpha", "D", "sigma", "tail", "status", "alpha_low", "alpha_high"]


def small(**options):
    measured = synthetic.analysis(layers=3, per_head_alpha=True, **options)
    return measured, synthetic.selection(measured)


@pytest.fixture
def written(tmp_path):
    """A complete run directory."""
    write_run(tmp_path, *small())
    return tmp_path


def same(first, second):
    """Equality in which NaN equals NaN."""
    return repr(everything(first)) == repr(everything(second))


def everything(value):
    """A value with all its fields, where its repr is one line."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 64, "sinks": 4},
        {"causal": False, "kv_heads": 9, "weights_note": None},
        {"error": lambda layer, head, order, expansion: 0.01 / 3},
        {"sliding": lambda layer: layer == 1},
        {"error": lambda layer, head, order, expansion: math.inf if order == 4 else 0.5},
        {"error": lambda layer, head, order, expansion: math.nan if order == 4 else 0.5},
    ],
)
def test_a_run_comes_back_exactly(tmp_path, options):
    measured, chosen = small(**options)
    write_run(tmp_path / "deep" / "run", measured, chosen)
    read, read_chosen = run_directory.read(tmp_path / "deep" / "run")
    for name in ("model", "calibration", "max_order", "window", "sinks", "candidates", "spectral", "preview"):
        assert same(getattr(read, name), getattr(measured, name)), name
    assert read.key_centres.keys() == measured.key_centres.keys()
    assert all(torch.equal(read.key_centres[name], centre) for name, centre in measured.key_centres.items())
    for name in ("policy", "tolerance", "context", "largest_order", "heads"):
        assert same(getattr(read_chosen, name), getattr(chosen, name)), name
    assert read_chosen.config == chosen.config
    assert synthetic.report(read, read_chosen) == synthetic.report(measured, chosen)
    assert as_document(read, read_chosen) == as_document(measured, chosen)


@pytest.mark.parametrize(("file", "columns"), [("heads.csv", CONTRACT_HEADS), ("spectral.csv", CONTRACT_SPECTRAL)])
def test_tables_begin_with_the_columns_of_the_contract(written, file, columns):
    with (written / file).open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0])[: len(columns)] == columns
    assert len(rows) == {"heads.csv": 3 * 9 * 3 * 8, "spectral.csv": 3 * 10 * 4}[file]


def test_figures_that_do_not_exist_are_empty_cells(written):
    with (written / "spectral.csv").open(newline="", encoding="utf-8") as lines:
        failed = next(row for row in csv.DictReader(lines) if row["status"] == "failed")
    assert failed["alpha"] == failed["D"] == failed["tail"] == ""


def test_the_report_is_finite_json_with_everything_a_script_needs(tmp_path):
    measured, chosen = small(error=lambda layer, head, order, expansion: math.inf if order == 4 else 0.5)
    write_run(tmp_path, measured, chosen)

    def refuse(constant):
        raise AssertionError(constant)

    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert report["schema"] == "taylorder/report@2"
    assert report["calibration"]["query_rows"] == [list(rows) for rows in measured.calibration.query_rows]
    assert report["preview"]["relative_l2"]["model.layers.0.self_attn"][0][3] == "inf"
    assert report["settings"]["tolerance"] == 0.07
    assert len(report["heads"]) == 27
    assert report["heads"][0]["choice"]["order"] == "exact"
    assert report["verdict"]["heads"] == 27
    assert report["verdict"]["exact"] == {"tolerance": 27}
    assert report["alphas"][2]["k"] is None
    assert "torch" in report["software"]


def test_the_document_names_the_files_by_their_paths(tmp_path):
    document = as_document(*small(), tmp_path)
    assert document["files"] == {kind: str(tmp_path / name) for kind, name in FILES.items()}
    assert json.loads(as_json(document)) == document


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def raising(error):
    def call(*_, **__):
        raise error

    return call


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), FULL])
@pytest.mark.parametrize("place", ["OrderConfig.save", "write_rows", "Path.write_text", "as_json"])
def test_whatever_ends_the_writing_leaves_the_earlier_run_whole(written, monkeypatch, place, error):
    before = contents(written)
    monkeypatch.setattr(f"taylorder.runs.run_directory.{place}", raising(error))
    with pytest.raises(RunDirectoryError if error is FULL else KeyboardInterrupt, match="No space|^$"):
        write_run(written, *small(window=64, sinks=4))
    assert contents(written) == before
    run_directory.read(written)


def stop_after(renames, directory, monkeypatch):
    """Interrupt whatever renames one more file into ``directory``."""
    rename, left = os.replace, [renames]

    def stop(made, there):
        if Path(there).parent == directory:  # others are within the folder that is made ready
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        rename(made, there)

    monkeypatch.setattr("taylorder.storage.files.os.replace", stop)


@pytest.mark.parametrize("renames", range(3))
def test_a_machine_that_stops_between_renames_leaves_no_mixture(written, monkeypatch, renames):
    """Nothing is cleaned up after: what lies there is what a power cut leaves."""
    stop_after(renames, written, monkeypatch)
    measured, chosen = small(window=64, sinks=4)
    with pytest.raises(KeyboardInterrupt):
        write_run(written, measured, chosen)
    monkeypatch.undo()
    with pytest.raises(
        RunDirectoryError, match=r"has no report\.json, so no run was finished there; `taylorder analyze"
    ):
        run_directory.read(written)
    write_run(written, measured, chosen)
    assert run_directory.read(written)[0].window == 64


@pytest.mark.parametrize("renames", range(2))
def test_an_evaluation_that_is_added_never_takes_the_run_away(written, monkeypatch, renames):
    stop_after(renames, written, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        write_run(written, *small(), Evaluation(False, (), "no text"))
    assert run_directory.read(written)
    assert run_directory.read_evaluation(written) is None


def test_no_file_stays_from_another_run(written):
    for name in ("levers.csv", "claims.json"):
        (written / name).write_text("of another run")
    (written / "notes.txt").write_text("mine")
    measured, chosen = small()
    bare = chosen.config.model_copy()
    bare._key_centres = {}
    write_run(written, measured, synthetic.replaced(chosen, config=bare))
    assert set(contents(written)) == {*FILES.values(), "notes.txt"}


def test_a_folder_in_the_place_of_a_file_is_named_and_nothing_changes(written):
    (written / "levers.csv").mkdir()
    before = (written / "report.json").read_bytes()
    with pytest.raises(RunDirectoryError, match=r"written \(Is a directory: .*levers\.csv\) and keeps what it"):
        write_run(written, *small(window=64, sinks=4))
    assert (written / "report.json").read_bytes() == before


def test_a_run_of_other_settings_is_announced(written):
    measured, chosen = small()
    settings = {
        "text_sha256": measured.calibration.text_sha256, "tokens": measured.calibration.tokens, "seed": 0, "window": 0,
        "policy": "error", "context": chosen.context, "budget": None,
    }  # fmt: skip
    same = run_directory.replaces(written, model=measured.model, **settings)
    assert same.sentence == f"{written} holds a run of these settings, which this one replaces when it is finished"
    assert run_directory.replaces(written / "none", model=measured.model, **settings) is None
    (written / "heads.csv").unlink()
    assert run_directory.replaces(written, model=measured.model, **settings | {"seed": 7, "budget": 4096}).sentence == (
        f"{written} holds another run, which this one replaces when it is finished: seed 0, now 7; budget none, now "
        "4096"
    )
    other = synthetic.replaced(measured.model, name="other", fingerprint="sha256:89")
    told = run_directory.replaces(written, model=other, **settings)
    assert not told.lost, "it was measured in minutes"
    assert told.sentence.endswith(": of smollm2-135m (sha256:0123456789abcdef), not other (sha256:89)")
    (written / "report.json").write_text("{")
    assert "report.json is damaged (" in run_directory.replaces(written, model=other, **settings).sentence


def drop_last_line(path):
    path.write_text("\n".join(path.read_text(encoding="utf-8").splitlines()[:-1]) + "\n", encoding="utf-8")


def replace(old, new):
    def change(path):
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("heads.csv", lambda path: path.unlink(), r"has no heads\.csv, so no run was finished there"),
        (
            "heads.csv",
            drop_last_line,
            r"heads\.csv is damaged \(647 candidates, expected 648\); `taylorder analyze --out",
        ),
        ("heads.csv", replace("relative_l2", "relative"), r"heads\.csv is damaged \(column relative_l2 is missing\)"),
        ("heads.csv", replace(",zero,", ",nought,"), r"heads\.csv is damaged \(line 2: expansion: .*found 'nought'\)"),
        ("heads.csv", lambda path: path.write_bytes(b"\xff\xfe\x00"), r"heads\.csv is damaged"),
        ("spectral.csv", replace("success", "splendid"), r"spectral\.csv is damaged \(line 2: status: .*'splendid'\)"),
        ("report.json", lambda path: path.write_text("{"), r"report\.json is damaged"),
        ("report.json", lambda path: path.write_text("[]"), r"report\.json has schema None, this version reads"),
        (
            "report.json",
            replace('"max_order": 8', '"max_order": 8, "max_order": 7'),
            r"'max_order' stands twice in one",
        ),
        ("report.json", replace("report@2", "report@3"), r"has schema 'taylorder/report@3', this version reads"),
        ("report.json", replace('"max_order": 8', '"max_order": "x"'), r"damaged \(settings\.max_order: .*found 'x'\)"),
        ("report.json", replace('self_attn", "head": 1,', 'self_attn", "head": 9,'), r"its heads are not those"),
    ],
)
def test_damage_is_named_in_one_sentence(written, file, damage, message):
    damage(written / file)
    with pytest.raises(RunDirectoryError, match=message) as caught:
        run_directory.read(written)
    assert "\n" not in str(caught.value)
    assert "taylorder analyze" in str(caught.value)


def test_a_config_of_another_model_is_refused(written):
    replace('"fingerprint": "sha256:0123', '"fingerprint": "sha256:4567')(written / "orders.json")
    with pytest.raises(ConfigError, match="the config was made for weights sha256:4567"):
        run_directory.read(written)


def test_a_missing_directory_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(TaylorderError, match=r"none does not exist; `taylorder analyze --out .*none` makes one"):
        run_directory.read(tmp_path / "none")


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"cannot be written .*; name another with --out"):
        write_run(tmp_path / "file" / "run", *small())


def test_a_config_edited_in_its_run_is_not_shown_with_the_figures_of_another(written):
    path = written / "orders.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    entry = document["layers"][1]["kv_heads"][0]
    entry.update(runs="window", window=7, sinks=1, heads=[{"order": None} for _ in entry["heads"]])
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(TaylorderError, match=r"not the config that this run wrote .*head 0 of .*1.*`taylorder eval`"):
        run_directory.read(written)


def test_a_run_of_another_version_is_announced_before_it_is_replaced(written):
    path = written / "report.json"
    path.write_text(path.read_text(encoding="utf-8").replace("report@2", "report@1"), encoding="utf-8")
    said = run_directory.replaces(written, model=small()[0].model)
    assert said.sentence.startswith(
        f"{written} holds another run, which this one replaces when it is finished: {path} has sch"
    )


def test_what_is_no_run_is_called_what_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TaylorderError, match=r"is a model, not a run; `taylorder analyze "):
        run_directory.read(tmp_path)
    with pytest.raises(
        TaylorderError, match=r"config\.json is no run, nor a file in one; name what `taylorder analyze"
    ):
        run_directory.read(tmp_path / "config.json")
