"""Byte-level BPE tokenizers: what their tokens are, and the bytes that these stand for."""
