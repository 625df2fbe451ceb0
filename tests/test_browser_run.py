"""What the page of a run does beside its map: links into it, sheets, buttons, help, tab stops, and no barrier."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest
import synthetic
from browsing import CLAIM, NEEDS_CHROMIUM, complaints, grid, opened, pick, text, texts, window_of
from evaluations import comparison
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from taylorder.evaluation.evaluate import Evaluation
from taylorder.reports import html
from taylorder.reports.claims import ClaimsReport

pytestmark = NEEDS_CHROMIUM

MEASURED = synthetic.analysis(layers=3)
KEEPING = synthetic.keeping_selection(MEASURED)
FOUND = Evaluation(False, (comparison(length=1024, sequences=4),))
PAGES = ("budget.html", "heads.html", "claims.html")


def axe():
    """axe-core, which the package axe-playwright-python carries; None where `make` has not installed it."""
    found = importlib.util.find_spec("axe_playwright_python")
    return None if found is None else (Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    budget = html.render(MEASURED, KEEPING, FOUND, (CLAIM,), folder, synthetic.costs(MEASURED, KEEPING))
    (folder / "budget.html").write_text(budget, "utf-8")
    small = synthetic.analysis(layers=2, heads=6, kv_heads=2, max_order=3)
    (folder / "heads.html").write_text(html.render(small, synthetic.selection(small), FOUND), "utf-8")
    claims = html.render_claims(ClaimsReport(("one",), (CLAIM,)), [Path("a")], folder)
    (folder / "claims.html").write_text(claims, "utf-8")
    return folder


@pytest.fixture
def page(chromium, pages):
    opened(chromium, pages / "budget.html")
    yield chromium
    assert complaints(chromium) == []


def address(driver):
    return driver.execute_script("return location.hash")


def test_a_budget_opens_on_its_tiles_and_the_tokens_that_kv_heads_keep(page):
    tiles = page.find_elements(By.CSS_SELECTOR, ".tiles > div")
    assert [tile.text.splitlines()[0] for tile in tiles] == ["what runs", "KV cache", "loss", "against one window"]
    assert tiles[3].text.splitlines()[1] == "-0.050"
    assert texts(page) == [["32+"] * 3, *[["b", "256", "256"]] * 2]
    assert page.find_element(By.ID, "grid").location["y"] < 900
    pick(page, "view", "bytes")
    assert texts(page)[0] == ["98"] * 3
    pick(page, "view", "runs")
    assert texts(page) == [["P2"] * 3, *[["b", "k", "k"]] * 2]
    assert not page.find_element(By.ID, "threshold").is_displayed(), "kinds are no figures"
    pick(page, "view", "rest")
    assert texts(page)[1] == ["b", "6.0", "3.0"]


def test_a_kv_head_shows_its_attention_and_what_else_it_could_run(page):
    page.find_element(By.ID, "head-2-1").click()
    assert text(page, "detail-title") == "Layer 2 KV head 1"
    rows = [row.text for row in page.find_elements(By.CSS_SELECTOR, "#shares tbody tr:not(.bar-row)")]
    assert rows == ["head 3 25% 53% 15% 7%", "head 4 25% 54% 15% 6%", "head 5 25% 55% 15% 5%"]
    points = page.find_elements(By.CSS_SELECTOR, "#costs-drawn use")
    assert len(points) == 3
    assert len(page.find_elements(By.CSS_SELECTOR, "#costs-drawn .best")) == 1, "the polynomial is not among the best"
    ring = page.find_element(By.CSS_SELECTOR, "#costs-drawn .ring title").get_attribute("textContent")
    assert ring == "64 + 4 + 188 kept keys: 64 KiB, 20%"
    page.find_element(By.ID, "head-1-0").click()
    assert not page.find_element(By.ID, "shares").is_displayed(), "an exact head leaves nothing out"
    assert page.find_elements(By.CSS_SELECTOR, "#costs-drawn .ring") == []


@pytest.mark.parametrize("name", ["budget.html", "heads.html"])
def test_the_address_names_view_and_head_and_opens_them_again(chromium, pages, name):
    opened(chromium, pages / name)
    assert address(chromium) == ""
    pick(chromium, "view", "std")
    chromium.find_element(By.ID, "head-1-1").click()
    assert address(chromium) == "#view=std&head=1.1"
    link = chromium.current_url
    chromium.get("about:blank")
    chromium.get(link)
    assert chromium.find_element(By.ID, "view").get_attribute("value") == "std"
    selected = [cell.place for row in grid(chromium) for cell in row if cell.selected]
    assert selected == [[1, 1]]
    chromium.execute_script("location.hash = 'view=nonsense&head=9.9'")
    assert [cell.place for row in grid(chromium) for cell in row if cell.selected] == [[1, 1]]
    chromium.execute_script("location.hash = 'saved'")
    assert chromium.find_element(By.ID, "view").get_attribute("value") == "std"
    assert complaints(chromium) == []


@pytest.mark.parametrize("name", ["budget.html", "heads.html"])
@pytest.mark.parametrize("width", [400, 768, 1280])
def test_a_click_shows_the_head_where_the_reader_looks(chromium, pages, name, width):
    with window_of(chromium, width):
        opened(chromium, pages / name)
        last = chromium.find_elements(By.CSS_SELECTOR, "#grid tbody tr:last-child td")[1]
        chromium.execute_script("arguments[0].scrollIntoView({block: 'center'})", last)
        last.click()
        shown, cell = chromium.execute_script(
            "const box = (id) => document.getElementById(id).getBoundingClientRect();"
            "return [box('detail-title'), arguments[0].getBoundingClientRect()]",
            last,
        )
        assert 0 <= shown["top"] < shown["bottom"] <= 900, "the title of the detail is in sight"
        if width < 700:
            assert cell["bottom"] <= chromium.find_element(By.ID, "detail").rect["y"] - chromium.execute_script(
                "return scrollY"
            ), "and the sheet does not cover the head"
            close = chromium.find_element(By.ID, "detail-close")
            close.click()
            assert not chromium.find_element(By.ID, "detail").is_displayed()
            assert chromium.switch_to.active_element == last
            last.click()
            ActionChains(chromium).send_keys(Keys.ESCAPE).perform()
            assert not chromium.find_element(By.ID, "detail").is_displayed()
        else:
            assert shown["left"] > cell["right"], "it stands beside the map"
        assert complaints(chromium) == []


def test_commands_can_be_copied(page):
    page.execute_script("window.copied = []; navigator.clipboard.writeText = async (text) => { copied.push(text); }")
    commands = page.find_elements(By.CSS_SELECTOR, "pre code")
    buttons = page.find_elements(By.CLASS_NAME, "copy")
    assert len(buttons) == len(commands) >= 3
    buttons[0].click()
    assert page.execute_script("return copied") == [commands[0].text]
    assert buttons[0].text == "Copied"


def test_figures_can_be_downloaded(page, browser_folder):
    def saved(button, name):
        page.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()
        for _ in range(100):
            if (path := browser_folder / "downloads" / name).exists():
                return path.read_bytes()
            time.sleep(0.1)
        raise AssertionError(f"{name} was not written")

    map_ = saved(page.find_element(By.ID, "save-map"), "tokens-kept.svg").decode()
    assert map_.startswith("<svg")
    assert map_.count("<rect") == 1 + 9
    assert all(f">{words}</text>" in map_ for words in ("tokens kept", "32+", "256", "KV 2"))
    as_svg, as_png = page.find_elements(By.CSS_SELECTOR, "#costs .downloads button")
    drawn = saved(as_svg, "error-against-bytes-layer-1-kv-head-1.svg").decode()
    assert 'id="mark-0"' in drawn, "marks come with it"
    assert "stroke: rgb(" in drawn, "and so does the style"
    assert saved(as_png, "error-against-bytes-layer-1-kv-head-1.png").startswith(b"\x89PNG")


def test_columns_are_explained_by_mouse_and_by_key(chromium, pages):
    opened(chromium, pages / "heads.html")
    button = chromium.find_element(By.CSS_SELECTOR, "[aria-label='What is breaks even at?']")
    chromium.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    words = chromium.find_element(By.ID, button.get_attribute("popovertarget"))
    assert not words.is_displayed()
    ActionChains(chromium).move_to_element(button).perform()
    assert words.is_displayed()
    assert abs(words.rect["y"] - button.rect["y"]) < 120
    ActionChains(chromium).move_to_element(chromium.find_element(By.TAG_NAME, "h1")).perform()
    assert not words.is_displayed()
    button.send_keys(Keys.ENTER)
    assert "From how many tokens on" in words.text
    ActionChains(chromium).send_keys(Keys.ESCAPE).perform()
    assert not words.is_displayed()
    assert complaints(chromium) == []


def test_boxes_are_tab_stops_only_where_they_scroll(chromium, pages):
    stops = """
        const boxes = [...document.querySelectorAll('.scroll, pre, div.tokens')].filter((box) => box.offsetParent);
        return boxes.map((box) => [box.tabIndex === 0,
            box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1])"""
    wait = "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(arguments[0], 50)))"
    seen = set()
    for width in (1280, 400):
        with window_of(chromium, width):
            opened(chromium, pages / "heads.html")
            chromium.execute_async_script(wait)
            found = chromium.execute_script(stops)
            assert all(stop == scrolls for stop, scrolls in found)
            seen |= {(width, stop) for stop, _ in found}
    assert {(1280, False), (400, True)} <= seen


@pytest.mark.skipif(axe() is None, reason="axe-playwright-python is not installed (`make test` installs it)")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_barrier(chromium, pages, name, width, theme):
    features = [{"name": "prefers-color-scheme", "value": theme}]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        with window_of(chromium, width):
            opened(chromium, pages / name)
            chromium.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
            for cell in chromium.find_elements(By.CSS_SELECTOR, "#grid td")[:1]:
                chromium.execute_script("arguments[0].click()", cell)
            chromium.execute_script(axe())
            found = chromium.execute_async_script("""
                const told = (one) => `${one.id}: ${one.nodes.map((node) => node.target.join(' ')).join(', ')}`;
                const rules = {'label-content-name-mismatch': {enabled: true}};
                axe.run(document, {resultTypes: ['violations'], rules}).then((found) =>
                    arguments[0](found.violations.map(told)))""")
            assert found == []
    finally:
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
