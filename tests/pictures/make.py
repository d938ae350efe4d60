"""Make the README's pictures from what ``make demo`` left: ``make pictures``."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from support.browser import Watched, open_browser

VIEWER = ROOT / "jobs" / "patch_viewer.py"
WINDOW = {"width": 1000, "height": 910}


def main() -> None:
    demo = ROOT / "demo"
    shutil.copyfile(demo / "patches.png", HERE / "patches.png")
    with open_browser() as browser:
        report = Watched(browser, viewport=WINDOW)
        report.page.goto((demo / "report" / "index.html").as_uri())
        report.page.locator(".plots").screenshot(path=HERE / "report.png")
        assert report.problems == []
        command = [sys.executable, str(VIEWER), "--port", "0", "--shards", str(demo / "shards")]
        viewer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert viewer.stdout is not None
            found = re.search(r"http://\S+", viewer.stdout.readline())
            assert found, "the viewer did not start"
            page = Watched(browser, viewport=WINDOW)
            page.page.goto(found[0])
            page.page.wait_for_selector("#patches .patch")
            page.page.screenshot(path=HERE / "viewer.png")
            assert page.problems == []
        finally:
            viewer.send_signal(signal.SIGINT)
            viewer.wait()


if __name__ == "__main__":
    main()
