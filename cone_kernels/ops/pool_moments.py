"""Pooling and token-level moments of one or many layers, from one read of the hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic

import torch
from torch import Tensor
from typing_extensions import NamedTuple  # which torch needs; typing's own can be generic from Python 3.11

from cone_kernels import backends
from cone_kernels.ops.arguments import (
    Array,
    ArrayLike,
    as_tensor,
    first_groups,
    groups_of,
    hidden_layers,
    is_array,
    like_input,
    require_device,
    require_groups,
    traced,
)
from cone_kernels.ops.gradients import refused_gradients
from cone_kernels.ops.masked_mean_pool import token_selection
from cone_kernels.sums import SENTENCE_FIELDS, TOKEN_FIELDS, zero_sums


class PoolMoments(NamedTuple, Generic[Array]):
    """What `pool_moments` returns; leading dimensions as the hidden states'."""

    pooled: Array
    """(..., B, D) float32, or float64 for float64 input: the mean of each sentence's tokens."""
    sums: dict[str, Array]
    """The token level's plain sums by name; see `cone_kernels.sums`."""
    status: Array
    """(..., B) uint8: 0, or the sum of 1 (has a zero token), 2 (has one that is not finite), 4 (has no token)."""


def pool_moments(
    hidden_states: Array | Sequence[Array],
    mask: ArrayLike | None = None,
    *,
    cu_seqlens: ArrayLike | None = None,
    sentence_ids: ArrayLike | None = None,
    backend: str = "auto",
) -> PoolMoments[Array]:
    """Pooled vectors, token-level sums and within-sentence sums, from one read of the tokens that count.

    Without a gradient: a backward through any of them raises. `masked_mean_pool` has one.

    Args:
        hidden_states: (..., B, T, D) with `mask`, or packed (..., N, D) with `cu_seqlens`; or a sequence of L layers
            (B, T, D) or (N, D), which then makes the leading dimension. float32, float64, bfloat16 or float16.
        mask: (B, T) bool, or numbers that are 0 or 1: 1 = the token counts. The same for all layers.
        cu_seqlens: (B + 1,) int: the sentences' first rows in a packed tensor, and N.
        sentence_ids: (B,) int64, each sentence's index in the corpus; which decides the jackknife group of its tokens.
            Default 0..B-1.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        PoolMoments(pooled, sums, status). Tokens whose norm is zero or not finite are left out of the sums and counted;
        the pooled vector is the plain mean of all tokens that count, NaN where there is none.

    Raises:
        TypeError: a dtype or type is not taken.
        ValueError: a shape, device or value is not as above, or not exactly one of mask and cu_seqlens is given.
        BackendUnavailable: the backend asked for cannot run here.

    Examples:
        >>> pooled, sums, status = pool_moments(hidden_states, attention_mask)
        >>> sums["count"].sum()  # tokens used
    """
    row_dims, shape = (3, "(..., B, T, D)") if cu_seqlens is None else (2, "(..., N, D)")
    layers = hidden_layers("hidden_states", hidden_states, row_dims, shape)
    if not layers:
        raise ValueError("hidden_states: got no layer; it must have at least one layer")
    mask, cu_seqlens = token_selection(layers[0], mask, cu_seqlens)
    n_sentences = layers[0].shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    device = layers[0].device
    groups = groups_of("sentence_ids", sentence_ids, n_sentences, device)
    if groups is None:
        groups = first_groups(n_sentences, layers[0])
    sums = zero_sums(TOKEN_FIELDS, len(layers), layers[0].shape[-1], device=device)
    pooled, status = pool_moments_(layers, mask, cu_seqlens, groups, list(sums.values()), backend)
    batch: tuple[int, ...] = (len(layers),)
    if is_array(hidden_states):
        batch = tuple(as_tensor("hidden_states", hidden_states).shape[:-row_dims])

    def shaped(tensor: Tensor) -> Any:
        result = refused_gradients("pool_moments", tensor.reshape((*batch, *tensor.shape[1:])), layers)
        return like_input(result, hidden_states)

    return PoolMoments(shaped(pooled), {name: shaped(total) for name, total in sums.items()}, shaped(status))


