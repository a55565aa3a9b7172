"""Refusals of gradients that do not exist: an error in the backward pass, never a silent zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor


def refuse_backward(op: str) -> Callable[..., NoReturn]:
    """A backward formula, for `register_autograd`, of an op without one."""

    def backward(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(_no_gradient(op))

    return backward


def refuse_double_backward(op: str) -> Callable[..., NoReturn]:
    """A backward formula, for `register_autograd`, of the gradient of `op`."""

    def backward(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(
            f"{op}: double backward is refused: its gradient has no gradient; leave out create_graph=True"
        )

    return backward


def refused_double_backward(op: str, gradient: Tensor) -> Tensor:
    """`gradient`, computed outside autograd in a backward with create_graph=True, in a form that refuses its own."""
    refusing: Tensor = _NoDoubleBackward.apply(gradient.new_zeros(()).requires_grad_(), gradient, op)  # type: ignore[no-untyped-call]
    return refusing


class _NoDoubleBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, gradient: Tensor, op: str) -> Tensor:
        ctx.op = op
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> NoReturn:
        refuse_double_backward(ctx.op)(ctx)


def refused_gradients(op: str, result: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """`result`, computed outside autograd from `inputs`, in a form that refuses its backward where one is asked for.

    For what ops add to tensors in place, of which autograd sees nothing: a loss made of it would just not be trained.
    """
    tracked = [tensor for tensor in inputs if tensor.requires_grad]
    if not tracked or not torch.is_grad_enabled() or not result.dtype.is_floating_point:
        return result
    refusing: Tensor = _refused_gradients(result.detach(), tracked[0], op)
    return refusing


@torch.library.custom_op("cone_kernels::refused_gradients", mutates_args=())
def _refused_gradients(result: Tensor, source: Tensor, op: str) -> Tensor:
    return result.clone()


@_refused_gradients.register_fake
def _(result: Tensor, source: Tensor, op: str) -> Tensor:
    return torch.empty_like(result)


def _remember_op(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    ctx.op = inputs[2]


def _refuse(ctx: Any, grad: Tensor) -> NoReturn:
    raise RuntimeError(_no_gradient(ctx.op))


_refused_gradients.register_autograd(_refuse, setup_context=_remember_op)


def _no_gradient(op: str) -> str:
    return (
        f"{op}: has no gradient; detach its input, or use what has one: mean_pairwise_cosine, masked_mean_pool, "
        "isotropy_loss"
    )
