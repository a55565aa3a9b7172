"""torch's own attention of sentences in one row, as an attention of transformers: packed batches without flash-attn."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cone_kernels.models.transformers_names import ATTENTION_CHOSEN, VARLEN

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cone_kernels.models.loaded import LoadedModel


def register_varlen_attention() -> None:
    """Makes `attn_implementation="varlen"` known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register(VARLEN, varlen_attention)
    AttentionMaskInterface.register(VARLEN, flash_attention_mask)


def packable(loaded: LoadedModel) -> LoadedModel:
    """The model with this attention where torch's kernel runs: on a GPU, in 16 bits; else as it is.

    Args:
        loaded: a model whose attention nobody has chosen; it is changed in place.
    """
    model: Any = loaded.model
    is_chosen = hasattr(model, "set_attn_implementation")  # a table of token vectors has none
    if loaded.device.type != "cuda" or not is_chosen or model.dtype.itemsize != 2:
        return loaded
    register_varlen_attention()
    model.set_attn_implementation(VARLEN)
    return replace(loaded, info={**loaded.info, "attention": getattr(model.config, ATTENTION_CHOSEN)})


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each sentence, by `torch.nn.attention.varlen.varlen_attn`.

    Args:
        module: the layer of the model that asks; it says whether it is causal where `is_causal` does not.
        query: (B, H, T, D); key, value: (B, H', T, D), where H' divides H.
        attention_mask: (B, T), or None where every token counts.
        scaling: of the scores; None for 1/√D.
        sliding_window: so many tokens back are seen, the token itself among them, and as many ahead unless causal.
        cu_seq_lens_q: (S + 1,) int32, where each of S sentences begins that follow one another in a single row (B = 1);
            None: a row is a sentence.
        max_length_q: tokens of the longest.

    Returns:
        (B, T, H, D), zeros where the mask is 0, and None for the weights.

    Raises:
        ValueError: the layer asks for what torch's kernel does not have: dropout, softcap, sinks, earlier tokens.
    """
    import torch
    from torch.nn.attention.varlen import varlen_attn

    batch, heads, tokens, _width = query.shape
    asked = {"dropout": dropout, "softcap": softcap, "s_aux": s_aux, "a cache": key.shape[2] != tokens}
    for name, given in asked.items():
        if given is not None and given is not False and not (name == "dropout" and given == 0):
            raise ValueError(f"attention: got {VARLEN!r} for a layer with {name}, which it does not have")
    groups = heads // key.shape[1]
    # (B T, H, D)
    rows = [part.transpose(1, 2).flatten(0, 1) for part in (query, key, value)]
    rows[1:] = [part.repeat_interleave(groups, 1) if groups > 1 else part for part in rows[1:]]
    longest, kept = max_length_q or tokens, None
    if cu_seq_lens_q is not None:
        starts = cu_seq_lens_q
    elif attention_mask is None:
        starts = torch.arange(0, (batch + 1) * tokens, tokens, dtype=torch.int32, device=query.device)
    else:
        kept = attention_mask.bool().flatten()
        lengths = kept.view(batch, tokens).sum(1, dtype=torch.int32)
        starts = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        rows = [part[kept] for part in rows]
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", False))
    back = -1 if sliding_window is None else sliding_window - 1
    window = (back, 0 if causal else back)
    queries, keys, values = rows
    found: Any = varlen_attn(queries, keys, values, starts, starts, longest, longest, scale=scaling, window_size=window)
    if kept is not None:
        found = found.new_zeros(batch * tokens, *found.shape[1:]).masked_scatter_(kept[:, None, None], found)
    return found.unflatten(0, (batch, tokens)), None
