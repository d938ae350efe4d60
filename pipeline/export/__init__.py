"""Shards in other layouts: Parquet, ``datasets``, the hub, the published loader's Arrow files.

``layout.py`` says what a layout is, ``layouts.py`` has one class per layout; ``job.py`` drives the
export; ``export_shard.py`` writes one file.
"""
