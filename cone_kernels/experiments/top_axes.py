"""How alike the spaces of the top axes of two layers, or of one layer in two states, are; from their sums alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cone_kernels.state.cone_state import Moments
    from cone_kernels.statistics.subspaces import Overlap, TopAxes

# Spaces of at most so many top axes are compared, and so many are known one by one.
_MOST_AXES, _KNOWN_AXES = 4, 8


def top_axes(moments: Moments) -> TopAxes | None:
    """The first axes of one layer; None without second moments, or where nothing varies."""
    from cone_kernels.metrics import covariance
    from cone_kernels.ops.top_eigenvectors import top_eigenvectors
    from cone_kernels.statistics.subspaces import TopAxes

    if "second_moment" not in moments.fields:
        return None
    one = moments.on_cpu()
    matrix = covariance(one)[0]
    if not float(matrix.trace()) > 0:
        return None
    found = top_eigenvectors(covariance=matrix, k=min(_KNOWN_AXES, one.dim))
    return TopAxes(matrix, found.values, found.vectors, int(one.count.sum()))


def axes_overlap(a: TopAxes | None, b: TopAxes | None) -> Overlap | None:
    """Of the spaces of the top axes, with the error of independent samples; that of the same sentences is smaller."""
    from cone_kernels.statistics.subspaces import top_axes_overlap

    return None if a is None or b is None else top_axes_overlap(a, b, _MOST_AXES)
