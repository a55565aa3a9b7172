"""The experiments, one function each; they load what they need when they are called."""

from __future__ import annotations

from cone_kernels.experiments.axis import AxisResult, axis
from cone_kernels.experiments.layers import LayersResult, layers
from cone_kernels.experiments.measurement import Measurement, MeasureOptions, measure
from cone_kernels.experiments.pooling import PoolingResult, pooling

__all__ = [
    "AxisResult",
    "LayersResult",
    "MeasureOptions",
    "Measurement",
    "PoolingResult",
    "axis",
    "layers",
    "measure",
    "pooling",
]
