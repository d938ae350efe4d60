"""A text's patches and entropies, drawn as HTML, SVG and PNG."""
