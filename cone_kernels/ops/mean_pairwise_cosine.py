"""Mean pairwise cosine (anisotropy) in O(n·d), never O(n²)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cone_kernels import backends
from cone_kernels.ops.arguments import Array, flatten_batch, float_tensor, like_input, require, traced
from cone_kernels.ops.gradients import refuse_double_backward

_OP = "mean_pairwise_cosine"


def mean_pairwise_cosine(x: Array, *, strict: bool = False, backend: str = "auto") -> Array:
    """The mean cosine over all pairs of distinct rows of `x`, from one read of `x`.

    A = (‖Σu‖² − Σ‖u‖²) / (n(n−1)) with u = x/‖x‖ (Ethayarajh 2019, section 3.2, by the mean-vector identity). Not
    clamped: centred data has A ≈ −1/(n−1). Rows whose norm is zero or not finite are left out of n; `row_moments` says
    how many, and `strict` refuses them.

    Differentiable, once: ∂A/∂x_i = 2/(n(n−1)) · (s − (s·u_i)u_i)/‖x_i‖ with s = Σu, from one more read of `x`, computed
    in float64 and rounded once to the dtype of `x` (Σ‖u‖² = n is constant). Rows left out get the gradient 0, and so do
    all rows where A is NaN, for then no row is in a pair. Autocast changes nothing: `x` is not cast.

    Args:
        x: (..., n, d) float32, float64, bfloat16 or float16; leading dimensions are batch dimensions. Any strides.
        strict: raise where a row would be left out.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        (...) float64, in [-1/(n-1), 1] up to rounding; NaN where fewer than two rows are left, for then there is no
        pair. A NumPy array for a NumPy array.

    Raises:
        TypeError: a dtype or type is not taken.
        ValueError: the shape is not (..., n, d), or `strict` and a row is zero or not finite.
        BackendUnavailable: the backend asked for cannot run here.

    Example:
        >>> mean_pairwise_cosine(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        tensor(0.7071, dtype=torch.float64)
    """
    rows = float_tensor("x", x, 2, "(..., n, d)")
    chosen = backends.resolve(backend, rows.device, _OP)
    if not (strict or traced(rows)):
        alone: Array = like_input(backends.kernel(_OP, chosen)(rows, True)[0], x)
        return alone
    compute = _mean_pairwise_cosine if traced(rows) else _cosine_and_sums
    cosine, left_out, _, _ = compute(rows, chosen.value)
    if strict:
        must = "it must have no row that is zero or not finite where strict=True"
        require(left_out.sum() == 0, "x", lambda: _rows_left_out(left_out), must)
    result: Array = like_input(cosine, x)
    return result


def _rows_left_out(left_out: Tensor) -> str:
    return f"{int(left_out.sum())} rows that are zero or not finite"


def _cosine_and_sums(x: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cosines (...), how many rows were left out (...), and what the gradient needs: s (..., d), n (...)."""
    result: tuple[Tensor, Tensor, Tensor, Tensor] = backends.kernel(_OP, backend)(x, False)
    return result


def cosine_gradient(x: Tensor, unit_sum: Tensor, count: Tensor, grad: Tensor, backend: str) -> Tensor:
    """grad (...) times ∂A/∂x, in the shape (..., n, d) and dtype of `x`, of the A that s (..., d) and n (...) make.

    s and n may be those of more rows than `x` has: then `x` is a part of the rows of A.
    """
    op = "mean_pairwise_cosine_backward"
    backends.resolve(backend, x.device, op)
    flat = flatten_batch(x, 2)
    layers, _, d = flat.shape
    n = count.reshape(layers).double()
    scale = torch.where(n > 1, 2 * grad.reshape(layers).double() / (n * (n - 1)), 0.0)
    gradient: Tensor = backends.kernel(op, backend)(flat, unit_sum.reshape(layers, d), scale)
    return gradient.reshape(x.shape)


_mean_pairwise_cosine = torch.library.custom_op("cone_kernels::mean_pairwise_cosine", _cosine_and_sums, mutates_args=())
_mean_pairwise_cosine_backward = torch.library.custom_op(
    "cone_kernels::mean_pairwise_cosine_backward", cosine_gradient, mutates_args=()
)


@_mean_pairwise_cosine.register_fake
def _(x: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = x.shape[:-2]
    return (
        x.new_empty(batch, dtype=torch.float64),
        x.new_empty(batch, dtype=torch.int64),
        x.new_empty((*batch, x.shape[-1]), dtype=torch.float64),
        x.new_empty(batch, dtype=torch.int64),
    )


@_mean_pairwise_cosine_backward.register_fake
def _(x: Tensor, unit_sum: Tensor, count: Tensor, grad: Tensor, backend: str) -> Tensor:
    return x.new_empty(x.shape)


def _keep_sums(ctx: Any, inputs: tuple[Tensor, str], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    _, left_out, unit_sum, count = output
    ctx.mark_non_differentiable(left_out, unit_sum, count)
    ctx.save_for_backward(inputs[0], unit_sum, count)
    ctx.backend = inputs[1]


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, None]:
    x, unit_sum, count = ctx.saved_tensors
    return _mean_pairwise_cosine_backward(x, unit_sum, count, grad, ctx.backend), None


_mean_pairwise_cosine.register_autograd(_backward, setup_context=_keep_sums)
_mean_pairwise_cosine_backward.register_autograd(refuse_double_backward("mean_pairwise_cosine"))
