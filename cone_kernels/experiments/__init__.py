"""The experiments, one function each; they load what they need when they are called."""

from __future__ import annotations

from cone_kernels.experiments.axis import AxisResult, axis
from cone_kernels.experiments.centering import CenteringResult, center
from cone_kernels.experiments.compare import CompareResult, compare
from cone_kernels.experiments.layers import LayersResult, layers
from cone_kernels.experiments.pooling import PoolingResult, pooling
from cone_kernels.experiments.rotation import RotationResult, rotation
from cone_kernels.experiments.run import RunResult, run
from cone_kernels.runs.measure import measure
from cone_kernels.runs.measurement import Measurement
from cone_kernels.runs.options import MeasureOptions

__all__ = [
    "AxisResult",
    "CenteringResult",
    "CompareResult",
    "LayersResult",
    "MeasureOptions",
    "Measurement",
    "PoolingResult",
    "RotationResult",
    "RunResult",
    "axis",
    "center",
    "compare",
    "layers",
    "measure",
    "pooling",
    "rotation",
    "run",
]
