"""torchtitan's extension points for BLT and the entropy model: ``--module train``."""

MODULE = __name__
"""The value of torchtitan's ``--module``: train, or blt_titan.train where it is installed."""
