"""A corpus → patch shards.

``scoring.py`` is the hot path: text → entropies → patches. ``patch_split.py`` is one worker's loop
around it: read, score, write. ``plan.py`` comes before the first shard, ``job.py`` drives the stage
on Ray.
"""
