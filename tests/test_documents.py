"""What the pages say about the code is true: files that they name are there, and so is what they say is in them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ["CONTRIBUTING.md", "docs/architecture.md", "docs/adding-an-architecture.md"]
FILE = re.compile(r"`((?:taylorder|tests|benchmarks|scripts|docs)/[\w./-]*)`")
HOMES = ("taylorder/**/*.py", "tests/*.py", "benchmarks/**/*.py")


def source(path):
    return (ROOT / path).read_text(encoding="utf-8")


def anchors(page):
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", source(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip()).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_are_there(page):
    named = FILE.findall(source(page))
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_walks_name_what_is_in_the_files():
    """A row of a walk is a file and, in backquotes, functions and classes that it has."""
    rows = re.findall(r"^\| `(taylorder/[\w/]+\.py)` \| (.*) \|$", source("docs/architecture.md"), re.MULTILINE)
    assert len(rows) > 20
    absent = [
        (path, name)
        for path, words in rows
        for name in re.findall(r"`(\w+)`", words)
        if not re.search(rf"\b{name}\b", source(path))
    ]
    assert absent == []


def test_nothing_takes_more_than_five_files_to_add():
    rows = re.findall(r"^\| an? .*$", source("docs/architecture.md"), re.MULTILINE)
    assert len(rows) == 4
    assert {len(FILE.findall(row)) for row in rows} == {5}


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", source(page)):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.relative_to(ROOT) if target else page), (target, anchor)


def test_sections_that_docstrings_cite_are_there():
    cited = {
        (page, anchor)
        for home in HOMES
        for path in ROOT.glob(home)
        for page, anchor in re.findall(r"\b(docs/[\w/-]+\.md)#([\w-]+)", path.read_text(encoding="utf-8"))
    }
    assert cited
    assert [(page, anchor) for page, anchor in sorted(cited) if anchor not in anchors(page)] == []


def test_the_rooms_are_told_in_their_order():
    """From the top, and all of them."""
    rooms = re.findall(r"^\| `taylorder/(\w+)(?:/|\.py)` \|", source("docs/architecture.md"), re.MULTILINE)
    there = {path.name for path in (ROOT / "taylorder").iterdir() if (path / "__init__.py").exists()}
    assert set(rooms) == there | {"cli", "errors"}
    heights = {room: height for height, room in enumerate(rooms)}
    for room in there:
        for path in (ROOT / "taylorder" / room).rglob("*.py"):
            imported = re.findall(
                r"^\s*(?:from|import) taylorder\.(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE
            )
            assert {below for below in imported if heights[below] < heights[room]} == set(), path
