"""Measure the cone that transformer sentence vectors crowd into: every layer, one pass, kernels in C++.

Everything below is imported when it is first used, so that `import cone_kernels` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cone_kernels.extras import explained

if TYPE_CHECKING:
    from cone_kernels import axes as axes
    from cone_kernels import backends as backends
    from cone_kernels import corpora as corpora
    from cone_kernels import distributed as distributed
    from cone_kernels import experiments as experiments
    from cone_kernels import integrations as integrations
    from cone_kernels import metrics as metrics
    from cone_kernels import models as models
    from cone_kernels import ops as ops
    from cone_kernels import probe as probe
    from cone_kernels import state as state
    from cone_kernels.backends import Backend as Backend
    from cone_kernels.backends import BackendUnavailable as BackendUnavailable
    from cone_kernels.backends import capabilities as capabilities
    from cone_kernels.centering import Centering as Centering
    from cone_kernels.corpora import Corpus as Corpus
    from cone_kernels.loss import alignment_loss as alignment_loss
    from cone_kernels.loss import isoscore_loss as isoscore_loss
    from cone_kernels.loss import isotropy_loss as isotropy_loss
    from cone_kernels.loss import uniformity_loss as uniformity_loss
    from cone_kernels.models import LoadedModel as LoadedModel
    from cone_kernels.models import load_model as load_model
    from cone_kernels.ops.masked_mean_pool import masked_mean_pool as masked_mean_pool
    from cone_kernels.ops.mean_pairwise_cosine import mean_pairwise_cosine as mean_pairwise_cosine
    from cone_kernels.ops.pool_moments import pool_moments as pool_moments
    from cone_kernels.ops.row_moments import row_moments as row_moments
    from cone_kernels.ops.second_moment import second_moment as second_moment
    from cone_kernels.ops.top_eigenvectors import top_eigenvectors as top_eigenvectors
    from cone_kernels.probe import ConeProbe as ConeProbe
    from cone_kernels.state import ConeState as ConeState
    from cone_kernels.state import Moments as Moments

__version__ = "0.1.0"

# The public modules, and for each further public name the module that has it. Type checkers read the imports above.
_MODULES = (
    "axes",
    "backends",
    "corpora",
    "distributed",
    "experiments",
    "integrations",
    "metrics",
    "models",
    "ops",
    "probe",
    "state",
)
_EXPORTS = {
    "Backend": "backends",
    "BackendUnavailable": "backends",
    "Centering": "centering",
    "ConeProbe": "probe",
    "ConeState": "state",
    "Corpus": "corpora",
    "LoadedModel": "models",
    "Moments": "state",
    "alignment_loss": "loss",
    "capabilities": "backends",
    "isoscore_loss": "loss",
    "isotropy_loss": "loss",
    "load_model": "models",
    "masked_mean_pool": "ops.masked_mean_pool",
    "mean_pairwise_cosine": "ops.mean_pairwise_cosine",
    "pool_moments": "ops.pool_moments",
    "row_moments": "ops.row_moments",
    "second_moment": "ops.second_moment",
    "top_eigenvectors": "ops.top_eigenvectors",
    "uniformity_loss": "loss",
}

__all__ = ["__version__", *_EXPORTS, *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS and name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with explained(f"{__name__}.{name}", "torch"):
        module = importlib.import_module(f"{__name__}.{_EXPORTS.get(name, name)}")
    value = getattr(module, name) if name in _EXPORTS else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
