"""Tasks of lm-evaluation-harness that come with this package; ``--harness-data`` names their data.

Each YAML file is a task. Its documents are made by :mod:`pipeline.evaluate.tasks.documents`.
"""
