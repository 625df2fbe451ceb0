"""``report.html`` in Chromium, opened from disk: what the script draws, sorts and counts, by mouse and by keyboard."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import synthetic
from browsing import CLAIM, NEEDS_CHROMIUM, complaints, grid, opened, pick, table_rows, text, texts, window_of
from evaluations import comparison
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from taylorder.analysis.alpha_ranks import layer_alpha
from taylorder.evaluation.evaluate import Evaluation
from taylorder.kernels.spec import Exact
from taylorder.reports import html
from taylorder.reports.claims import ClaimsReport
from taylorder.reports.numbers import percent, percent_cell

LAYERS, HEADS, GROUP, ORDERS = 4, 6, 3, 4

pytestmark = NEEDS_CHROMIUM


def error(layer, head, order, expansion):
    """From far below the tolerance to far above what a cell can hold; NaN and infinite ones among them."""
    if (layer, head) == (2, 0):
        return math.nan if expansion == "zero" else math.inf
    if layer == 3:
        return 10.0 ** (head - 2) / order
    return {"zero": 1.3, "centre": 1.1, "mean": 0.9}[expansion] * (0.2 + 0.13 * head) / (order * (1 + layer))


MEASURED = synthetic.analysis(
    LAYERS, HEADS, HEADS // GROUP, error=error, max_order=ORDERS, sliding=lambda layer: layer == 1
)
CHOSEN = synthetic.selection(MEASURED)
ROWS = {
    (layer, row.head, row.order, row.expansion): row
    for layer, module in enumerate(MEASURED.model.modules)
    for row in MEASURED.candidates
    if row.module == module.name
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    wide = synthetic.analysis(3, 32, 8, max_order=8)
    (folder / "small.html").write_text(html.render(MEASURED, CHOSEN, None, (CLAIM,)), "utf-8")
    (folder / "wide.html").write_text(html.render(wide, synthetic.selection(wide), None, (CLAIM,)), "utf-8")
    long = synthetic.analysis(3)
    keeping = synthetic.keeping_selection(long)
    found, costs = Evaluation(False, (comparison(length=1024, sequences=4),)), synthetic.costs(long, keeping)
    (folder / "kept.html").write_text(html.render(long, keeping, found, None, folder, costs), "utf-8")
    claims = ClaimsReport(("one", "another"), (CLAIM,))
    (folder / "claims.html").write_text(html.render_claims(claims, [Path("a b"), Path("c")], folder), "utf-8")
    return folder


@pytest.fixture
def page(chromium, files):
    """The small report, freshly opened; whatever the browser complains about fails the test."""
    opened(chromium, files / "small.html")
    yield chromium
    assert complaints(chromium) == []


def errors(order, expansion):
    return [[ROWS[layer, head, order, expansion].relative_l2 for head in range(HEADS)] for layer in range(LAYERS)]


def error_text(value):
    return percent_cell(value) + ("*" if value <= CHOSEN.tolerance else "")


def count_of(low, limit):
    return f"{low} of 24 heads {'is' if low == 1 else 'are'} at or below {limit}."


def drag(driver, value):
    driver.execute_script(
        "const slider = document.getElementById('threshold'); slider.value = arguments[0];"
        "slider.dispatchEvent(new Event('input'))",
        value,
    )


def test_the_log_that_these_tests_rely_on_is_kept(chromium, files):
    opened(chromium, files / "small.html")
    assert complaints(chromium) == []
    chromium.execute_script("console.warn('a probe')")
    assert "a probe" in complaints(chromium)[0]


def test_nothing_is_fetched(page):
    assert page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)") == []


@pytest.mark.parametrize(("order", "expansion"), [(3, "mean"), (1, "zero"), (4, "centre")])
def test_errors_are_those_measured(page, order, expansion):
    pick(page, "order", order)
    pick(page, "expansion", expansion)
    cells = grid(page)
    expected = errors(order, expansion)
    assert [[cell.text for cell in row] for row in cells] == [[error_text(value) for value in row] for row in expected]
    for row, values in zip(cells, expected, strict=True):
        for cell, value in zip(row, values, strict=True):
            layer, head = cell.place
            assert cell.label == f"{cell.text}: layer {layer} head {head}, {percent(value, 3)}"
    worst, best = cells[3][5].colour, cells[3][0].colour
    assert worst == "rgb(68, 1, 84)"  # clipped to the dark end
    assert best == "rgb(253, 231, 37)"  # within the tolerance


def test_every_view_shows_its_figure(page):
    pick(page, "view", "order")
    chosen = texts(page)
    marks = {"tolerance": "·", "group": "g", "sliding": "s", "cost": "c"}
    decided = [
        marks[head.choice.reason] if isinstance(head.choice.spec.far, Exact) else str(head.choice.spec.far.order)
        for head in CHOSEN.heads
    ]
    assert [cell for row in chosen for cell in row] == decided
    assert len(set(decided)) > 2
    assert "s: exact: sliding-window layer (~), its cache is constant already (6 heads)" in text(page, "legend")

    pick(page, "view", "needed")
    needed = ["–" if head.needed_order is None else str(head.needed_order) for head in CHOSEN.heads]
    assert [cell for row in texts(page) for cell in row] == needed

    pick(page, "view", "alpha")
    for projection in ("qk", "q", "k", "v", "o"):
        pick(page, "projection", projection)
        for layer, row in enumerate(texts(page)):
            assert set(row) == {alpha_text(MEASURED.model.modules[layer].name, projection)}
    assert "all heads of a row show the same figure" in text(page, "explanation")

    pick(page, "view", "std")
    expected = [[f"{ROWS[layer, head, 1, 'zero'].score_std:.1f}" for head in range(HEADS)] for layer in range(LAYERS)]
    assert texts(page) == expected


def test_keys_that_are_kept_are_a_view_and_drawn_over_a_text(chromium, files):
    opened(chromium, files / "kept.html")
    assert texts(chromium) == [["32+"] * 3, *[["b", "256", "256"]] * 2]
    drawn = chromium.find_elements(By.CSS_SELECTOR, "div.tokens")
    assert [each.is_displayed() for each in drawn] == [True, False, False, False]
    spans = [drawn[0].find_element(By.CLASS_NAME, kind) for kind in ("sink", "window", "kept", "far")]
    assert len({span.value_of_css_property("background-color") for span in spans}) == 4
    assert complaints(chromium) == []


def alpha_text(module, projection):
    if projection == "qk":
        return f"{layer_alpha(MEASURED.spectral, module):.2f}"
    row = next(each for each in MEASURED.spectral if (each.module, each.projection) == (module, projection))
    if row.alpha is None:
        return {"failed": "failed", "unavailable": "-"}[row.status]
    return f"{row.alpha:.2f}{'?' if row.alpha_high - row.alpha_low > 0.5 else ''}"


def test_controls_belong_to_their_view(page):
    def shown():
        return [name for name in ("order", "expansion", "projection") if page.find_element(By.ID, name).is_displayed()]

    assert shown() == ["order", "expansion"]
    pick(page, "view", "alpha")
    assert shown() == ["projection"]


def test_layers_and_heads_can_be_sorted(page):
    assert [cell.gap for cell in grid(page)[0]] == [False, False, False, True, False, False]
    pick(page, "rows", "mean")
    finite = [[value for value in row if math.isfinite(value)] for row in errors(3, "mean")]
    means = [sum(row) / len(row) for row in finite]
    expected = sorted(range(LAYERS), key=lambda layer: means[layer])
    assert expected != sorted(expected)
    assert [row[0].place[0] for row in grid(page)] == expected
    pick(page, "columns", "value")
    by_value = grid(page)
    for row, layer in zip(by_value, expected, strict=True):
        values = errors(3, "mean")[layer]
        assert [cell.place[1] for cell in row] == sorted(range(HEADS), key=lambda head: values[head])
        assert not any(cell.gap for cell in row)
    assert [cell.place[1] for cell in by_value[expected.index(2)]] == [1, 2, 3, 4, 5, 0]
    pick(page, "rows", "depth")
    pick(page, "columns", "number")
    assert [cell.place for row in grid(page) for cell in row] == [
        [layer, head] for layer in range(LAYERS) for head in range(HEADS)
    ]


def test_the_threshold_dims_and_counts(page):
    assert text(page, "count") == "No threshold: all 24 heads are shown."
    assert not any(cell.dim for row in grid(page) for cell in row)
    seen = set()
    values = {(layer, head): errors(3, "mean")[layer][head] for layer in range(LAYERS) for head in range(HEADS)}
    for place in (20, 90, 140):
        drag(page, place)
        limit = float(page.find_element(By.ID, "count").get_attribute("data-threshold"))
        low = sum(value <= limit for value in values.values())
        assert text(page, "count") == count_of(low, f"{percent(limit)} at order 3, expansion mean")
        assert {tuple(cell.place) for row in grid(page) for cell in row if cell.dim} == {
            place for place, value in values.items() if not value <= limit
        }
        seen.add(low)
    assert len(seen) == 3
    page.find_element(By.ID, "tolerance").click()
    low = sum(value <= CHOSEN.tolerance for value in values.values())
    assert text(page, "count") == count_of(low, "7% at order 3, expansion mean")
    pick(page, "order", 4)
    low = sum(value <= CHOSEN.tolerance for row in errors(4, "mean") for value in row)
    assert text(page, "count") == count_of(low, "7% at order 4, expansion mean")


def test_thresholds_of_orders_do_not_count_heads_without_one(page):
    pick(page, "view", "needed")
    slider = page.find_element(By.ID, "threshold")
    slider.send_keys(Keys.HOME)
    low = sum(head.needed_order == 1 for head in CHOSEN.heads)
    assert text(page, "count") == count_of(low, "order 1")
    assert slider.get_attribute("aria-valuetext") == "order 1"
    slider.send_keys(Keys.END)
    assert text(page, "count") == "No threshold: all 24 heads are shown."


def test_a_head_is_selected_by_keyboard_alone(page):
    active = "return document.activeElement.getAttribute('role')"
    keys = ActionChains(page)
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert page.execute_script("return document.activeElement.className") == "skip"
    keys.send_keys(Keys.ENTER).perform()
    for _ in range(12):
        ActionChains(page).send_keys(Keys.TAB).perform()
        if page.execute_script(active) == "gridcell":
            break
    assert page.execute_script("return document.activeElement.id") == "head-{}-{}".format(*start())
    ActionChains(page).key_down(Keys.CONTROL).send_keys(Keys.HOME).key_up(Keys.CONTROL).perform()
    ActionChains(page).send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.END, Keys.ARROW_LEFT).perform()
    assert page.execute_script("return document.activeElement.id") == "head-2-4"
    content, shadow = page.execute_script("""
        const ring = getComputedStyle(document.activeElement, '::after');
        return [ring.content, ring.boxShadow]""")
    assert content == '""'
    assert "3px inset" in shadow  # that of the selected head is 2px wide
    assert "layer 2 head 4, KV head 1" in text(page, "readout")
    before = text(page, "detail-title")
    ActionChains(page).send_keys(Keys.ENTER).perform()
    assert before != text(page, "detail-title") == "Layer 2 head 4"
    assert text(page, "curves").splitlines()[0] == "Error by order: layer 2 head 4"
    assert [cell.place for row in grid(page) for cell in row if cell.selected] == [[2, 4]]
    assert text(page, "selected") == "Layer 2 head 4 is shown in detail."
    ActionChains(page).send_keys(Keys.ARROW_UP, " ").perform()
    assert text(page, "detail-title") == "Layer 1 head 4"
    assert "in a sliding window of 512 tokens" in text(page, "detail-place")
    ActionChains(page).send_keys(Keys.TAB).perform()
    assert page.execute_script(active) != "gridcell"  # the grid is one stop


def start():
    open_heads = [head for head in CHOSEN.heads if head.best is not None and head.module != "model.layers.1.self_attn"]
    best = min(open_heads, key=lambda head: head.best.relative_l2)
    return int(best.module.split(".")[2]), best.head


def test_the_detail_of_a_head_has_its_figures(page):
    page.find_element(By.ID, "head-3-1").click()
    cells = table_rows(page, "detail-table")
    assert len(cells) == ORDERS
    for order, row in enumerate(cells, start=1):
        found = [ROWS[3, 1, order, expansion] for expansion in ("zero", "centre", "mean")]
        plain, raw = [percent(each.relative_l2) for each in found], [percent(each.raw_relative_l2) for each in found]
        assert row == [
            str(order),
            *(one if one == other else f"{one} ({other})" for one, other in zip(plain, raw, strict=True)),
            *(percent(each.nonpositive_share) for each in found),
            percent(found[0].gaussian_prediction),
        ]
    heights = page.execute_script("""
        const series = [...document.querySelectorAll('#curves-drawn > [class^=series]')];
        return series.map((each) => [...each.querySelectorAll('use')].map((mark) => Number(mark.getAttribute('y'))))""")
    assert [len(line) for line in heights] == [4, 4, 4, 4]  # three expansions, and the near field's preview
    assert len(page.find_elements(By.CSS_SELECTOR, "#curves-drawn .curve")) == 4 * 3
    assert all(line == sorted(line) for line in heights)  # errors fall with the order, so the curves go down
    assert "tolerance 7%" in text(page, "curves")
    page.find_element(By.ID, "head-2-0").click()
    assert "Without 16 points that have no figure on these axes." in text(page, "curves")


@pytest.mark.parametrize("name", ["small.html", "claims.html"])
def test_plots_of_claims(chromium, files, name):
    opened(chromium, files / name)
    page = chromium
    plots = page.find_elements(By.CSS_SELECTOR, ".plots figure")
    assert [plot.text.splitlines()[0] for plot in plots] == ["A gap", "Intervals"]
    assert len(plots[0].find_elements(By.CSS_SELECTOR, ".chart use")) == 3
    assert len(plots[0].find_elements(By.CSS_SELECTOR, ".chart .curve")) == 1
    assert "Without 1 point that has no figure" in plots[0].text
    assert len(plots[1].find_elements(By.CSS_SELECTOR, ".chart .whisker")) == 2
    assert plots[1].find_elements(By.CSS_SELECTOR, ".curve") == []
    details = page.find_element(By.CSS_SELECTOR, ".claim details")
    assert not details.find_element(By.TAG_NAME, "table").is_displayed()
    details.find_element(By.TAG_NAME, "summary").click()
    assert details.find_element(By.TAG_NAME, "table").is_displayed()
    assert complaints(page) == []


def test_plots_keep_the_size_of_their_letters_whatever_their_width(chromium, files):
    opened(chromium, files / "claims.html")

    def drawn():
        letters = chromium.find_elements(By.CSS_SELECTOR, ".plots .chart text")
        drawings = chromium.find_elements(By.CSS_SELECTOR, ".plots .chart")
        return [each.size["height"] for each in letters], drawings

    before, _ = drawn()
    with window_of(chromium, 900):
        beside, (one, other) = drawn()
        assert one.location["y"] == other.location["y"]
        assert beside == pytest.approx(before, abs=0.01)
    with window_of(chromium, 420):
        below, (one, other) = drawn()
        assert one.location["y"] < other.location["y"]
        assert below == pytest.approx(before, abs=0.01)


def test_the_table_of_figures_is_made_when_it_is_opened(page):
    assert table_rows(page, "all-numbers") == []
    page.find_element(By.CSS_SELECTOR, "#table summary").click()
    for expansion in ("mean", "zero"):
        pick(page, "table-expansion", expansion)
        found = table_rows(page, "all-numbers")
        assert len(found) == LAYERS * HEADS
        for row, head in zip(found, CHOSEN.heads, strict=True):
            layer = int(head.module.split(".")[2])
            assert row[:3] == [str(layer), str(head.head), str(head.kv_head)]
            assert row[5 : 5 + ORDERS] == [
                percent(ROWS[layer, head.head, order, expansion].relative_l2, 3) for order in range(1, ORDERS + 1)
            ]
    titles = page.find_elements(By.CSS_SELECTOR, "#all-numbers thead th[scope=col]")
    assert [title.text for title in titles][:6] == ["layer", "head", "KV head", "chosen", "needed", "order 1"]


def test_the_theme_can_be_switched_and_is_kept(page):
    def background():
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")

    button = page.find_element(By.ID, "theme")
    found = {}
    for _ in range(3):
        found[button.text] = background()
        button.click()
    assert list(found) == ["Theme: automatic", "Theme: light", "Theme: dark"]
    assert button.text == "Theme: automatic"
    assert found["Theme: light"] == found["Theme: automatic"] != found["Theme: dark"]
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    followed = background()
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert followed == found["Theme: dark"]
    assert background() == found["Theme: light"]
    button.click()
    button.click()
    page.refresh()
    assert text(page, "theme") == "Theme: dark"
    assert background() == found["Theme: dark"]


@pytest.mark.parametrize(("name", "place"), [("small.html", "#curves"), ("claims.html", ".plots")])
def test_charts_follow_the_width_of_the_window(chromium, files, name, place):
    opened(chromium, files / name)

    def drawn():
        return chromium.find_element(By.CSS_SELECTOR, f"{place} .chart").size["width"]

    before = drawn()
    with window_of(chromium, 420):
        chromium.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        assert drawn() < before
    assert complaints(chromium) == []


def test_a_page_of_claims_alone_has_its_theme(chromium, files):
    opened(chromium, files / "claims.html")
    assert chromium.find_element(By.TAG_NAME, "h1").text == "one, another"
    button = chromium.find_element(By.ID, "theme")
    button.click()
    assert button.text == "Theme: light"


@pytest.mark.parametrize("width", [1280, 420])
@pytest.mark.parametrize("name", ["small.html", "wide.html", "kept.html", "claims.html"])
def test_the_page_does_not_scroll_sideways(chromium, files, name, width):
    with window_of(chromium, width):
        opened(chromium, files / name)
        chromium.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
        total, visible, drawing = chromium.execute_script("""
            const root = document.documentElement;
            const charts = [...document.querySelectorAll('.chart')];
            const ends = charts.map((each) => each.getBoundingClientRect().right);
            return [root.scrollWidth, root.clientWidth, Math.max(...ends)]""")
        assert width - 20 <= visible <= width
        assert total <= visible
        assert drawing <= visible
        assert complaints(chromium) == []
