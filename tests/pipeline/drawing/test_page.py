"""The common parts of pages: where text folds, and colours that everybody can tell apart."""

import re
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from pipeline.drawing import page
from pipeline.drawing.page import folded
from pipeline.drawing.patches_html import DARK_PATCHES, LIGHT_PATCHES
from pipeline.drawing.plots import SERIES_COLOURS

BASE = Path(page.__file__).with_name("base.html.j2").read_text()
SEEN = {
    "every colour": np.eye(3),
    "no red": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "no green": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "no blue": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
"""Linear RGB as people see it who lack a kind of cones (Machado et al. 2009, severity 1)."""
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    values = np.array(to_rgb(colour))
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB, in which distances are how different colours look."""
    x, y, z = np.cbrt(np.maximum(TO_XYZ @ rgb / [0.9505, 1, 1.089], 0.0089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def difference(one: str, two: str) -> float:
    """How different two colours look at least, to anybody."""
    return min(
        float(
            np.linalg.norm(
                lab(np.clip(seen @ linear(one), 0, 1)) - lab(np.clip(seen @ linear(two), 0, 1))
            )
        )
        for seen in map(np.array, SEEN.values())
    )


def contrast(one: str, two: str) -> float:
    dark, light = sorted(float(TO_XYZ[1] @ linear(colour)) for colour in (one, two))
    return (light + 0.05) / (dark + 0.05)


def test_colours_of_plots_can_be_told_apart_by_everybody():
    dark = re.findall(r"--series\d: (#\w{6})", BASE)
    assert len(dark) == len(SERIES_COLOURS)
    for colours, card in ((SERIES_COLOURS, "#ffffff"), (dark, "#1d2128")):
        assert min(contrast(colour, card) for colour in colours) >= 3
        assert min(difference(*pair) for pair in combinations(colours[:4], 2)) > 20
        assert min(difference(*pair) for pair in combinations(colours, 2)) > 12


@pytest.mark.parametrize(
    "css, text", [(LIGHT_PATCHES, "#1f2733"), ("".join(DARK_PATCHES), "#e4e8ef")]
)
def test_a_patch_differs_from_the_next_for_everybody(css, text):
    colours = re.findall(r"\.p\d { background: (#\w{6})", css)
    assert len(colours) == 4
    assert all(difference(*pair) > 8 for pair in pairwise([*colours, colours[0]]))
    assert min(contrast(colour, text) for colour in colours) > 4.5


def test_text_folds_where_it_can_be_read():
    whole = '<span class="whole">{}</span>'.format
    assert folded("/data/a b/") == "/<wbr>data/<wbr>a b/"
    assert folded("s3://bucket/x") == "s3://<wbr>bucket/<wbr>x"
    assert folded("a --shape.dim-local 3") == f"a {whole('--shape')}.<wbr>dim-local 3"
    assert folded("1 (10 %), 9+ (99 %)") == f"{whole('1 (10 %)')}, {whole('9+ (99 %)')}"
    assert folded("</p><b>--x</b>") == f"&lt;/<wbr>p&gt;&lt;b&gt;{whole('--x')}&lt;/<wbr>b&gt;"


def test_a_name_leaves_the_numbers_after_it_alone(tmp_path):
    template = tmp_path / "page.html.j2"
    template.write_text("<title>{{ name }}</title><p>{{ name }}: 12 patches</p>")
    html = page.render_page(template, {}, name="one\u202etwo\u2067\N{HEBREW LETTER ALEF}\u200f")
    name = "one\ufffdtwo\ufffd\N{HEBREW LETTER ALEF}\u200f"
    assert html == f"<title>{name}</title><p>{name}: 12 patches</p>"
    report = Path(page.__file__).parents[1] / "report" / "page.html.j2"
    assert "{{ set.name }}: " not in report.read_text()  # but isolated from what follows
