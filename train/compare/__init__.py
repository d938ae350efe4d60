"""Experiments: models that cost the same, trained on the same bytes, side by side on a page.

:mod:`train.compare.experiment` reads the file of an experiment, :mod:`train.compare.data` makes
shards and tokenizers, :mod:`train.compare.fitting` gives the arms equal costs,
:mod:`train.compare.runs` trains one arm with one seed, :mod:`train.compare.results` gathers what
the runs wrote, and :mod:`train.compare.page` shows it.
"""
