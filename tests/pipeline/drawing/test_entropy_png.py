"""The picture of a sentence: a PNG file for any text, with a threshold and without."""

import numpy as np
import pytest
from matplotlib import image

from pipeline.drawing.entropy_png import write_entropy_png


@pytest.mark.parametrize("text, threshold", [("It costs $5.\n$x$ → €", 1.0), ("", None)])
def test_a_picture_is_written(tmp_path, text, threshold):
    data = text.encode()
    h_T = np.linspace(0, 3, len(data) + 2).astype(np.float16)
    lengths_P = np.array([1, len(data) + 1])
    path = tmp_path / "patches.png"
    write_entropy_png(path, "a $name$", data, h_T, lengths_P, threshold)
    height, width, _ = image.imread(path).shape
    assert width == 1080 and height == 518
