"""Sums over pairs of rows, each of which is the same text by two sources: how alike the twins are, before and after the
best rotation of the one space into the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cone_kernels.sums import GROUPS, jackknife_groups, jackknife_stderr

# The rotation is fitted on three of four folds and judged on the fourth; a fold is every fourth jackknife group, so
# neighbours are in one fold.
FOLDS = 4


@dataclass(frozen=True)
class Rotation:
    """What the best rotation does, judged on rows that it was not fitted on.

    Attributes:
        cosine: the mean cosine of a row with its twin after it.
        stderr: its standard error, from the four folds.
        permuted: the mean cosine of a row with another row's twin after it.
    """

    cosine: float
    stderr: float
    permuted: float


class TwinRows:
    """Takes blocks of twins, in order, and keeps sums alone, and 4 bytes for each row.

    Args:
        width_a, width_b: the widths; a cosine of twins is defined where they are equal.

    Examples:
        >>> twins = TwinRows(384, 384)
        >>> twins.add(a, b, first=0)
        >>> float(twins.cosines.mean()), twins.rotation().cosine
    """

    def __init__(self, width_a: int, width_b: int) -> None:
        self.same_width = width_a == width_b
        self.n_left_out = 0
        self._cosines: list[Tensor] = []
        self._rows: list[Tensor] = []
        self._permuted: list[Tensor] = []
        self._ratios = torch.zeros(3, GROUPS, dtype=torch.float64)  # rows, Σ log ‖b‖/‖a‖, Σ of its square
        self._cosine_sums = torch.zeros(2, GROUPS, dtype=torch.float64)  # rows, Σ cos
        self._products = torch.zeros(FOLDS, width_a, width_b, dtype=torch.float64)  # Σ u vᵀ
        self._sums_a = torch.zeros(FOLDS, width_a, dtype=torch.float64)  # Σ u
        self._sums_b = torch.zeros(FOLDS, width_b, dtype=torch.float64)
        self._counts = torch.zeros(FOLDS, dtype=torch.float64)

    def add(self, a: Tensor, b: Tensor, first: int) -> Tensor:
        """Adds rows (n, width_a) and their twins (n, width_b), the first of which has the number `first`.

        Returns:
            (n,) bool: the pairs that are used; those with a row that is zero or not finite are left out.
        """
        wide_a, wide_b = a.double(), b.double()
        norms = [rows.norm(dim=1) for rows in (wide_a, wide_b)]
        used: Tensor = (norms[0] > 0) & (norms[1] > 0) & norms[0].isfinite() & norms[1].isfinite()
        self.n_left_out += int((~used).sum())
        u, v = (rows[used] / norm[used, None] for rows, norm in zip((wide_a, wide_b), norms, strict=True))
        numbers = used.nonzero()[:, 0] + first
        groups = jackknife_groups(numbers)
        logs = (norms[1][used] / norms[0][used]).log()
        for at, values in enumerate((torch.ones_like(logs), logs, logs.square())):
            self._ratios[at].index_add_(0, groups, values)
        for fold in range(FOLDS):
            chosen = groups % FOLDS == fold
            self._products[fold] += u[chosen].mT @ v[chosen]
            self._sums_a[fold] += u[chosen].sum(0)
            self._sums_b[fold] += v[chosen].sum(0)
            self._counts[fold] += chosen.sum()
        if self.same_width:
            cosines = (u * v).sum(1)
            self._cosine_sums[0].index_add_(0, groups, torch.ones_like(cosines))
            self._cosine_sums[1].index_add_(0, groups, cosines)
            self._cosines.append(cosines.float())
            self._rows.append(numbers)
            # Half a block apart no pair is a twin, nor are its rows neighbours.
            self._permuted.append((u * v.roll(len(v) // 2, 0)).sum(1).float() if len(v) > 1 else cosines[:0].float())
        return used

    @property
    def count(self) -> int:
        """The pairs used."""
        return int(self._counts.sum())

    @property
    def cosines(self) -> Tensor:
        """(n,) float32: the cosine of each row with its twin; none where the widths differ."""
        return torch.cat(self._cosines) if self._cosines else torch.empty(0)

    @property
    def permuted(self) -> Tensor:
        """(n,) float32: the cosine of each row with another row's twin."""
        return torch.cat(self._permuted) if self._permuted else torch.empty(0)

    def cosine(self) -> tuple[float, float]:
        """The mean cosine of twins, and its grouped-jackknife standard error."""
        return _mean_and_error(*self._cosine_sums)

    def log_ratio(self) -> tuple[float, float, float]:
        """Of log(‖b‖/‖a‖) the mean, its standard error, and the standard deviation over rows."""
        mean, stderr = _mean_and_error(self._ratios[0], self._ratios[1])
        n = float(self._ratios[0].sum())
        variance = (float(self._ratios[2].sum()) - n * mean**2) / (n - 1) if n > 1 else math.nan
        return mean, stderr, math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan

    def furthest(self, count: int) -> list[tuple[int, float]]:
        """(number, cosine) of the rows that are least like their twins, the least first."""
        cosines = self.cosines
        found = cosines.topk(min(count, len(cosines)), largest=False)
        rows = torch.cat(self._rows)[found.indices].tolist() if len(cosines) else []
        return list(zip(rows, found.values.tolist(), strict=True))

    def rotation(self) -> Rotation | None:
        """The best rotation (of spaces of two widths the best map that keeps angles of the narrower one), cross-fitted.

        It solves the orthogonal Procrustes problem (Schönemann 1966): the Q that makes Σ u·Q·v largest is U Vᵀ of the
        singular value decomposition of Σ u vᵀ. None where there are too few rows to determine it: fewer in three folds
        than the wider space has dimensions.
        """
        total, counts = self._products.sum(0), self._counts
        fitted_on = float((counts.sum() - counts).min())
        if fitted_on < max(total.shape) or not bool((counts > 0).all()):
            return None
        cosines, permuted = [], []
        for fold in range(FOLDS):
            left, _, right = torch.linalg.svd(total - self._products[fold], full_matrices=False)
            turn = left @ right  # (width_a, width_b)
            n = float(counts[fold])
            cosines.append(float((turn * self._products[fold]).sum()) / n)
            permuted.append(float(self._sums_a[fold] @ turn @ self._sums_b[fold]) / n**2)
        values = torch.tensor(cosines, dtype=torch.float64)
        return Rotation(float(values.mean()), float(values.std()) / math.sqrt(FOLDS), sum(permuted) / FOLDS)


def _mean_and_error(counts: Tensor, sums: Tensor) -> tuple[float, float]:
    """Σ sums / Σ counts of the groups (G,), and its grouped-jackknife standard error."""
    n, total = counts.sum(), sums.sum()
    left_out = (total - sums) / (n - counts)
    return float(total / n), float(jackknife_stderr(left_out[None], counts[None] > 0)[0])
