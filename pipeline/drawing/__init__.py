"""The parts of pages: their style, plots, a text's patches and entropies as HTML, SVG, PNG."""
