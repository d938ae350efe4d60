"""What pages are made of: their style, plots, a text's patches and entropies as HTML, SVG, PNG."""
