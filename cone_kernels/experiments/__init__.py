"""The experiments, one function each; they load what they need when they are called.

Each function has the name of the module that it is in (only `center` is in `centering`), and the module is called in
its place: `experiments.layers(model, corpus)` works, and so does `import cone_kernels.experiments.layers as module`.
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cone_kernels.experiments.axis_result import AxisResult
from cone_kernels.experiments.centering import center
from cone_kernels.experiments.centering_result import CenteringResult
from cone_kernels.experiments.compare_result import CompareResult
from cone_kernels.experiments.layers_result import LayersResult
from cone_kernels.experiments.modality_gap_result import ModalityGapResult
from cone_kernels.experiments.pooling_result import PoolingResult
from cone_kernels.experiments.rotation_result import RotationResult
from cone_kernels.experiments.rows_result import RowsResult
from cone_kernels.experiments.run import RunResult
from cone_kernels.experiments.tokens_result import TokensResult
from cone_kernels.experiments.vectors_result import VectorsResult
from cone_kernels.names import EXPERIMENTS
from cone_kernels.runs.measure import measure
from cone_kernels.runs.measurement import Measurement
from cone_kernels.runs.options import MeasureOptions

if TYPE_CHECKING:
    from cone_kernels.experiments.axis import axis
    from cone_kernels.experiments.compare import compare
    from cone_kernels.experiments.layers import layers
    from cone_kernels.experiments.modality_gap import modality_gap
    from cone_kernels.experiments.pooling import pooling
    from cone_kernels.experiments.rotation import rotation
    from cone_kernels.experiments.rows import rows
    from cone_kernels.experiments.run import run
    from cone_kernels.experiments.tokens import tokens
    from cone_kernels.experiments.vectors import vectors

__all__ = [
    "AxisResult",
    "CenteringResult",
    "CompareResult",
    "LayersResult",
    "MeasureOptions",
    "Measurement",
    "ModalityGapResult",
    "PoolingResult",
    "RotationResult",
    "RowsResult",
    "RunResult",
    "TokensResult",
    "VectorsResult",
    "axis",
    "center",
    "compare",
    "layers",
    "measure",
    "modality_gap",
    "pooling",
    "rotation",
    "rows",
    "run",
    "tokens",
    "vectors",
]


class _CallableModule(ModuleType):
    # A module that is called as the function of its own name, with that function's signature and documentation.

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return _function(self)(*args, **keywords)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(_function(self))

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return inspect.getdoc(_function(self))


def _function(module: ModuleType) -> Any:
    return vars(module)[module.__name__.rpartition(".")[2]]


for _name in ("run", *(name for name, about in EXPERIMENTS.items() if about.function == name)):
    import_module(f"{__name__}.{_name}")
    # Assigning a module's class is how Python's reference manual says to do this (3.3.2.1, module attribute access).
    sys.modules[f"{__name__}.{_name}"].__class__ = _CallableModule
