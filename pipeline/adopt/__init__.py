"""A corpus with entropies that another program has computed → patch shards, without a model.

Everything but the origin of the entropies is :mod:`pipeline.patch`: splits, shards, the record of
the run, the manifest.
"""
