"""Pearson correlation of streamed variables, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


class Correlation:
    """Correlation of k variables with one other, over rows that stream by.

    Each block is centred on its own means and joined to the rest by the pairwise formula of Chan, Golub & LeVeque
    (1983), so that a small spread keeps its digits next to a large mean. Rows whose `other` is NaN are left out.

    Args:
        variables: k.
        resolution: `other` is taken for constant where its standard deviation is at most this share of its mean, as
            rounding makes it.

    Examples:
        >>> correlation = Correlation(1)
        >>> correlation.add(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([2.0, 3.0, 5.0]))
        >>> correlation.r
        tensor([1.], dtype=torch.float64)
    """

    def __init__(self, variables: int, resolution: float = 0.0) -> None:
        self.count = 0
        self._resolution = resolution
        self._mean = torch.zeros(variables + 1, dtype=torch.float64)
        self._products = torch.zeros(variables + 1, dtype=torch.float64)  # Σ (a − ā)(b − b̄), of b with each
        self._squares = torch.zeros(variables + 1, dtype=torch.float64)  # Σ (a − ā)²

    def add(self, variables: Tensor, other: Tensor) -> None:
        """Adds rows: variables (n, k) and other (n,)."""
        defined = ~other.isnan()
        rows = torch.column_stack([variables, other])[defined].double()  # (n, k + 1), `other` last
        n = len(rows)
        if n == 0:
            return
        # Deviations from the first row are exactly zero for a constant, and stay so in every sum below.
        shifted = rows - rows[0]
        mean = shifted.mean(0)
        centered = shifted - mean
        step = rows[0] + mean - self._mean if self.count else torch.zeros_like(mean)
        weight = self.count * n / (self.count + n)
        self._products += (centered * centered[:, -1:]).sum(0) + weight * step * step[-1]
        self._squares += centered.square().sum(0) + weight * step.square()
        self._mean = self._mean + step * (n / (self.count + n)) if self.count else rows[0] + mean
        self.count += n

    @property
    def r(self) -> Tensor:
        """(k,) float64; NaN where either variable is constant."""
        scale = self._squares[:-1].sqrt() * self._squares[-1].sqrt()
        varies = self._squares[-1] > self.count * (self._resolution * self._mean[-1]).square()
        return torch.where((scale > 0) & varies, self._products[:-1] / scale, torch.nan)
