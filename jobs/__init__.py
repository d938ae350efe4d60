"""The commands, one module each: ``python jobs/NAME.py``, or ``blt-titan``."""
