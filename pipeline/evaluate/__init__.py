"""Bits per byte of a model on text or shards, and tasks of lm-evaluation-harness.

``likelihood.py`` is the hot path.
"""
