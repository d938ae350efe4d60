"""Sizes that Parquet and Arrow files state, read before they are decoded; the limits."""
