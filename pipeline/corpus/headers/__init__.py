"""What Parquet and Arrow files state of their sizes, read before they are decoded; the limits."""
