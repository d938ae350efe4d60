"""The pages of the repository: what they name is there."""

import importlib.util
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from support.jobs import ROOT

PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/**/*.md")]
    if not {"build", "node_modules"} & set(path.relative_to(ROOT).parts)
)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made where repositories are shown."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {text.strip().replace(" ", "-") for text in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / unquote(path) if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def test_messages_of_troubleshooting_are_those_of_the_source():
    source = "".join(
        path.read_text()
        for room in ("model", "pipeline", "train", "jobs")
        for path in (ROOT / room).rglob("*.py")
    )
    # Texts that are spread over lines.
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.+?`) \|", page, re.MULTILINE)))
    assert len(messages) >= 20
    for message in messages:
        for part in re.split(r"…", message):
            words = part.strip(" ,;:()")
            assert words in source, message


def test_the_citation_is_complete():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= citation.keys()
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version and citation["version"] == version[1]
    assert f"## {citation['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_reference_shows_what_is_offered(tmp_path):
    spec = importlib.util.spec_from_file_location("api", ROOT / "docs" / "api.py")
    assert spec and spec.loader
    api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)
    api.write_reference(tmp_path, ("pipeline.shards",))
    page = (tmp_path / "pipeline" / "shards" / "shard_set.html").read_text()
    assert "open_shards" in page and "prefers-color-scheme" in page  # of custom.css
    assert "holds:</p>" in page  # reStructuredText's second colon is not shown
