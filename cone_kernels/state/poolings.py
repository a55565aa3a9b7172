"""The poolings: how the vector of a sentence is made of its tokens' vectors.

| name | the sentence's vector |
|---|---|
| mean | the mean of the tokens under the mask |
| mean_without_special | the mean of those that the tokenizer did not add ([CLS], [SEP], <s>, ...) |
| cls | the first token under the mask |
| last | the last one |
| max | the largest value in each dimension |
| weighted_mean | Σ i·x_i / Σ i over the tokens i = 1..T under the mask (Muennighoff 2022, SGPT, equation 2) |
| drawn_token | one token of those that the tokenizer did not add, drawn by the sentence's id (Ethayarajh 2019) |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cone_kernels.names import pooling_names
from cone_kernels.ops.arguments import float_tensor
from cone_kernels.ops.masked_mean_pool import masked_mean_pool
from cone_kernels.state.sentence_batch import SentenceBatch, TokenRows


def pool(
    hidden: Tensor,
    pooling: str,
    mask: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    special: Tensor | None = None,
) -> Tensor:
    """The sentence vectors of one layer under a pooling.

    For drawn_token the ids of the sentences are 0 to B - 1.

    Args:
        hidden: (B, T, D) with `mask`, or packed (N, D) with `cu_seqlens`; float32, float64, bfloat16 or float16.
        pooling: one of `cone_kernels.names.POOLINGS`.
        mask: (B, T): 1 = the token counts; padding may be on either side.
        cu_seqlens: (B + 1,): first rows of the packed sentences, and N.
        special: (B, T) or (N,): 1 = a token that the tokenizer adds; for mean_without_special and drawn_token.

    Returns:
        (B, D) float32, or float64 for float64 input; NaN for a sentence without a token that counts for the pooling.

    Raises:
        TypeError, ValueError: as `masked_mean_pool`; ValueError for an unknown pooling, or where `special` is missing.

    Examples:
        >>> pool(torch.tensor([[[1.0], [3.0], [9.0]]]), "last", torch.tensor([[1, 1, 0]]))
        tensor([[3.]])
    """
    (name,) = pooling_names([pooling])
    refuse_missing_special([name], special)
    row_dims, shape = (3, "(B, T, D)") if cu_seqlens is None else (2, "(N, D)")
    if float_tensor("hidden", hidden, row_dims, shape).dim() != row_dims:
        raise ValueError(f"hidden: got shape {tuple(hidden.shape)}; it must be {shape}")
    if name == "mean":
        mean: Tensor = masked_mean_pool(hidden, mask, cu_seqlens=cu_seqlens)
        return mean
    # Ids, which nothing is made of here, are made where to check them waits for no device.
    given = mask if cu_seqlens is None else cu_seqlens[1:]
    ids = None if given is None else torch.arange(len(given), device="cpu")
    batch = SentenceBatch.of(hidden, mask, cu_seqlens, ids, special=special)
    return pool_layers([name], [hidden], batch)[name][0]


def needs_special(poolings: Iterable[str]) -> bool:
    """Whether one of the poolings has to know which tokens the tokenizer added."""
    return any(name in _POOLERS and _POOLERS[name].without_special for name in poolings)


def refuse_missing_special(poolings: Iterable[str], special: Tensor | None) -> None:
    """Raises ValueError where a pooling has to know the special tokens and is not told."""
    needing = [name for name in poolings if needs_special([name])]
    if special is None and needing:
        raise ValueError(
            f"special: got None; it must be a mask of the special tokens for the pooling {needing[0]}, as tokenizers "
            "give it with return_special_tokens_mask=True"
        )


def rows_of(pooling: str, batch: SentenceBatch) -> TokenRows:
    """The tokens that the vectors of a pooling are made of."""
    return batch.plain_tokens if needs_special([pooling]) else batch.tokens


def pool_layers(poolings: Sequence[str], layers: Sequence[Tensor], batch: SentenceBatch) -> dict[str, Tensor]:
    """The vectors (L, B, D) of L layers (B, T, D) or (N, D) by pooling, any but mean; arguments as checked above."""
    if not poolings:
        return {}
    pooled = [_pool_layer(poolings, hidden.detach(), batch) for hidden in layers]
    return {name: torch.stack([of_layer[name] for of_layer in pooled]) for name in poolings}


def _pool_layer(poolings: Sequence[str], hidden: Tensor, batch: SentenceBatch) -> dict[str, Tensor]:
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    flat = hidden.reshape(-1, hidden.shape[-1])  # (B * T or N, D)
    # 16-bit tokens are widened once for all that is summed; to pick one or the largest is exact in any type.
    summable = flat.to(dtype) if any(_POOLERS[name].sums for name in poolings) else flat
    pooled = {}
    for name in poolings:
        pooler, tokens = _POOLERS[name], rows_of(name, batch)
        vectors = pooler.vectors(summable if pooler.sums else flat, tokens).to(dtype)
        pooled[name] = vectors if tokens.empty is None else vectors.masked_fill(tokens.empty[:, None], torch.nan)
    return pooled


def _first(flat: Tensor, tokens: TokenRows) -> Tensor:
    return _picked(flat, tokens, tokens.starts[:-1])


def _last(flat: Tensor, tokens: TokenRows) -> Tensor:
    return _picked(flat, tokens, tokens.starts[1:] - 1)


def _drawn(flat: Tensor, tokens: TokenRows) -> Tensor:
    return _picked(flat, tokens, tokens.starts[:-1] + drawn_positions(tokens.sentence_ids, tokens.sizes))


def drawn_positions(sentence_ids: Tensor, sizes: Tensor) -> Tensor:
    """The position of the token that is drawn of each sentence, (B,) int64 below its size; 0 where that is 0.

    A hash of the id alone decides, so batches, shards and workers draw the same, and neighbours draw as if by chance.

    Args:
        sentence_ids: (B,) int64.
        sizes: (B,) int64: the tokens to draw from, less than 2^31.

    Examples:
        >>> drawn_positions(torch.arange(8), torch.full((8,), 10))
        tensor([9, 0, 2, 7, 7, 2, 3, 6])
    """
    mixed = sentence_ids + _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        # int64 shifts its sign in; a hash wants zeros.
        mixed = (mixed ^ ((mixed >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
    return ((mixed & (2**31 - 1)) * sizes) >> 31


def _signed(number: int) -> int:
    """The int64 of these 64 bits."""
    return number - (1 << 64 if number >= 1 << 63 else 0)


def _picked(flat: Tensor, tokens: TokenRows, at: Tensor) -> Tensor:
    if len(tokens.rows) == 0:
        return flat.new_zeros(len(tokens.sizes), flat.shape[1])
    # Of an empty sentence any row is picked: it has no vector, which the caller writes over it.
    return flat[tokens.rows[at.clamp(0, len(tokens.rows) - 1)]]


def _largest(flat: Tensor, tokens: TokenRows) -> Tensor:
    n, d = len(tokens.sizes), flat.shape[1]
    if tokens.length and len(tokens.rows) == len(flat):
        return flat.reshape(n, tokens.length, d).amax(1)
    # Unlike embedding_bag's maximum this one is NaN where a token is, so that the sentence is counted as not finite.
    sentence = tokens.sentence[:, None].expand(-1, d)
    return flat.new_full((n, d), -torch.inf).scatter_reduce_(0, sentence, flat[tokens.rows], "amax")


def _mean(flat: Tensor, tokens: TokenRows) -> Tensor:
    return _weighted(flat, tokens, torch.ones_like(tokens.rows))


def _weighted_mean(flat: Tensor, tokens: TokenRows) -> Tensor:
    return _weighted(flat, tokens, tokens.ranks)


def _weighted(flat: Tensor, tokens: TokenRows, weights: Tensor) -> Tensor:
    weights = weights.to(flat.dtype)
    # embedding_bag sums the rows where they are: what the mask leaves out is not read, and nothing is copied.
    sums = torch.nn.functional.embedding_bag(
        tokens.rows, flat, tokens.starts, mode="sum", per_sample_weights=weights, include_last_offset=True
    )
    totals = weights.new_zeros(len(tokens.sizes)).index_add_(0, tokens.sentence, weights)
    return sums / totals[:, None]


@dataclass(frozen=True)
class _Pooler:
    """How the vectors of a pooling are made of the rows (B * T or N, D) of one layer: `vectors` gives (B, D).

    `sums`: it adds rows up, so 16-bit ones are widened first. `without_special`: it is given the tokens that the
    tokenizer did not add, in place of all.
    """

    vectors: Callable[[Tensor, TokenRows], Tensor]
    sums: bool = False
    without_special: bool = False


# A pooler for each name of `cone_kernels.names.POOLINGS` but "mean", which the op `masked_mean_pool` makes.
_POOLERS = {
    "mean_without_special": _Pooler(_mean, sums=True, without_special=True),
    "cls": _Pooler(_first),
    "last": _Pooler(_last),
    "max": _Pooler(_largest),
    "weighted_mean": _Pooler(_weighted_mean, sums=True),
    "drawn_token": _Pooler(_drawn, without_special=True),
}
