"""Triton kernels, a module per op, imported when the op first runs."""
