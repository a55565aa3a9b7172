"""Comparing directions: |cos| of axes, principal angles of subspaces, and the |cos| of random directions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Where the square of a cosine is above this, its angle is taken from the sine, which is the flatter of the two there.
_SINE_IS_BETTER = 0.5


def axis_cosine(a: Tensor, b: Tensor) -> float:
    """|cos| of two directions; their signs mean nothing.

    Args:
        a, b: (d,) of any length but zero, any floating dtype.

    Returns:
        |a·b| / (‖a‖‖b‖) in float64, from 0 to 1 up to rounding.

    Raises:
        ValueError: the widths differ, or one of the two is zero or not finite.

    Examples:
        >>> axis_cosine(torch.tensor([1.0, 0.0]), torch.tensor([-2.0, 0.0]))
        1.0
    """
    if a.dim() != 1 or b.dim() != 1:
        raise ValueError(f"a, b: got shapes {tuple(a.shape)} and {tuple(b.shape)}; each must be (d,)")
    _same_width("a, b", len(a), len(b))
    units = []
    for name, direction in (("a", a), ("b", b)):
        norm = torch.linalg.vector_norm(direction, dtype=torch.float64)
        if not (bool(norm.isfinite()) and float(norm) > 0):
            raise ValueError(f"{name}: got a vector of length {float(norm)}; it must be of a finite length above 0")
        units.append(direction.double() / norm)
    return abs(float(units[0] @ units[1]))


def principal_angles(a: Tensor, b: Tensor) -> Tensor:
    """The principal angles between two subspaces (Knyazev & Argentati 2002, algorithm 3.1).

    Angles whose cosine is large are taken from sines, so that small angles keep their digits: the arc cosine alone
    loses all below 1e-6 degrees.

    Args:
        a: (k, d) rows that span the one subspace; they need not be orthonormal.
        b: (l, d) rows that span the other.

    Returns:
        (min(k, l),) float64 degrees from 0 to 90, ascending.

    Raises:
        ValueError: the widths differ, there are more rows than columns, or the rows are linearly dependent.

    Examples:
        >>> principal_angles(torch.eye(3)[:1], torch.tensor([[1.0, 1.0, 0.0]]))
        tensor([45.], dtype=torch.float64)
    """
    if a.dim() != 2 or b.dim() != 2:
        raise ValueError(f"a, b: got shapes {tuple(a.shape)} and {tuple(b.shape)}; they must be (k, d) and (l, d)")
    _same_width("a, b", a.shape[1], b.shape[1])
    larger, smaller = (a, b) if len(a) >= len(b) else (b, a)
    p, q = _orthonormal("a, b", larger), _orthonormal("a, b", smaller)  # (d, k), (d, l), k ≥ l
    product = p.mT @ q
    cosines = torch.linalg.svdvals(product)  # descending, so angles ascending
    sines = torch.linalg.svdvals(q - p @ product).flip(0)
    # Rounding can leave a cosine or a sine of 1 + 2e-16.
    radians = torch.where(
        cosines.square() >= _SINE_IS_BETTER, sines.clamp_max(1).arcsin(), cosines.clamp_max(1).arccos()
    )
    return radians.rad2deg().sort().values


def random_cosine_mean(dim: int) -> float:
    """The mean |cos| of two independent directions, uniform on the sphere in `dim` dimensions.

    E = Γ(d/2) / (√π Γ((d+1)/2)), about √(2/(πd)); by E(d+2) = E(d)·d/(d+1), from E(1) = 1 and E(2) = 2/π.

    Raises:
        ValueError: `dim` is below 1.

    Examples:
        >>> round(random_cosine_mean(1024), 4)
        0.0249
    """
    _check_dim(dim)
    first = 1.0 if dim % 2 else 2 / math.pi
    return math.prod((d / (d + 1) for d in range(2 - dim % 2, dim, 2)), start=first)


def random_cosine_p_value(cosine: float, dim: int) -> float:
    """How often two random directions have an |cos| at least this large: P(|cos| ≥ c), with cos² ~ Beta(½, (d−1)/2).

    Args:
        cosine: c, 0 or more; above 1 the answer is 0.
        dim: the number of dimensions d.

    Returns:
        P, to a relative error of about 1e-12.

    Raises:
        ValueError: `dim` is below 1, or `cosine` is negative or NaN.

    Examples:
        >>> round(random_cosine_p_value(0.053, 1024), 3)
        0.09
    """
    from scipy.special import betainc, betaincc

    _check_dim(dim)
    if not cosine >= 0:
        raise ValueError(f"cosine: got {cosine}; it must be an absolute cosine, 0 or more")
    if dim == 1:
        return 1.0 if cosine <= 1 else 0.0
    if cosine >= 1:
        return 0.0
    a, square = (dim - 1) / 2, cosine * cosine
    # Of c² and 1 − c² the smaller one keeps its digits in float64.
    if square > 0.5:
        return float(betainc(a, 0.5, (1 - cosine) * (1 + cosine)))
    below = float(betainc(0.5, a, square))
    # Near 1 scipy's complement loses digits that the difference keeps.
    return 1 - below if below < 0.5 else float(betaincc(0.5, a, square))


def random_cosine_quantile(q: float, dim: int) -> float:
    """The |cos| that two random directions in `dim` dimensions stay below with probability `q`.

    Raises:
        ValueError: `dim` is below 1, or `q` is not between 0 and 1.

    Examples:
        >>> round(random_cosine_quantile(0.95, 1024), 4)
        0.0612
    """
    from scipy.special import betaincinv

    _check_dim(dim)
    if not 0 < q < 1:
        raise ValueError(f"q: got {q}; it must be between 0 and 1")
    return 1.0 if dim == 1 else math.sqrt(betaincinv(0.5, (dim - 1) / 2, q))


def _same_width(names: str, first: int, second: int) -> None:
    if first != second:
        raise ValueError(
            f"{names}: got widths {first} and {second}; it must be one width: directions of different spaces have no "
            "angle. Compare the two models by their projections of the same sentences instead: `functional_cosine` of "
            "`rotation` does"
        )


def _orthonormal(names: str, rows: Tensor) -> Tensor:
    """An orthonormal basis of the rows' span, as columns (d, k), float64."""
    k, d = rows.shape
    if not 1 <= k <= d:
        raise ValueError(f"{names}: got {k} rows of width {d}; it must be from 1 to {d} rows")
    q: Tensor
    q, r = torch.linalg.qr(rows.double().mT)
    pivots = r.diagonal().abs()
    if not bool(pivots.min() > 1e-10 * pivots.max()):
        raise ValueError(f"{names}: got {k} rows that are linearly dependent or not finite; they must span a subspace")
    return q


def _check_dim(dim: int) -> None:
    if dim < 1:
        raise ValueError(f"dim: got {dim}; it must be 1 or more")
