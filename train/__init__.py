"""Training on torchtitan: its extension points, filled in for BLT and entropy models."""