def pool_moments_(
    layers: Sequence[Tensor],
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    groups: Tensor,
    sums: Sequence[Tensor],
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Adds the tokens of each layer to `sums`.

    Args:
        layers: L tensors (B, T, D) or (N, D), alike in shape, dtype and device.
        mask: (B, T) contiguous bool, or None where the sentences are packed.
        cu_seqlens: (B + 1,) contiguous int64, or None where there is a mask.
        groups: (B,) int64, the jackknife group of each sentence.
        sums: tensors in the order of `TOKEN_FIELDS`.
        backend: as in `pool_moments`.

    Returns:
        The pooled vectors (L, B, D) and the status (L, B) of `PoolMoments`.

    Raises:
        TypeError: the groups are not int64.
        ValueError: a tensor is not on the device of the layers, or there is not a group for each sentence.
        BackendUnavailable: the backend asked for cannot run here.
    """
    chosen = _resolved(layers, mask, cu_seqlens, groups, {"sums": sums}, backend)
    layers = [layer.resolve_neg() for layer in layers]
    add = _pool_moments_ if traced(layers[0]) else _add_tokens
    pooled, status = add(layers, mask, cu_seqlens, groups, list(sums), chosen.value)
    return pooled, status


def pool_and_row_moments_(
    layers: Sequence[Tensor],
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    groups: Tensor,
    token_sums: Sequence[Tensor],
    sentence_sums: Sequence[Tensor],
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Adds the tokens of each layer to `token_sums` and their pooled vectors to `sentence_sums`, where it is one call.

    Args:
        layers, mask, cu_seqlens, groups, backend: as in `pool_moments_`.
        token_sums, sentence_sums: tensors in the order of `TOKEN_FIELDS` and of `SENTENCE_FIELDS`.

    Returns:
        As `pool_moments_`, and the status (L, B) of the pooled vectors: that of `row_moments_`, or 4 for a sentence
        without a token. None, and nothing is added, where the backend has no such call or does not take these layers.

    Raises:
        ValueError, BackendUnavailable: as `pool_moments_`.
    """
    given = {"token_sums": token_sums, "sentence_sums": sentence_sums}
    chosen = _resolved(layers, mask, cu_seqlens, groups, given, backend)
    if chosen is not backends.Backend.CUDA or traced(layers[0]):
        return None
    tokens, sentences = (
        dict(zip(fields, sums, strict=True))
        for fields, sums in ((TOKEN_FIELDS, token_sums), (SENTENCE_FIELDS, sentence_sums))
    )
    layers = [layer.resolve_neg() for layer in layers]
    add = backends.kernel("pool_and_row_moments", chosen)
    added: tuple[Tensor, Tensor, Tensor] | None = add(layers, mask, cu_seqlens, groups, tokens, sentences)
    return added


def _resolved(
    layers: Sequence[Tensor],
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    groups: Tensor,
    sums: dict[str, Sequence[Tensor]],
    backend: str,
) -> backends.Backend:
    """The backend that runs; all tensors are on the device of the layers, and there is a group for each sentence."""
    device = layers[0].device
    n_sentences = layers[0].shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    require_groups(groups, n_sentences, device, "the layers")
    if mask is not None:
        require_device("mask", mask, device, "the layers")
    for name, totals in sums.items():
        if {total.device for total in totals} != {device}:  # names are made only where one has to be told
            for i, total in enumerate(totals):
                require_device(f"{name}[{i}]", total, device, "the layers")
    return backends.resolve(backend, device, "pool_moments")


def _add_tokens(
    layers: Sequence[Tensor],
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    groups: Tensor,
    sums: Sequence[Tensor],
    backend: str,
) -> tuple[Tensor, Tensor]:
    by_name = dict(zip(TOKEN_FIELDS, sums, strict=True))
    pooled, status = backends.kernel("pool_moments", backend)(layers, mask, cu_seqlens, groups, by_name)
    return pooled, status


_pool_moments_ = torch.library.custom_op("cone_kernels::pool_moments_", _add_tokens, mutates_args=("sums",))


@_pool_moments_.register_fake
def _(
    layers: Sequence[Tensor],
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    groups: Tensor,
    sums: Sequence[Tensor],
    backend: str,
) -> tuple[Tensor, Tensor]:
    first, batch = layers[0], (len(layers), groups.shape[0])
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    return first.new_empty((*batch, first.shape[-1]), dtype=dtype), first.new_empty(batch, dtype=torch.uint8)
