"""The experiments, one function each; they load what they need when they are called."""

from __future__ import annotations

from cone_kernels.experiments.layers import LayersResult, layers

__all__ = ["LayersResult", "layers"]
