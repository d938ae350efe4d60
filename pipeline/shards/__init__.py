"""The format of patch shards: how they are written, found, read and checked.

``format.py`` alone knows the columns; docs/format.md tells other programs.
"""
