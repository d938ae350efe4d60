"""A real browser for tests of pages: headless Chromium, driven by playwright.

``python tests/support/browser.py`` installs one where there is none.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PHONE = {"width": 375, "height": 812}
DESKTOP = {"width": 1280, "height": 900}


def find_chromium() -> str | None:
    """``$CHROMIUM``, one that is installed, or playwright's own."""
    named = [os.environ.get("CHROMIUM"), *map(shutil.which, NAMES)]
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return next((path for path in [*named, own] if path and Path(path).exists()), None)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A running browser."""
    path = find_chromium()
    assert path, "no Chromium: run `make test`, which installs one, or set CHROMIUM to its path"
    with sync_playwright() as playwright:
        # Its sandbox does not work for root, nor in many containers.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page, what it complained of, and which hosts it asked for."""

    def __init__(self, browser: Browser, **context: Any):
        """``context``: of playwright's ``new_page``, as in ``color_scheme="dark"``."""
        self.page: Page = browser.new_page(**{"viewport": DESKTOP, **context})
        self.problems: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", lambda message: self._heard(message.type, message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def _heard(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.problems.append(f"{kind}: {text}")

    def overflow(self) -> int:
        """Pixels that the page is wider than the window: what one would have to scroll sideways."""
        script = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return self.page.evaluate(script)

    def picture(self, path: Path, first: str, last: str) -> None:
        """Write a picture of the page from one element to another below it, in all its width."""
        top, bottom = (self.page.locator(each).first.bounding_box() for each in (first, last))
        width = self.page.evaluate("document.documentElement.clientWidth")
        assert top and bottom
        height = bottom["y"] + bottom["height"] - top["y"] + 8
        clip = {"x": 0, "y": top["y"], "width": width, "height": height}
        self.page.screenshot(path=path, clip=clip, full_page=True)


LAYOUT = """() => {
    const problems = [], box = element => element.getBoundingClientRect();
    const meet = (one, two) => Math.min(one.right, two.right) - Math.max(one.left, two.left) > 2
        && Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top) > 3;
    for (const svg of document.querySelectorAll('.plot svg')) {
        const scale = box(svg).width / svg.viewBox.baseVal.width;
        for (const label of scale ? svg.querySelectorAll('text') : []) {
            const size = parseFloat(getComputedStyle(label).fontSize) * scale;
            if (size < 10) problems.push(`a label of ${size} pixels: ${label.textContent}`);
            if (box(label).right > box(svg).right + 1 || box(label).left < box(svg).left - 1)
                problems.push(`a label is cut off: ${label.textContent}`);
        }
        // Labels that do not lie aslant overlap if their boxes do; a legend hides no data.
        const turn = /rotate\\(([-.0-9]+)/;
        const aslant = label => (turn.exec(label.getAttribute('transform')) || [0, 0])[1] % 90;
        const labels = scale ? [...svg.querySelectorAll('text')].filter(l => !aslant(l)) : [];
        const boxes = labels.map(label => [label, box(label)]);
        for (const [label, one] of boxes)
            for (const [other, two] of boxes)
                if (label !== other && meet(one, two))
                    problems.push(`labels overlap: ${label.textContent}, ${other.textContent}`);
        const plotted = svg.querySelector('#axes_1 > #patch_2');
        for (const label of scale && plotted ? svg.querySelectorAll('[id^=legend] text') : [])
            if (meet(box(label), box(plotted)))
                problems.push(`the legend lies on the plot: ${label.textContent}`);
    }
    for (const card of document.querySelectorAll('section'))
        for (const patch of card.querySelectorAll('.patch'))
            for (const part of patch.getClientRects())
                if (part.right > box(card).right) problems.push(`patch: ${patch.textContent}`);
    for (const wide of document.querySelectorAll('.wide'))
        if (wide.scrollWidth > wide.clientWidth + 1)
            if (!getComputedStyle(wide).background.includes('local'))
                problems.push('a table scrolls and nothing says so');
    for (const whole of document.querySelectorAll('.whole'))
        if (whole.getClientRects().length > 1) problems.push(`broken: ${whole.textContent}`);
    // Cards of plots fill their rows.
    for (const grid of document.querySelectorAll('.plots')) {
        const rows = {};
        for (const card of grid.children) (rows[box(card).top] ??= []).push(box(card).right);
        for (const rights of Object.values(rows))
            if (Math.max(...rights) < box(grid).right - 1) problems.push('a row has a hole');
    }
    return problems;
}"""
"""What is wrong with how a page without scripts is laid out in its window."""


def check_layout(watched: Watched) -> None:
    """Check that labels of plots can be read, nothing is cut off or hidden, and what scrolls is
    marked."""
    problems = watched.page.evaluate(LAYOUT)
    assert not problems, problems


def install() -> None:
    """Install Chromium with the system's packages as root, else with playwright."""
    if find_chromium():
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        commands = [["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "chromium"]]
    else:
        commands = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    for command in commands:
        if subprocess.run(command, check=False).returncode:
            sys.exit("cannot install Chromium: install one, or set CHROMIUM to the path of one")


if __name__ == "__main__":
    install()
