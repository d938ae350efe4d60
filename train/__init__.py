"""torchtitan's extension points for BLT and the entropy model: ``--module train``."""
