"""Chromium for tests of pages: how it is started, and what a reader of a page sees and does."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from taylorder.claims.claim import Claim, FigureTable, Plot, Series

DRIVER = Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--force-prefers-reduced-motion", "--window-size=1280,900",
)  # fmt: skip
NEEDS_CHROMIUM = pytest.mark.skipif(
    not DRIVER.exists(), reason=f"{DRIVER} is not installed (`make browser` installs it)"
)

PLOTS = (
    Plot("A gap", "x", "y", (Series("a", (1.0, 2.0, 3.0, 4.0), (1.0, None, 2.0, 3.0)),)),
    Plot("Intervals", "x", "y", (Series("b", (1.0, 10.0), (0.5, 2.0), (-1.0, 1.0), (1.0, 3.0)),), "points", True, True),
)
CLAIM = Claim(
    "key", "A statement.", "A source", "supported", "A reason.", "A rule.", (),
    (FigureTable("A wide table", tuple(f"column number {place}" for place in range(30)), (tuple(range(30)),)),), PLOTS,
)  # fmt: skip


def started(folder):
    """A browser whose profile and downloads lie in a folder; whoever starts it ends it."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    driver.set_script_timeout(120)
    return driver


def opened(driver, path):
    driver.get(path.as_uri())
    driver.execute_script("try { localStorage.clear() } catch {}")
    driver.get(path.as_uri())


@contextmanager
def window_of(driver, width):
    """A window of that width inside the block."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def complaints(driver):
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def pick(driver, control, value):
    Select(driver.find_element(By.ID, control)).select_by_value(str(value))


def text(driver, identifier):
    return driver.find_element(By.ID, identifier).text


def grid(driver):
    """Rows of cells as they stand on the page."""
    found = driver.execute_script("""
        const read = (cell) => ({
            place: cell.id.split('-').slice(1).map(Number),
            text: cell.lastChild.textContent,
            label: cell.getAttribute('aria-label'),
            dim: cell.classList.contains('dim'),
            selected: cell.getAttribute('aria-selected') === 'true',
            colour: getComputedStyle(cell).backgroundColor,
            gap: parseFloat(getComputedStyle(cell).borderLeftWidth) > 4,
        });
        const rows = [...document.querySelectorAll('#grid tbody tr')];
        return rows.map((row) => [...row.querySelectorAll('td')].map(read))""")
    return [[SimpleNamespace(**cell) for cell in row] for row in found]


def texts(driver):
    return [[cell.text for cell in row] for row in grid(driver)]


def table_rows(driver, identifier):
    return driver.execute_script(
        "const texts = (row) => [...row.children].map((cell) => cell.textContent);"
        f"return [...document.querySelectorAll('#{identifier} tbody tr')].map(texts)"
    )
