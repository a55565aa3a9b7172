"""Measure the cone that transformer sentence vectors crowd into: every layer, one pass, kernels in C++.

Everything below is imported when it is first used, so that `import cone_kernels` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module it lives in.
_EXPORTS = {
    "Backend": "backends",
    "BackendUnavailable": "backends",
    "Centering": "centering",
    "ConeProbe": "probe",
    "ConeState": "moments",
    "Moments": "moments",
    "capabilities": "backends",
    "isotropy_loss": "loss",
    "masked_mean_pool": "ops.masked_mean_pool",
    "mean_pairwise_cosine": "ops.mean_pairwise_cosine",
    "pool_moments": "ops.pool_moments",
    "row_moments": "ops.row_moments",
    "second_moment": "ops.second_moment",
    "top_eigenvectors": "ops.top_eigenvectors",
}
_MODULES = ("backends", "distributed", "experiments", "metrics", "moments", "ops", "probe")

if TYPE_CHECKING:
    from cone_kernels import backends, distributed, experiments, metrics, ops
    from cone_kernels.state import cone_state as moments
    from cone_kernels.probe.cone_probe import cone_probe as probe
    from cone_kernels.backends import Backend, BackendUnavailable, capabilities
    from cone_kernels.centering import Centering
    from cone_kernels.loss import isotropy_loss
    from cone_kernels.state.cone_state import ConeState, Moments
    from cone_kernels.ops.masked_mean_pool import masked_mean_pool
    from cone_kernels.ops.mean_pairwise_cosine import mean_pairwise_cosine
    from cone_kernels.ops.pool_moments import pool_moments
    from cone_kernels.ops.row_moments import row_moments
    from cone_kernels.ops.second_moment import second_moment
    from cone_kernels.ops.top_eigenvectors import top_eigenvectors
    from cone_kernels.probe.cone_probe import ConeProbe

__all__ = [
    "Backend",
    "BackendUnavailable",
    "Centering",
    "ConeProbe",
    "ConeState",
    "Moments",
    "__version__",
    "backends",
    "capabilities",
    "distributed",
    "experiments",
    "isotropy_loss",
    "masked_mean_pool",
    "mean_pairwise_cosine",
    "metrics",
    "moments",
    "ops",
    "pool_moments",
    "probe",
    "row_moments",
    "second_moment",
    "top_eigenvectors",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
