"""Mean pairwise cosine (anisotropy) in O(n·d), never O(n²)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cone_kernels import backends
from cone_kernels.ops.arguments import (
    Array,
    differentiated_directly,
    flatten_batch,
    float_tensor,
    like_input,
    read_is_free,
    require,
    traced,
)
from cone_kernels.ops.gradients import refuse_double_backward
from cone_kernels.ops.short_rows import cosine_with_short_rows, find_short_rows, gradient_with_short_rows

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

    Examples:
        >>> mean_pairwise_cosine(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        tensor(0.7071, dtype=torch.float64)
    """
    rows = float_tensor("x", x, 2, "(..., n, d)")
    chosen = backends.resolve(backend, rows.device, _OP)
    if not (strict or traced(rows)):
        alone: Array = like_input(backends.kernel(_OP, chosen)(rows, True)[0], x)
        return alone
    cosine, left_out = _cosine(rows, chosen.value, 0.0)
    if strict:
        must = "it must have no row that is zero or not finite where strict=True"
        require(left_out.sum() == 0, "x", lambda: _rows_left_out(left_out), must)
    result: Array = like_input(cosine, x)
    return result


def cosine_of_normalized(rows: Tensor, eps: float) -> Tensor:
    """A (...) of checked rows (..., n, d) that are divided by max(‖x‖, eps), as `torch.nn.functional.normalize` does.

    Differentiable, as `mean_pairwise_cosine`. Rows that are zero or not finite are left out.
    """
    return _cosine(rows, backends.resolve("auto", rows.device, _OP).value, eps)[0]


def _cosine(rows: Tensor, backend: str, eps: float) -> tuple[Tensor, Tensor]:
    """The cosines (...), and how many rows were left out (...)."""
    compute = _mean_pairwise_cosine if traced(rows) else cosine_and_sums
    if rows.requires_grad and differentiated_directly(rows):
        compute = _CosineDirectly.apply
    cosine, left_out, _, _ = compute(rows, backend, eps)
    return cosine, left_out


def _rows_left_out(left_out: Tensor) -> str:
    return f"{int(left_out.sum())} rows that are zero or not finite"


def cosine_and_sums(x: Tensor, backend: str, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cosines (...), how many rows were left out (...), and what the gradient needs: s (..., d), n (...).

    Rows of x (..., n, d) are divided by max(‖x‖, eps).
    """
    kernel = backends.kernel(_OP, backend)
    short = find_short_rows(x, eps)
    if short is None:
        result: tuple[Tensor, Tensor, Tensor, Tensor] = kernel(x, False)
        return result
    cosine, left_out, unit_sum, count = kernel(x.masked_fill(short[..., None], 0), False)
    cosine, unit_sum, all_rows = cosine_with_short_rows(x, short, eps, cosine, unit_sum, count)
    return cosine, left_out - (all_rows - count), unit_sum, all_rows


def cosine_gradient(x: Tensor, unit_sum: Tensor, count: Tensor, grad: Tensor, backend: str, eps: float = 0.0) -> Tensor:
    """grad (...) times ∂A/∂x, in the shape (..., n, d) and dtype of `x`, of the A that s (..., d) and n (...) make.

    s and n may be those of more rows than `x` has: then `x` is a part of the rows of A. Rows are divided by
    max(‖x‖, eps).
    """
    op = "mean_pairwise_cosine_backward"
    backends.resolve(backend, x.device, op)
    flat = flatten_batch(x, 2)
    layers, _, d = flat.shape
    scale, unit_sum = _scale(count.reshape(layers), grad.reshape(layers)), unit_sum.reshape(layers, d)
    gradient: Tensor = backends.kernel(op, backend)(flat, unit_sum, scale)
    short = find_short_rows(flat, eps)
    if short is not None:
        gradient = gradient_with_short_rows(flat, short, eps, unit_sum, scale, gradient)
    return gradient.reshape(x.shape)


def _scale(count: Tensor, grad: Tensor) -> Tensor:
    """2·grad/(n(n − 1)) float64 of counts n and gradients (L,); 0 where there is no pair."""
    if read_is_free(count) and read_is_free(grad):
        # Of few layers the host is done before torch has begun.
        both = zip(count.tolist(), grad.double().tolist(), strict=True)
        return torch.tensor([2 * g / (n * (n - 1)) if n > 1 else 0.0 for n, g in both], dtype=torch.float64)
    n = count.double()
    return torch.where(n > 1, 2 * grad.double() / (n * (n - 1)), 0.0)


_mean_pairwise_cosine = torch.library.custom_op("cone_kernels::mean_pairwise_cosine", cosine_and_sums, mutates_args=())
_mean_pairwise_cosine_backward = torch.library.custom_op(
    "cone_kernels::mean_pairwise_cosine_backward", cosine_gradient, mutates_args=()
)


@_mean_pairwise_cosine.register_fake
def _(x: Tensor, backend: str, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = x.shape[:-2]
    return (
        x.new_empty(batch, dtype=torch.float64),
        x.new_empty(batch, dtype=torch.int64),
        x.new_empty((*batch, x.shape[-1]), dtype=torch.float64),
        x.new_empty(batch, dtype=torch.int64),
    )


@_mean_pairwise_cosine_backward.register_fake
def _(x: Tensor, unit_sum: Tensor, count: Tensor, grad: Tensor, backend: str, eps: float = 0.0) -> Tensor:
    return x.new_empty(x.shape)


def _keep_sums(ctx: Any, inputs: tuple[Tensor, str, float], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    _, left_out, unit_sum, count = output
    ctx.mark_non_differentiable(left_out, unit_sum, count)
    ctx.save_for_backward(inputs[0], unit_sum, count)
    ctx.backend, ctx.eps = inputs[1:]


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, None, None]:
    x, unit_sum, count = ctx.saved_tensors
    return _mean_pairwise_cosine_backward(x, unit_sum, count, grad, ctx.backend, ctx.eps), None, None


class _CosineDirectly(torch.autograd.Function):
    """`cosine_and_sums` and the gradient, without torch.library in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, backend: str, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        output = cosine_and_sums(x, backend, eps)
        _keep_sums(ctx, (x, backend, eps), output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():  # create_graph=True: a backward of this one is refused
            return _backward(ctx, grad)
        x, unit_sum, count = ctx.saved_tensors
        return cosine_gradient(x, unit_sum, count, grad, ctx.backend, ctx.eps), None, None


_mean_pairwise_cosine.register_autograd(_backward, setup_context=_keep_sums)
_mean_pairwise_cosine_backward.register_autograd(refuse_double_backward("mean_pairwise_cosine"))
