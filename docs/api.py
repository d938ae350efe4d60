"""Write the API reference: one page per module, from the docstrings.

python docs/api.py [DIRECTORY] [MODULE ...]     # build/api, of model, pipeline and train

pdoc draws the pages, with a search field; they need no server.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from pkgutil import ModuleInfo, walk_packages

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pdoc
from pdoc.render_helpers import to_html

import pipeline

PACKAGES = ("model", "pipeline", "train")
STYLES = Path(__file__).with_name("reference")


def write_reference(directory: Path, modules: tuple[str, ...] = PACKAGES) -> Path:
    """Write the pages of ``modules``, and of those inside of them, and return the first page."""
    for name in pipeline.__all__:  # imported on demand: pdoc looks at what is there
        getattr(pipeline, name)
    pdoc.render.configure(
        docformat="google", footer_text="blt-titan, Apache-2.0", template_directory=STYLES
    )
    pdoc.render.env.filters["to_html"] = _to_html
    inside = [each.name for name in modules for each in _inside(name)]
    pdoc.pdoc(*modules, *inside, output_directory=directory)
    return directory / "index.html"


def _to_html(markdown: str) -> str:
    """HTML of a docstring. The two colons before an example are reStructuredText: one is shown."""
    return to_html(re.sub(r"::(?=\n\s*\n)", ":", markdown))


def _inside(package: str) -> Iterator[ModuleInfo]:
    """The modules of a package, and of those inside of it: pdoc leaves them out where the package
    says what it offers."""
    directory = Path(__file__).resolve().parents[1] / package.replace(".", "/")
    found = walk_packages([str(directory)], f"{package}.")
    return (each for each in found if not each.name.endswith("__main__"))


if __name__ == "__main__":
    given = sys.argv[1:] or ["build/api"]
    print(write_reference(Path(given[0]), tuple(given[1:]) or PACKAGES))
