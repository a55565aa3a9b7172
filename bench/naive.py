"""What a researcher writes today, and the strongest plain torch for small calls: what the benchmarks compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own alias
from torch import Tensor

from cone_kernels.sums import jackknife_groups


def mean_pairwise_cosine(x: Tensor) -> Tensor:
    """Normalize, then the mean of the cosine matrix without its diagonal: O(n²). x (n, d)."""
    u = F.normalize(x, dim=-1)
    cosines = u @ u.T
    return (cosines.sum() - cosines.trace()) / (len(x) * (len(x) - 1))


def mean_pairwise_cosine_by_mean(x: Tensor) -> Tensor:
    """Normalize, then the mean vector: O(n·d). x (n, d)."""
    u = F.normalize(x, dim=-1)
    n = len(x)
    return (u.mean(0).float().square().sum() * n * n - n) / (n * (n - 1))


def mean_pairwise_cosine_by_product(x: Tensor) -> Tensor:
    """The mean vector as a product of the rows with their inverse norms, without normalized rows. x (n, d)."""
    s = torch.mv(x.T, torch.linalg.vector_norm(x, dim=-1).reciprocal_()).float()
    n = len(x)
    return (s.dot(s) - n) / (n * (n - 1))


def mean_pairwise_cosine_by_division(x: Tensor) -> Tensor:
    """The fewest torch calls, which is fastest for the smallest x (n, d)."""
    s = (x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)).sum(0).float()
    n = len(x)
    return (s.dot(s) - n) / (n * (n - 1))


def masked_mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """The pooling of every model card. hidden (B, T, D), mask (B, T)."""
    weights = mask.unsqueeze(-1).expand(hidden.size()).float()
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def masked_mean_pool_by_sums(hidden: Tensor, mask: Tensor) -> Tensor:
    """The fewest torch calls. hidden (B, T, D), mask (B, T) bool."""
    weights = mask.unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1)


def masked_mean_pool_by_product(hidden: Tensor, mask: Tensor) -> Tensor:
    """Each sentence's mask times its tokens, without masked tokens in memory. hidden (B, T, D), mask (B, T) bool."""
    weights = mask.to(hidden.dtype).unsqueeze(1)
    return torch.bmm(weights, hidden).squeeze(1) / weights.sum(2)


def pool_moments(hidden: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Pooled vectors and the token level's sums, one torch op after the other."""
    tokens = hidden[mask.bool()]  # (N, D)
    units = F.normalize(tokens, dim=-1)
    owner = torch.arange(len(mask)).repeat_interleave(mask.sum(1))
    by_sentence = torch.zeros(len(mask), hidden.shape[-1]).index_add_(0, owner, units)
    groups = torch.zeros(64, hidden.shape[-1]).index_add_(0, jackknife_groups(torch.arange(len(mask))), by_sentence)
    return {
        "pooled": masked_mean_pool(hidden, mask),
        "unit_sum": groups,
        "unit_sq_sum": units.square().sum(0),
        "sum": tokens.sum(0),
        "sq_sum": tokens.square().sum(0),
        "norm_sum": tokens.norm(dim=-1).sum(),
        "norm_sq_sum": tokens.square().sum(),
        "sentence_sq_sum": by_sentence.square().sum(),
        "sentence_unit_sum": F.normalize(by_sentence, dim=-1).sum(0),
    }


def layer_curve(model: Any, tokenizer: Any, sentences: Sequence[str], batch_size: int = 32) -> list[float]:
    """Anisotropy per layer: batches in file order, padded, all hidden states out, all vectors kept, cosine matrix."""
    kept: list[list[Tensor]] = []
    for start in range(0, len(sentences), batch_size):
        batch = tokenizer(
            list(sentences[start : start + batch_size]), padding=True, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            output = model(**batch, output_hidden_states=True)
        kept.append([masked_mean_pool(layer, batch["attention_mask"]) for layer in output.hidden_states])
    return [float(mean_pairwise_cosine(torch.cat(list(layer)))) for layer in zip(*kept, strict=True)]
