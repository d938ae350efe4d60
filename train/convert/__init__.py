"""A step of the trainer, a mean of steps, or other weights → another layout."""
