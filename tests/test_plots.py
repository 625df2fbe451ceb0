"""Pictures in docs are those of the committed results, and show every series."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from xml.etree import ElementTree

import pytest

from taylorder.claims.claim import Plot, Series

SCRIPT = Path(__file__).parent.parent / "scripts" / "plots.py"


@pytest.fixture
def plots(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = util.spec_from_file_location("plots_script", SCRIPT)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pictures_show_the_figures_of_the_results(plots, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["plots.py", "--check"])
    plots.main()
    assert "up to date" in capsys.readouterr().out


def test_every_picture_is_on_a_page(plots):
    pages = "".join(path.read_text(encoding="utf-8") for path in (SCRIPT.parents[1] / "docs").glob("*.md"))
    for name in plots.PLOTS:
        assert f"({name}.svg)" in pages, name


def test_a_picture_has_marks_lines_intervals_and_names(plots):
    series = (Series("a < b", (1.0, 10.0), (0.2, 0.8), (0.1, 0.8), (0.3, 0.8)), Series("c", (3.0,), (0.5,)))
    drawn = plots.picture(Plot("Title", "bytes", "share", series, log_x=True))
    root = ElementTree.fromstring(drawn)
    groups = root.findall("{*}g")
    assert [group.find("{*}text").text for group in groups] == ["a < b", "c"]
    assert [len(group.findall("{*}circle")) for group in groups] == [3, 2]  # one is of the legend
    assert [len(group.findall("{*}path")) for group in groups] == [2, 0]  # the line, and the interval of one mark
