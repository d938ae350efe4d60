"""Weights on disk and on the hub: our own layout, the published ones, and transformers'."""
