"""A loss that pulls the mean pairwise cosine of sentence vectors to a target, on one process or over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from cone_kernels import backends
from cone_kernels.ops.arguments import float_tensor
from cone_kernels.ops.masked_mean_pool import masked_mean_pool
from cone_kernels.ops.mean_pairwise_cosine import cosine_gradient, mean_pairwise_cosine
from cone_kernels.sums import COSINE_FIELDS, cosine_of_sums, zero_sums


def isotropy_loss(
    hidden: Tensor | Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    target: float = 0.0,
    layers: int | Sequence[int] | None = None,
    group: Any = None,
) -> Tensor:
    """The mean over layers of (A − target)², A the mean pairwise cosine of the sentence vectors of the batch.

    Sentence vectors are the means of a sentence's tokens (`masked_mean_pool`); A is that of `mean_pairwise_cosine`, so
    vectors that are zero or not finite are left out and get the gradient 0. Sums are float64, also under autocast; the
    gradient is rounded once, to the dtype of `hidden`. A batch with fewer than two vectors has no pair: its loss is
    NaN, and its gradient 0, so that it spoils no weight.

    With `group`, A is that of the vectors of all ranks: s = Σu, Σ‖u‖² and the number of rows are summed over them in
    one all-reduce. Ranks may have batches of different sizes, or none: (0, T, D) with a mask (0, T), or (0, D). All
    must make the call, with the same layers; each gets the same loss. The gradient is that of the sum of the ranks'
    (equal) losses, W times the gradient of one, as the transpose of a SUM has it. DDP and FSDP average gradients over
    W ranks, which takes the W away again: together they give the gradient of one process with the whole batch, if the
    ranks weight the loss alike. Whoever sums the ranks' gradients must divide the loss by W.

    Args:
        hidden: hidden states (B, T, D), or vectors (n, D), float32, float64, bfloat16 or float16; or a sequence of
            them, as the `hidden_states` of a Hugging Face output.
        mask: (B, T) as `masked_mean_pool` takes it; for hidden states (B, T, D), and only for them.
        target: the mean cosine wanted, in [-1, 1].
        layers: which of a sequence's entries count, negative ones from its end; default the last one.
        group: None for this process alone, True for the default process group, or a process group.

    Returns:
        () float64.

    Raises:
        TypeError: a dtype or type is not taken.
        ValueError: a shape or value is not as above, or there is no process group for `group`.
        RuntimeError: on a double backward.

    Example:
        >>> output = model(**batch, output_hidden_states=True)
        >>> loss = output.loss + 0.1 * isotropy_loss(output.hidden_states, batch["attention_mask"], layers=[-1, -2])
    """
    if not (isinstance(target, (int, float)) and -1 <= target <= 1):
        raise ValueError(f"target: got {target!r}; it must be a number in [-1, 1], as cosines are")
    named = _chosen(hidden, layers)
    vectors = [_sentence_vectors(name, layer, mask) for name, layer in named]
    if group is None:
        cosines = torch.stack([mean_pairwise_cosine(rows) for rows in vectors])
    else:
        cosines = _cosines_of_all_ranks(vectors, _process_group(group))
    return (cosines - target).square().mean()


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


def _sentence_vectors(name: str, hidden: Any, mask: Tensor | None) -> Tensor:
    if not isinstance(hidden, Tensor):
        raise TypeError(f"{name}: got {type(hidden).__name__}; it must be a torch.Tensor")
    vectors = float_tensor(name, hidden, 2, "(B, T, D) or (n, D)")
    if vectors.dim() > 3:
        raise ValueError(f"{name}: got shape {tuple(vectors.shape)}; it must be (B, T, D) or (n, D)")
    if vectors.dim() == 2:
        if mask is not None:
            raise ValueError(
                f"mask: got one; it must be None for {name} of shape {tuple(vectors.shape)}, which has no tokens"
            )
        return vectors
    if mask is None:
        raise ValueError(
            f"mask: got None; it must be the attention mask (B, T) of {name} of shape {tuple(vectors.shape)}, or ones "
            "where every token counts"
        )
    pooled: Tensor = masked_mean_pool(vectors, mask)
    return pooled


def _process_group(group: Any) -> dist.ProcessGroup:
    if dist.is_available() and group is dist.GroupMember.NON_GROUP_MEMBER:  # what new_group gives to other ranks
        raise ValueError("group: got a process group that this rank is not in; it must be its own")
    if group is not True and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(f"group: got {type(group).__name__} {group!r}; it must be None, True or a process group")
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            f"group: got {group!r}; it must be None while torch.distributed is not initialized (init_process_group)"
        )
    chosen: Any = dist.group.WORLD if group is True else group
    return chosen  # type: ignore[no-any-return]


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


def _unit_sums(rows: Tensor, backend: str) -> dict[str, Tensor]:
    """The sums of `COSINE_FIELDS` of rows (n, d), for one layer and group."""
    sums = zero_sums(COSINE_FIELDS, 1, rows.shape[-1], groups=1, device=rows.device)
    backends.kernel("row_moments", backend)(rows[None], None, sums)
    return sums


class _CosinesOfAllRanks(torch.autograd.Function):
    """A (L,) of the rows of all ranks, for the L layers (n, d) of this one."""

    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, backend: str, *vectors: Tensor) -> Tensor:
        sums = [_unit_sums(rows, backend) for rows in vectors]
        fields = ("unit_sum", "unit_sq_total", "count")
        d = vectors[0].shape[-1]
        total = torch.stack(  # (L, d + 2); counts are exact in float64
            [torch.cat([layer[field].flatten().double() for field in fields]) for layer in sums]
        )
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
            cosine_gradient(rows, unit_sum[layer], count[layer], ctx.ranks * grad[layer], ctx.backend)
            if ctx.needs_input_grad[2 + layer]
            else None
            for layer, rows in enumerate(vectors)
        ]
        return None, None, *gradients
