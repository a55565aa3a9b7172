"""A loss that pulls the mean pairwise cosine of sentence vectors to a target, on one process or over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from cone_kernels import backends
from cone_kernels.loss.hidden_layers import chosen_layers
from cone_kernels.loss.ranks import process_group
from cone_kernels.ops.arguments import differentiated_directly
from cone_kernels.ops.gradients import refused_double_backward
from cone_kernels.ops.masked_mean_pool import masked_mean_pool, token_selection
from cone_kernels.ops.mean_pairwise_cosine import cosine_gradient, cosine_of_normalized
from cone_kernels.ops.short_rows import find_short_rows
from cone_kernels.sums import COSINE_FIELDS, cosine_of_sums, zero_sums

_EPS = 1e-12  # that of torch.nn.functional.normalize
_POOL, _COSINE = "masked_mean_pool", "mean_pairwise_cosine"


def isotropy_loss(
    hidden: Tensor | Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    target: float = 0.0,
    layers: int | Sequence[int] | None = None,
    group: Any = None,
) -> Tensor:
    """The mean over layers of (A − target)², A the mean pairwise cosine of the sentence vectors of the batch.

    Sentence vectors are the means of a sentence's tokens (`masked_mean_pool`); A is that of `mean_pairwise_cosine`, so
    vectors that are zero or not finite are left out and get the gradient 0. One near zero is divided by 1e-12 where it
    is shorter than that, as `torch.nn.functional.normalize` does: its gradient does not grow without end. Sums are
    float64, also under autocast; the gradient is rounded once, to the dtype of `hidden`. A batch with fewer than two
    vectors has no pair: its loss is NaN, and its gradient 0, so that it spoils no weight.

    With `group`, A is that of the vectors of all ranks: s = Σu, Σ‖u‖² and the number of rows are summed over them in
    one all-reduce. Ranks may have batches of different sizes, or none: (0, T, D) with a mask (0, T), or (0, D). All
    must make the call, with the same layers; each gets the same loss. The gradient is that of the sum of the ranks'
    (equal) losses, W times the gradient of one, as the transpose of a SUM has it. DDP and FSDP average gradients over
    W ranks, which takes the W away again: together they give the gradient of one process with the whole batch, if the
    ranks weight the loss alike. Whoever sums the ranks' gradients must divide the loss by W.

    Args:
        hidden: hidden states (B, T, D), packed ones (N, D) or (1, N, D) with `cu_seqlens`, or vectors (n, D), float32,
            float64, bfloat16 or float16; or a sequence of them, as the `hidden_states` of a Hugging Face output.
        mask: (B, T) as `masked_mean_pool` takes it; for hidden states (B, T, D), and only for them.
        cu_seqlens: (B + 1,) int: the sentences' first rows in packed hidden states, and N; in place of `mask`.
        target: the mean cosine wanted, in [-1, 1].
        layers: which of a sequence's entries count, negative ones from its end; default the last one.
        group: None for this process alone, True for the default process group, or a process group.

    Returns:
        () float64.

    Raises:
        TypeError: a dtype or type is not taken.
        ValueError: a shape or value is not as above, or there is no process group for `group`.
        RuntimeError: on a double backward.

    Examples:
        >>> output = model(**batch, output_hidden_states=True)
        >>> loss = output.loss + 0.1 * isotropy_loss(output.hidden_states, batch["attention_mask"], layers=[-1, -2])
    """
    if not (isinstance(target, (int, float)) and -1 <= target <= 1):
        raise ValueError(f"target: got {target!r}; it must be a number in [-1, 1], as cosines are")
    tokens = chosen_layers(hidden, mask, cu_seqlens, layers)
    if group is None:
        loss = _loss_on_cpu(tokens, mask, cu_seqlens, target)
        if loss is not None:
            return loss
    pooled = mask is not None or cu_seqlens is not None
    vectors = [masked_mean_pool(layer, mask, cu_seqlens=cu_seqlens) if pooled else layer for layer in tokens]
    if group is None:
        cosines = torch.stack([cosine_of_normalized(rows, _EPS) for rows in vectors])
    else:
        cosines = _cosines_of_all_ranks(vectors, process_group(group))
    return (cosines - target).square().mean()


def _loss_on_cpu(
    layers: Sequence[Tensor], mask: Tensor | None, cu_seqlens: Tensor | None, target: float
) -> Tensor | None:
    """The loss as one node of autograd's graph and one call for each layer: of a small batch the rest takes longer.

    None where that is not possible: it is another backend's, something but autograd looks on, or a vector is near zero.
    """
    pooled = mask is not None or cu_seqlens is not None
    ops = (_COSINE, _POOL) if pooled else (_COSINE,)
    if not all(layer.device.type == "cpu" and differentiated_directly(layer) for layer in layers):
        return None
    if any(backends.resolve("auto", layers[0].device, op) != backends.Backend.CPU for op in ops):
        return None
    kernel = backends.kernel("pooled_cosine", backends.Backend.CPU)
    selection: tuple[Tensor | None, Tensor | None] = None, None
    found = []
    for layer in layers:
        if pooled:
            selection = token_selection(layer, mask, cu_seqlens)
        found.append(kernel(layer, *selection))
        if found[-1].shortest < _EPS:
            return None
    loss: Tensor = _LossOnCpu.apply(found, selection, target, *layers)  # type: ignore[no-untyped-call]
    return loss


class _LossOnCpu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, found: Sequence[Any], selection: Sequence[Tensor | None], target: float, *layers: Tensor
    ) -> Tensor:
        ctx.away = [one.cosine - target for one in found]
        ctx.found = [one._replace(rows=None) for one in found]
        ctx.save_for_backward(*selection, *(one.rows for one in found))
        ctx.like = [(layer.shape, layer.dtype) for layer in layers]
        loss = sum(one * one for one in ctx.away) / len(found)
        return torch.tensor(loss, dtype=torch.float64, device=layers[0].device)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kernel = backends.kernel("pooled_cosine_backward", backends.Backend.CPU)
        mask, cu_seqlens, *rows = ctx.saved_tensors
        each = grad.item() / len(rows)
        gradients: list[Tensor | None] = [None] * len(rows)
        for at, (shape, dtype) in enumerate(ctx.like):
            if ctx.needs_input_grad[3 + at]:
                of = ctx.found[at]._replace(rows=rows[at])
                gradient = kernel(of, each * 2 * ctx.away[at], mask, cu_seqlens, shape, dtype)
                again = torch.is_grad_enabled()  # create_graph=True
                gradients[at] = refused_double_backward("isotropy_loss", gradient) if again else gradient
        return None, None, None, *gradients


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _cosines_of_all_ranks(vectors: Sequence[Tensor], group: dist.ProcessGroup) -> Tensor:
    for rows in vectors[1:]:
        if rows.shape[-1] != vectors[0].shape[-1]:
            raise ValueError(
                f"hidden: got layers of width {vectors[0].shape[-1]} and {rows.shape[-1]}; it must be one width"
            )
    backend = backends.resolve("auto", vectors[0].device, "row_moments").value
    cosines: Tensor = _CosinesOfAllRanks.apply(group, backend, *vectors)  # type: ignore[no-untyped-call]
    return cosines


def _unit_sums(rows: Tensor, backend: str) -> Tensor:
    """s = Σu, Σ‖u‖² and n of rows (n, d) divided by max(‖x‖, eps): (d + 2,) float64, where counts are exact."""
    short = find_short_rows(rows, _EPS)
    whole = rows if short is None else rows.masked_fill(short[:, None], 0)
    sums = zero_sums(COSINE_FIELDS, 1, rows.shape[-1], groups=1, device=rows.device)
    backends.kernel("row_moments", backend)(whole[None], None, sums)
    total = torch.cat([sums[field].flatten().double() for field in ("unit_sum", "unit_sq_total", "count")])
    if short is not None:
        divided = torch.where(short[:, None], rows.double() / _EPS, 0.0)
        total += torch.cat([divided.sum(0), divided.square().sum()[None], short.sum()[None]])
    return total


class _CosinesOfAllRanks(torch.autograd.Function):
    """A (L,) of the rows of all ranks, for the L layers (n, d) of this one."""

    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, backend: str, *vectors: Tensor) -> Tensor:
        total = torch.stack([_unit_sums(rows, backend) for rows in vectors])  # (L, d + 2)
        d = vectors[0].shape[-1]
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=group)
        unit_sum, unit_sq_total, count = total[:, :d], total[:, d], total[:, d + 1]
        ctx.save_for_backward(unit_sum, count, *vectors)
        ctx.backend, ctx.ranks = backend, dist.get_world_size(group)
        return cosine_of_sums(unit_sum, unit_sq_total, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # The transpose of a SUM sums the ranks' gradients. They have the same cosines, so the same gradient, W times:
        # the backward need not communicate, and no rank waits for one whose vectors need no gradient.
        unit_sum, count, *vectors = ctx.saved_tensors
        gradients = [
            cosine_gradient(rows, unit_sum[layer], count[layer], ctx.ranks * grad[layer], ctx.backend, _EPS)
            if ctx.needs_input_grad[2 + layer]
            else None
            for layer, rows in enumerate(vectors)
        ]
        return None, None, *gradients
