"""The table of docs/many-nodes.md, as jobs/plan.py prints it.

``python tests/pictures/many_nodes.py`` writes it anew.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "many-nodes.md"
BEGIN, END = "writes the table -->\n", "<!-- end -->"


def parts() -> tuple[str, str, str]:
    """The page before the table, the table, and the page after it."""
    before, table = PAGE.read_text().split(BEGIN)
    table, after = table.split(END)
    return before, table, after


if __name__ == "__main__":
    before, _, after = parts()
    command = [sys.executable, str(ROOT / "jobs" / "plan.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    PAGE.write_text(before + BEGIN + printed + END + after)
