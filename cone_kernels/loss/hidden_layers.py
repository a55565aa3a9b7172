"""What the losses are taken of: the layers that were asked for, and their sentence vectors or tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cone_kernels.ops.arguments import float_tensor
from cone_kernels.ops.masked_mean_pool import masked_mean_pool, token_selection


def chosen_layers(
    hidden: Tensor | Sequence[Tensor],
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    layers: int | Sequence[int] | None,
) -> list[Tensor]:
    """Hidden states (B, T, D) of a padded batch, (N, D) of a packed one, or vectors (n, D), of each layer asked for.

    Args:
        hidden, mask, cu_seqlens, layers: as in `isotropy_loss`.

    Raises:
        TypeError, ValueError: they do not go together.
    """
    if mask is not None and cu_seqlens is not None:
        raise ValueError("mask, cu_seqlens: got both; at most one of them must be given")
    return [_tokens(name, one, mask is not None, cu_seqlens is not None) for name, one in _chosen(hidden, layers)]


def vectors_of(layer: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """The sentence vectors (B, D) of one of `chosen_layers`; vectors that were given as such are their own."""
    if mask is None and cu_seqlens is None:
        return layer
    return masked_mean_pool(layer, mask, cu_seqlens=cu_seqlens)


def tokens_of(layer: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The tokens (N, D) of one of `chosen_layers`, and which of them count, (N,) bool; None where all of them do."""
    if mask is None and cu_seqlens is None:
        return layer, None
    counted, _ = token_selection(layer, mask, cu_seqlens)
    return layer.flatten(0, -2), None if counted is None else counted.flatten()


def usable_rows(rows: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows (n, D) in float64, and (n,) bool which of them are used; the others are ones, and get no gradient.

    Rows that are zero or not finite are not used, nor those that do not count.
    """
    used = rows.isfinite().all(-1) & (rows != 0).any(-1)
    if counted is not None:
        used = used & counted
    return rows.double().where(used[:, None], 1.0), used


def _chosen(hidden: Tensor | Sequence[Tensor], layers: int | Sequence[int] | None) -> list[tuple[str, Tensor]]:
    if isinstance(hidden, Tensor):
        if layers is not None:
            raise ValueError(f"layers: got {layers!r}; it must be None where hidden is one tensor")
        return [("hidden", hidden)]
    if not isinstance(hidden, (list, tuple)):
        raise TypeError(
            f"hidden: got {type(hidden).__name__}; it must be a tensor or a tuple of tensors, such as a Hugging Face "
            "output's hidden_states (which are None without output_hidden_states=True)"
        )
    indices = [-1] if layers is None else [layers] if isinstance(layers, int) else list(layers)
    if not indices:
        raise ValueError("layers: got none; it must pick at least one")
    for index in indices:
        if not isinstance(index, int) or not -len(hidden) <= index < len(hidden):
            raise ValueError(
                f"layers: got {index!r}; it must be from {-len(hidden)} to {len(hidden) - 1}, as hidden has layers"
            )
    wanted = [index % len(hidden) for index in indices]
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"layers: got {indices}; it must pick each layer once")
    return [(f"hidden[{index}]", hidden[index]) for index in wanted]


def _tokens(name: str, hidden: Any, masked: bool, packed: bool) -> Tensor:
    """A layer that fits: hidden states (B, T, D) that have a mask, packed ones (N, D), or vectors (n, D)."""
    if not isinstance(hidden, Tensor):
        raise TypeError(f"{name}: got {type(hidden).__name__}; it must be a torch.Tensor")
    vectors = float_tensor(name, hidden, 2, "(B, T, D) or (n, D)")
    shape = tuple(vectors.shape)
    if vectors.dim() > 3:
        raise ValueError(f"{name}: got shape {shape}; it must be (B, T, D) or (n, D)")
    if packed:
        if vectors.dim() == 3 and vectors.shape[0] != 1:
            raise ValueError(f"{name}: got shape {shape}; it must be (N, D) or (1, N, D) with cu_seqlens")
        return vectors.flatten(0, -2)
    if vectors.dim() == 2 and masked:
        raise ValueError(f"mask: got one; it must be None for {name} of shape {shape}, which has no tokens")
    if vectors.dim() == 3 and not masked:
        raise ValueError(
            f"mask: got None; it must be the attention mask (B, T) of {name} of shape {shape}, or ones where every "
            "token counts"
        )
    return vectors
