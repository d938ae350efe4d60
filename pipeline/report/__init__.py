"""One page on shard sets, with plots and JSON.

Counts (``set_counts.py``, ``recount.py``) → figures → page and plots.
"""
