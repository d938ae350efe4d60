"""Writing text: sampling, caches, and models that read only what is new."""
