"""A corpus → shuffled chunks.

``shuffle.py`` defines the order and explains it; ``stages.py`` are its steps on Ray.
"""
