"""Make the README's pictures from what ``make demo`` left: ``make pictures``."""

import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlencode

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from playwright.sync_api import Browser
from support.bpe import byte_level
from support.browser import Watched, open_browser
from support.jobs import hear_ctrl_c
from support.texts import topics

from pipeline.viewer.type_tab import EXAMPLES

VIEWER = ROOT / "jobs" / "patch_viewer.py"
WINDOW = {"width": 1000, "height": 910}
COMPARED = {
    "text": EXAMPLES["English text"] + "\nΕλλάδα, déjà vu, 你好世界",
    **{"threshold": 2, "other": 1, "other-threshold": 1.3, "tokenizers": "bpe-4096"},
}


def main() -> None:
    demo = ROOT / "demo"
    shutil.copyfile(demo / "patches.png", HERE / "patches.png")
    with open_browser() as browser:
        report = Watched(browser, viewport=WINDOW)
        report.page.goto((demo / "report" / "index.html").as_uri())
        report.picture(HERE / "report.png", ".beside", ".plots")
        assert report.problems == []
        command = [sys.executable, str(VIEWER), "--port", "0", "--shards", str(demo / "shards")]
        with tempfile.TemporaryDirectory() as folder:
            texts = [text.encode() for _, text in topics()]
            tokenizer = Path(folder) / "bpe-4096.json"
            tokenizer.write_bytes(byte_level(texts, 4096))
            _viewer_pictures(browser, [*command, "--tokenizers", str(tokenizer)])


def _viewer_pictures(browser: Browser, command: list[str]) -> None:
    """The page alone, and its comparison of two thresholds with a tokenizer."""
    viewer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c)
    try:
        assert viewer.stdout is not None
        found = re.search(r"http://\S+", viewer.stdout.readline())
        assert found, "the viewer did not start"
        page = Watched(browser, viewport=WINDOW)
        page.page.goto(f"{found[0]}?tokenizers=")
        page.page.wait_for_selector("#patches .patch")
        page.page.wait_for_selector(".aligned", state="detached")
        page.page.screenshot(path=HERE / "viewer.png")
        page.page.goto(f"{found[0]}?{urlencode(COMPARED)}")
        page.page.wait_for_selector(".aligned .cell:nth-child(3)")
        page.page.wait_for_selector("#other-rule")
        page.page.wait_for_selector("#curve svg >> nth=1")
        page.picture(HERE / "comparison.png", "#counts", "#patches")
        assert page.problems == []
    finally:
        viewer.send_signal(signal.SIGINT)
        viewer.wait()


if __name__ == "__main__":
    main()
