"""Plain float64 torch for every op: the oracle that each backend is tested against. Nothing here is fast."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from cone_kernels.kernels.cosine import CosineAndSums, cosine_by_row_moments
from cone_kernels.sums import LEAST_MEAN_UNIT, ROW_FIELDS

__all__ = [
    "masked_mean_pool",
    "masked_mean_pool_backward",
    "mean_pairwise_cosine",
    "mean_pairwise_cosine_backward",
    "pool_moments",
    "row_moments",
    "second_moment",
    "top_eigenvectors",
]

_USED, _ZERO, _NONFINITE, _EMPTY = 0, 1, 2, 4


def row_moments(x: Tensor, groups: Tensor | None, sums: dict[str, Tensor]) -> Tensor:
    """Adds the rows of x (L, n, d) to `sums`; returns the status (L, n). Rows of group -1 are skipped."""
    n_layers, n, _ = x.shape
    if groups is None:
        groups = torch.arange(n, device=x.device) % sums["count"].shape[-1]
    status = torch.zeros((n_layers, n), dtype=torch.uint8, device=x.device)
    for layer in range(n_layers):
        taken = groups >= 0
        status[layer, taken] = _add_rows(
            x[layer][taken].double(), groups[taken], {field: total[layer] for field, total in sums.items()}
        )
    return status


def _add_rows(rows: Tensor, groups: Tensor, sums: dict[str, Tensor]) -> Tensor:
    norm_sq = rows.square().sum(-1)  # (n,)
    status = _status_of(norm_sq)
    used = status == _USED
    x, norm = rows[used], norm_sq[used].sqrt()  # (n_used, d), (n_used,)
    u = x / norm[:, None]
    ones = torch.ones_like(groups)
    sums["count"].index_add_(0, groups[used], ones[used])
    sums["n_zero"].index_add_(0, groups[status == _ZERO], ones[status == _ZERO])
    sums["n_nonfinite"].index_add_(0, groups[status == _NONFINITE], ones[status == _NONFINITE])
    sums["unit_sum"].index_add_(0, groups[used], u)
    sums["unit_sq_total"].index_add_(0, groups[used], u.square().sum(-1))
    if "sum" in sums:
        sums["unit_sq_sum"] += u.square().sum(0)
        sums["sum"] += x.sum(0)
        sums["sq_sum"] += x.square().sum(0)
        sums["norm_sum"] += norm.sum()
        sums["norm_sq_sum"] += norm_sq[used].sum()
    return status


def _status_of(norm_sq: Tensor) -> Tensor:
    status = torch.full(norm_sq.shape, _USED, dtype=torch.uint8, device=norm_sq.device)
    status[norm_sq < torch.finfo(torch.float64).tiny] = _ZERO
    status[~norm_sq.isfinite()] = _NONFINITE
    return status


def mean_pairwise_cosine(x: Tensor, alone: bool) -> CosineAndSums:
    """A (...) of x (..., n, d), how many rows were left out (...), s (..., d) and n (...)."""
    return cosine_by_row_moments(row_moments, x)


def pool_moments(
    layers: Sequence[Tensor],
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    groups: Tensor,
    sums: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Adds the tokens of each layer, (B, T, d) with mask or (N, d) with cu_seqlens, to `sums`.

    Returns the pooled vectors (L, B, d) and the status of each sentence (L, B).
    """
    status = torch.zeros((len(layers), len(groups)), dtype=torch.uint8, device=layers[0].device)
    for layer, hidden in enumerate(layers):
        views = {field: total[layer] for field, total in sums.items()}
        for sentence, tokens in enumerate(_sentences(hidden, mask, cu_seqlens)):
            group = groups[sentence]
            same_group = group.expand(len(tokens))
            unit_sum = torch.zeros_like(views["unit_sum"])
            own = {field: views[field] for field in ROW_FIELDS} | {"unit_sum": unit_sum}
            token_status = _add_rows(tokens.double(), same_group, own)
            g, size = unit_sum[group], int((token_status == _USED).sum())
            views["unit_sum"][group] += g
            views["sentence_sq_sum"][group] += g.square().sum()
            views["sentence_size_sq_sum"][group] += size * size
            views["n_sentences"][group] += size > 0
            length = torch.linalg.vector_norm(g)
            if length > LEAST_MEAN_UNIT * size:
                views["sentence_unit_sum"][group] += g / length
            else:
                views["n_cancelled"][group] += size > 0
            for bit in (_ZERO, _NONFINITE):
                if bool((token_status == bit).any()):
                    status[layer, sentence] |= bit
            if len(tokens) == 0:
                status[layer, sentence] = _EMPTY
    return masked_mean_pool(layers, mask, cu_seqlens), status


