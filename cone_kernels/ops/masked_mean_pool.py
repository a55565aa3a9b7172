"""Masked mean pooling: sentence vectors from hidden states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cone_kernels import backends
from cone_kernels.ops.arguments import (
    Array,
    ArrayLike,
    as_tensor,
    differentiated_directly,
    flatten_batch,
    float_tensor,
    like_input,
    sequence_starts,
    token_mask,
    traced,
)
from cone_kernels.ops.gradients import refuse_double_backward


def masked_mean_pool(
    hidden_states: Array,
    mask: ArrayLike | None = None,
    *,
    cu_seqlens: ArrayLike | None = None,
    backend: str = "auto",
) -> Array:
    """The mean of each sentence's tokens, from one read of the tokens that count.

    Differentiable, once: each of a sentence's T tokens that count gets the gradient grad/T, finite or not, all other
    tokens 0, rounded once to the dtype of `hidden_states`, which are not kept for it. Autocast changes nothing:
    `hidden_states` are not cast.

    Args:
        hidden_states: (..., B, T, D) with `mask`, or packed (..., N, D) with `cu_seqlens`; float32, float64, bfloat16
            or float16; leading dimensions are batch dimensions. Any strides.
        mask: (B, T) bool, or numbers that are 0 or 1: 1 = the token counts. The same for all leading dimensions.
        cu_seqlens: (B + 1,) int: the sentences' first rows in a packed tensor, and N.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        (..., B, D) float32, or float64 for float64 input. NaN for a sentence without a token: it has no mean. A NumPy
        array for a NumPy array.

    Raises:
        TypeError: a dtype or type is not taken.
        ValueError: a shape, device or value is not as above, or not exactly one of mask and cu_seqlens is given.
        BackendUnavailable: the backend asked for cannot run here.

    Examples:
        >>> masked_mean_pool(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]))
        tensor([[2.]])
    """
    row_dims, shape = (3, "(..., B, T, D)") if cu_seqlens is None else (2, "(..., N, D)")
    hidden = float_tensor("hidden_states", hidden_states, row_dims, shape)
    mask, cu_seqlens = token_selection(hidden, mask, cu_seqlens)
    chosen = backends.resolve(backend, hidden.device, "masked_mean_pool")
    compute = _masked_mean_pool if traced(hidden) else pool
    if hidden.requires_grad and differentiated_directly(hidden):
        compute = _PoolDirectly.apply
    result: Array = like_input(compute(hidden, mask, cu_seqlens, chosen.value), hidden_states)
    return result


def token_selection(
    hidden: Tensor, mask: ArrayLike | None, cu_seqlens: ArrayLike | None
) -> tuple[Tensor | None, Tensor | None]:
    """`mask` as bool (B, T) or `cu_seqlens` as int64 (B + 1,), checked against hidden (..., B, T, D) or (..., N, D)."""
    if (mask is None) == (cu_seqlens is None):
        got = "neither" if mask is None else "both"
        raise ValueError(f"mask, cu_seqlens: got {got}; exactly one of them must be given")
    if mask is not None:
        return token_mask("mask", mask, hidden.shape[-3], hidden.shape[-2], hidden.device), None
    assert cu_seqlens is not None
    return None, sequence_starts("cu_seqlens", as_tensor("cu_seqlens", cu_seqlens), hidden.shape[-2])


def pool(hidden: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, backend: str) -> Tensor:
    """The means (..., B, D) of checked hidden states (..., B, T, D) or (..., N, D), without a gradient."""
    row_dims = 3 if mask is not None else 2
    batch = hidden.shape[:-row_dims]
    layers = flatten_batch(hidden, row_dims).unbind(0) if batch else (hidden,)
    if not layers:
        return _empty_pooled(hidden, mask, cu_seqlens)
    pooled: Tensor = backends.kernel("masked_mean_pool", backend)(layers, mask, cu_seqlens)
    return pooled.reshape(*batch, *pooled.shape[1:]) if batch else pooled.squeeze(0)


def pool_gradient(
    grad: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, n_tokens: int, dtype: torch.dtype, backend: str
) -> Tensor:
    """The gradient of hidden states (..., B, T, D) or packed (..., N, D) of `dtype`, for grad (..., B, D).

    `n_tokens` is T, or N where the sentences are packed.
    """
    op = "masked_mean_pool_backward"
    backends.resolve(backend, grad.device, op)
    kernel = backends.kernel(op, backend)
    gradient: Tensor = kernel(flatten_batch(grad, 2), mask, cu_seqlens, n_tokens, dtype)
    return gradient.reshape(_hidden_shape(grad, mask, n_tokens))


def _hidden_shape(grad: Tensor, mask: Tensor | None, n_tokens: int) -> tuple[int, ...]:
    *batch, n_sentences, d = grad.shape
    return (*batch, n_tokens, d) if mask is None else (*batch, n_sentences, n_tokens, d)


_masked_mean_pool = torch.library.custom_op("cone_kernels::masked_mean_pool", pool, mutates_args=())
_masked_mean_pool_backward = torch.library.custom_op(
    "cone_kernels::masked_mean_pool_backward", pool_gradient, mutates_args=()
)


@_masked_mean_pool.register_fake
def _(hidden: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, backend: str) -> Tensor:
    return _empty_pooled(hidden, mask, cu_seqlens)


@_masked_mean_pool_backward.register_fake
def _(
    grad: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, n_tokens: int, dtype: torch.dtype, backend: str
) -> Tensor:
    return grad.new_empty(_hidden_shape(grad, mask, n_tokens), dtype=dtype)


def _keep_selection(ctx: Any, inputs: tuple[Tensor, Tensor | None, Tensor | None, str], output: Tensor) -> None:
    hidden, mask, cu_seqlens, ctx.backend = inputs
    ctx.save_for_backward(mask, cu_seqlens)
    ctx.n_tokens, ctx.dtype = hidden.shape[-2], hidden.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    mask, cu_seqlens = ctx.saved_tensors
    gradient = _masked_mean_pool_backward(grad, mask, cu_seqlens, ctx.n_tokens, ctx.dtype, ctx.backend)
    return gradient, None, None, None


class _PoolDirectly(torch.autograd.Function):
    """`pool` and its gradient, without torch.library in between."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, backend: str) -> Tensor:
        output = pool(hidden, mask, cu_seqlens, backend)
        _keep_selection(ctx, (hidden, mask, cu_seqlens, backend), output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if torch.is_grad_enabled():  # create_graph=True: a backward of this one is refused
            return _backward(ctx, grad)
        mask, cu_seqlens = ctx.saved_tensors
        return pool_gradient(grad, mask, cu_seqlens, ctx.n_tokens, ctx.dtype, ctx.backend), None, None, None


_masked_mean_pool.register_autograd(_backward, setup_context=_keep_selection)
_masked_mean_pool_backward.register_autograd(refuse_double_backward("masked_mean_pool"))


def _empty_pooled(hidden: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    row_dims = 3 if mask is not None else 2
    n_sentences = hidden.shape[-3] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (*hidden.shape[: hidden.dim() - row_dims], n_sentences, hidden.shape[-1])
    return hidden.new_empty(shape, dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)
