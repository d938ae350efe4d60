"""The checks that need a GPU (``make gpu-check``), and their tiny form that any machine runs."""
