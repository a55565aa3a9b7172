"""Top eigenvectors of covariances, or of data whose covariance is never formed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from cone_kernels import backends
from cone_kernels.ops.arguments import Array, flatten_batch, float_tensor, like_input, require_integer, traced
from cone_kernels.ops.gradients import refuse_backward

# An axis whose |cos| with the mean is below this takes its sign from its largest component, and so does one whose
# product with the mean, in units of the largest deviation √λ_1, is what rounding leaves of data that was centred.
_MEAN_DECIDES_SIGN, _CENTERED = 1e-3, 1e-12
# By how much of the largest entry the triangles of a covariance may differ: more than 16 bits round.
_SYMMETRIC = 1e-2


@dataclass(frozen=True, eq=False)
class TopEigenvectors(Generic[Array]):
    """What `top_eigenvectors` returns; leading dimensions as the input's, everything float64 unless said."""

    values: Array
    """(..., k) eigenvalues, descending."""
    vectors: Array
    """(..., k, d) unit eigenvectors, one a row."""
    residuals: Array
    """(..., k) ‖C v − λ v‖: the eigenvalue's error is at most this."""
    iterations: Array
    """(...) int64, products with a block of vectors, so reads of `x`; 0 from the reference's direct solver."""
    eigengap: Array
    """(...) λ_k − λ_(k+1); NaN where k = d. Good to three digits of λ_1 or better."""
    converged: Array
    """(...) bool: every residual ≤ tolerance · λ_1."""


def top_eigenvectors(
    x: Array | None = None,
    k: int = 1,
    *,
    covariance: Array | None = None,
    center: bool = True,
    tolerance: float | None = None,
    max_iterations: int = 500,
    backend: str = "auto",
) -> TopEigenvectors[Array]:
    """The k largest eigenvalues and their eigenvectors, from data or from a covariance.

    Block subspace iteration with Rayleigh-Ritz on the blocks kept (block Krylov, Musco & Musco 2015). Data is read once
    for the mean and once an iteration, after a few steps on every 16th row where there are 2048 rows or more. Only as
    many digits as `tolerance` asks for are computed; look at `converged`. No gradient: a backward raises.

    Args:
        x: data (..., n, d) float32, float64, bfloat16 or float16, any strides; leading dimensions are batch dimensions.
            C = Σ(x−m)(x−m)ᵀ/(n−1), or Σxxᵀ/n without `center`; it is never formed. Either this or `covariance`.
        k: how many, 1 to d.
        covariance: (..., d, d) symmetric positive semidefinite, in the same dtypes; both of its triangles are read.
        center: subtract the mean of the rows; for `x` alone.
        tolerance: largest ‖C v − λ v‖/λ_1 that counts as converged. Default 1e-8; for float32, bfloat16 and float16
            data 1e-6, as their products are taken in float32 within a block of rows.
        max_iterations: products with a block of vectors after which an unconverged answer is returned as it is.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        `TopEigenvectors`, NumPy arrays in it for a NumPy array. Sign: from data, a vector points along the mean; where
        |cos| with the mean is below 1e-3, and from a covariance, its component of largest magnitude is positive.

    Raises:
        TypeError: a dtype or type is not taken; `k` is no integer.
        ValueError: a shape, device or value is not as above, not exactly one of `x` and `covariance` is given, `x` has
            too few rows (2, or 1 without `center`), or the input has entries that are not finite.
        BackendUnavailable: the backend asked for cannot run here.

    Examples:
        >>> top_eigenvectors(covariance=torch.diag(torch.tensor([1.0, 3.0, 2.0]))).vectors
        tensor([[0., 1., 0.]], dtype=torch.float64)
    """
    if (x is None) == (covariance is None):
        got = "neither" if x is None else "both"
        raise ValueError(f"x, covariance: got {got}; exactly one of them must be given")
    name, given = ("x", x) if x is not None else ("covariance", covariance)
    assert given is not None
    matrix = float_tensor(name, given, 2, "(..., n, d)" if name == "x" else "(..., d, d)")
    n, d = matrix.shape[-2:]
    if name == "covariance" and n != d:
        raise ValueError(f"covariance: got shape {tuple(matrix.shape)}; it must be (..., d, d)")
    if name == "x" and n < 1 + center:
        raise ValueError(f"x: got {n} rows; it must have at least {1 + center} with center={center}")
    require_integer("k", k)
    if not 1 <= k <= d:
        raise ValueError(f"k: got {k}; it must be from 1 to d = {d}")
    if tolerance is None:
        tolerance = 1e-8 if name == "covariance" or matrix.dtype == torch.float64 else 1e-6
    if not tolerance > 0:
        raise ValueError(f"tolerance: got {tolerance}; it must be above 0")
    if max_iterations < 1:
        raise ValueError(f"max_iterations: got {max_iterations}; it must be at least 1")
    chosen = backends.resolve(backend, matrix.device, "top_eigenvectors")
    compute = _top_eigenvectors if traced(matrix) else _eigenvectors
    found = compute(matrix, name == "covariance", center, k, tolerance, max_iterations, chosen.value)
    return TopEigenvectors(*(like_input(field, given) for field in found))


