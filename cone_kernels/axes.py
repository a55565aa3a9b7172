"""The axes of the cone: top eigenvectors of a state's second moments, and the mean direction."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cone_kernels.metrics import covariance, mean_vector
from cone_kernels.ops.top_eigenvectors import TopEigenvectors, signed_along, top_eigenvectors
from cone_kernels.state.cone_state import Moments
from cone_kernels.sums import symmetric


@dataclass(frozen=True)
class Axes:
    """The three directions that the literature calls the axis of the cone, and |cos| between them; L layers."""

    centered: TopEigenvectors[Tensor]
    """Top eigenvectors of the covariance: the cone axis."""
    uncentered: TopEigenvectors[Tensor]
    """Top eigenvectors of Σxxᵀ/n."""
    mean_direction: Tensor
    """(L, d), a unit vector."""
    centered_mean_cosine: Tensor
    """(L,)"""
    uncentered_mean_cosine: Tensor
    """(L,)"""
    centered_uncentered_cosine: Tensor
    """(L,)"""


def axes(moments: Moments, k: int = 1) -> Axes:
    """Cone axis, uncentred axis and mean direction, each layer; needs `second_moment`.

    An axis points along the mean (dot ≥ 0); where |cos| with the mean is below 1e-3 its largest component is positive.
    All results are on the CPU; see `Moments.on_cpu`.
    """
    moments = moments.on_cpu()
    n = moments.count.sum(-1).double()
    mean = mean_vector(moments)
    direction = mean / torch.linalg.vector_norm(mean, dim=-1, keepdim=True)
    second_moment = symmetric(moments.second_moment)
    centered, uncentered = (
        _along_mean(top_eigenvectors(covariance=matrix, k=k), mean)
        for matrix in (covariance(moments, second_moment), second_moment / n[:, None, None])
    )

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(-1).abs()

    first, other = centered.vectors[:, 0], uncentered.vectors[:, 0]
    return Axes(
        centered,
        uncentered,
        direction,
        cosine(first, direction),
        cosine(other, direction),
        cosine(first, other),
    )


def _along_mean(found: TopEigenvectors[Tensor], mean: Tensor) -> TopEigenvectors[Tensor]:
    return replace(found, vectors=signed_along(found.vectors, found.values, mean))
