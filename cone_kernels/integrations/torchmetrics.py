"""Mean pairwise cosine as a torchmetrics metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cone_kernels import metrics
from cone_kernels.extras import require
from cone_kernels.ops.arguments import float_tensor, groups_of
from cone_kernels.ops.row_moments import row_moments_
from cone_kernels.state.moments import Moments
from cone_kernels.sums import COSINE_FIELDS, jackknife_groups, zero_sums

require("torchmetrics", "train", "MeanPairwiseCosine")

from torchmetrics import Metric  # noqa: E402


class MeanPairwiseCosine(Metric):
    """Mean cosine over distinct pairs of rows, A = (‖s‖² − q)/(n(n−1)), of all rows given to `update`: O(n·d).

    The states are sums, float64 (int64 counts) whatever dtype the module that holds the metric is cast to; processes
    and `merge_state` add them. Rows that are zero or not finite are left out and counted in `n_zero` and
    `n_nonfinite`. A NaN where fewer than two rows were used.

    Args:
        dim: the width d of the rows.
        backend: as in `row_moments`.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: `dim` is below 1.

    Examples:
        >>> metric = MeanPairwiseCosine(dim=384)
        >>> metric.update(embeddings)  # (n, 384)
        >>> metric.compute()
        tensor(0.0552, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0
    plot_legend_name = "Mean pairwise cosine"

    # Sums by group, for the standard error.
    count: Tensor  # (1, 64)
    n_zero: Tensor  # (1, 64)
    n_nonfinite: Tensor  # (1, 64)
    unit_sum: Tensor  # (1, 64, d)
    unit_sq_total: Tensor  # (1, 64)

    def __init__(self, dim: int, *, backend: str = "auto", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if dim < 1:
            raise ValueError(f"dim: got {dim}; it must be 1 or more")
        self.dim = dim
        self.backend = backend
        for name, zero in zero_sums(COSINE_FIELDS, 1, dim).items():
            self.add_state(name, default=zero, dist_reduce_fx="sum")

    def update(self, x: Tensor, sentence_ids: Tensor | None = None) -> None:
        """Adds rows.

        Args:
            x: (n, d) float32, float64, bfloat16 or float16.
            sentence_ids: (n,) int64, the rows' indices in the corpus: they decide the groups of the standard error.
                Default: counting on from the rows seen so far.

        Raises:
            TypeError, ValueError: as `row_moments`; ValueError where d is not this metric's.
        """
        rows = float_tensor("x", x, 2, "(n, d)").detach()
        if rows.dim() != 2 or rows.shape[1] != self.dim:
            raise ValueError(f"x: got shape {tuple(x.shape)}; it must be (n, {self.dim})")
        groups = groups_of("sentence_ids", sentence_ids, len(rows), rows.device)
        if groups is None:
            groups = jackknife_groups(torch.arange(len(rows), device=rows.device) + self._rows_seen())
        row_moments_(rows[None], groups, [getattr(self, name) for name in COSINE_FIELDS], self.backend)

    def forward(self, x: Tensor, sentence_ids: Tensor | None = None) -> Tensor:
        """Adds rows, as `update`, and returns the value of these alone."""
        if sentence_ids is None and isinstance(x, Tensor) and x.dim() > 0:
            # Metric.forward puts the sums aside meanwhile: in `update` the numbers would begin again with each batch.
            sentence_ids = torch.arange(len(x), device=x.device) + self._rows_seen()
        value: Tensor = super().forward(x, sentence_ids)
        return value

    def compute(self) -> Tensor:
        """The mean pairwise cosine, () float64."""
        return metrics.anisotropy(self._moments())[0]

    def stderr(self) -> Tensor:
        """Its grouped-jackknife standard error over this process's rows, () float64; NaN for rows of one group."""
        return metrics.anisotropy_stderr(self._moments())[0]

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """A figure and its axes: of the value, or of several (a curve), as other torchmetrics metrics plot them."""
        return self._plot(val, ax)

    def _rows_seen(self) -> int:
        return int((self.count + self.n_zero + self.n_nonfinite).sum())

    def _moments(self) -> Moments:
        return Moments.of_sums("sentence", (0,), self.dim, {name: getattr(self, name) for name in COSINE_FIELDS})

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        # `.to(torch.bfloat16)` of a module around this one would round the sums; they follow to its device only.
        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(fn(tensor.new_empty(0)).device)

        return super()._apply(moved, *args, **kwargs)