def masked_mean_pool(layers: Sequence[Tensor], mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """The mean over each sentence's tokens (L, B, d), NaN where there is none; float32, or float64 for float64."""
    dtype = torch.float64 if layers[0].dtype == torch.float64 else torch.float32
    pooled = [
        torch.stack([tokens.double().mean(0) for tokens in _sentences(hidden, mask, cu_seqlens)])
        if (cu_seqlens is not None and len(cu_seqlens) > 1) or (mask is not None and len(mask) > 0)
        else hidden.new_zeros((0, hidden.shape[-1]), dtype=torch.float64)
        for hidden in layers
    ]
    return torch.stack(pooled).to(dtype)


def mean_pairwise_cosine_backward(x: Tensor, unit_sum: Tensor, scale: Tensor) -> Tensor:
    """scale · (s − (s·u)u)/‖x‖ for the rows of x (L, n, d), of its dtype; 0 for rows left out."""
    gradient = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    for layer, rows in enumerate(x.double()):
        norm_sq = rows.square().sum(-1)  # (n,)
        used = _status_of(norm_sq) == _USED
        norm = norm_sq[used].sqrt()[:, None]
        u, s = rows[used] / norm, unit_sum[layer]
        gradient[layer, used] = (scale[layer] / norm * (s - (u @ s)[:, None] * u)).to(x.dtype)
    return gradient


def masked_mean_pool_backward(
    grad: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, n_tokens: int, dtype: torch.dtype
) -> Tensor:
    """grad (L, B, d) / T for each token that counts, 0 for others: (L, B, T, d), or packed (L, N, d)."""
    if mask is not None:
        share = grad.double() / mask.sum(1)[:, None]  # (L, B, d)
        return torch.where(mask[:, :, None], share[:, :, None], 0.0).to(dtype)
    assert cu_seqlens is not None
    sizes = cu_seqlens.diff()  # (B,)
    return (grad.double() / sizes[:, None]).repeat_interleave(sizes, dim=1, output_size=n_tokens).to(dtype)


def second_moment(
    moment: Tensor,
    x: Tensor,
    use: Tensor | None,
    weights: Tensor | None,
    pilot: Tensor | None,
    about_pilot: bool,
) -> None:
    """Adds Σ x xᵀ, or Σ (x − pilot)(x − pilot)ᵀ, of x (L, n, d) to the upper triangle of `moment` (L, d, d)."""
    for layer, rows in enumerate(x.double()):
        if weights is not None:
            rows = rows * weights[layer, :, None]
        if use is not None:
            rows = rows[use[layer]]
        if about_pilot and pilot is not None:
            rows = rows - pilot[layer]
        moment[layer] += (rows.mT @ rows).triu()


def top_eigenvectors(
    x: Tensor, covariance: bool, center: bool, k: int, tolerance: float, max_iterations: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Values, vectors, residuals, iterations, value k + 1, converged, and the mean of data; x (L, n or d, d)."""
    matrix, mean = x.double(), None
    if not covariance:
        mean, n = matrix.mean(-2), x.shape[-2]
        rows = matrix - mean[:, None, :] if center else matrix
        matrix = rows.mT @ rows / (n - 1 if center else n)
    d = x.shape[-1]
    finite = torch.isfinite(matrix).flatten(1).all(1)[:, None]  # (L, 1)
    theta, columns = torch.linalg.eigh(torch.where(finite[..., None], matrix, 0.0))  # ascending, vectors in columns
    theta = torch.where(finite, theta, torch.nan)
    values, vectors = theta.flip(-1)[:, :k], columns.flip(-1).mT[:, :k]  # (L, k), (L, k, d)
    residuals = torch.linalg.vector_norm(vectors @ matrix - values[..., None] * vectors, dim=-1)
    next_value = theta[:, d - k - 1] if k < d else torch.full_like(theta[:, 0], torch.nan)
    converged = (residuals <= tolerance * theta.abs().amax(-1, keepdim=True)).all(-1)
    iterations = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return values.clone(), vectors.clone(), residuals, iterations, next_value.clone(), converged, mean


def _sentences(hidden: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> list[Tensor]:
    if mask is not None:
        return [tokens[kept] for tokens, kept in zip(hidden, mask, strict=True)]
    assert cu_seqlens is not None
    bounds = cu_seqlens.tolist()
    return [hidden[begin:end] for begin, end in itertools.pairwise(bounds)]
