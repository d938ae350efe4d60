"""Kernels of our own for GPUs, in Triton, each beside the plain PyTorch that it equals."""