def _eigenvectors(
    matrix: Tensor, covariance: bool, center: bool, k: int, tolerance: float, max_iterations: int, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `TopEigenvectors`, of checked arguments."""
    flat, batch, d = flatten_batch(matrix, 2), matrix.shape[:-2], matrix.shape[-1]
    values, vectors, residuals, iterations, next_value, converged, mean = backends.kernel("top_eigenvectors", backend)(
        flat, covariance, center, k, tolerance, max_iterations
    )
    if not bool(torch.isfinite(values).all()):
        name = "covariance" if covariance else "x"
        got = "entries that are not finite, or too large for float64 eigenvalues"
        raise ValueError(f"{name}: got {got}; it must have neither")
    if covariance:
        _refuse_asymmetric(flat, backend)
    return (
        values.reshape(*batch, k),
        signed_along(vectors, values, mean).reshape(*batch, k, d),
        residuals.reshape(*batch, k),
        iterations.reshape(batch),
        (values[:, -1] - next_value).reshape(batch),
        converged.reshape(batch),
    )


def _refuse_asymmetric(matrices: Tensor, backend: str) -> None:
    """Refuses matrices (L, d, d) whose triangles differ by more than rounding, as half of one that is not filled."""
    apart, largest = _asymmetry(matrices, backend)
    if apart > _SYMMETRIC * largest:
        raise ValueError(
            f"covariance: got one whose entries (i, j) and (j, i) differ by up to {apart:.3g}; it must be symmetric"
        )


def _asymmetry(matrices: Tensor, backend: str) -> tuple[float, float]:
    """The largest |C − Cᵀ| and the largest |C|; in torch the memory of the matrices passes by five times for it."""
    if backend == backends.Backend.CPU.value:
        found: tuple[float, float] = backends.function("asymmetry", backends.Backend.CPU)(matrices)
        return found
    if matrices.numel() == 0:
        return 0.0, 0.0
    wide = matrices if matrices.dtype == torch.float64 else matrices.float()
    apart, largest = (torch.linalg.vector_norm(of, torch.inf) for of in (wide - wide.mT, wide))
    return float(apart), float(largest)


_top_eigenvectors = torch.library.custom_op("cone_kernels::top_eigenvectors", _eigenvectors, mutates_args=())


@_top_eigenvectors.register_fake
def _(
    matrix: Tensor, covariance: bool, center: bool, k: int, tolerance: float, max_iterations: int, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    *batch, _, d = matrix.shape

    def empty(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return matrix.new_empty((*batch, *shape), dtype=dtype)

    return empty(k), empty(k, d), empty(k), empty(dtype=torch.int64), empty(), empty(dtype=torch.bool)


_top_eigenvectors.register_autograd(refuse_backward("top_eigenvectors"))


def signed_along(vectors: Tensor, values: Tensor, mean: Tensor | None) -> Tensor:
    """Vectors (L, k, d) with the sign that `top_eigenvectors` promises; values (L, k), mean (L, d)."""
    largest = vectors.abs().argmax(-1, keepdim=True)
    deciding = vectors.gather(-1, largest)[..., 0]  # (L, k)
    if mean is not None:
        norm = torch.linalg.vector_norm(mean, dim=-1)  # (L,)
        along = torch.einsum("lkd,ld->lk", vectors, mean)
        least = torch.maximum(_MEAN_DECIDES_SIGN * norm, _CENTERED * values[:, 0].clamp_min(0).sqrt())  # (L,)
        deciding = torch.where(along.abs() >= least[:, None], along, deciding)
    return vectors * torch.where(deciding < 0, -1.0, 1.0).to(vectors.dtype)[..., None]
