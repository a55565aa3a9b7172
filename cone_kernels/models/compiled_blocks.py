"""torch.compile on the blocks of a model alone: they take most of the time, and hooks between them still fire."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# Where torch.compile keeps the function that it was given.
_ORIGINAL = "_torchdynamo_orig_callable"
# Where a module keeps what `module.compile()` made of its call.
COMPILED_CALL = "_compiled_call_impl"


def compile_blocks(model: nn.Module) -> int:
    """Compiles the forward of each block in place, for batches of any shape; returns how many there are.

    Blocks are the modules in the model's outermost lists of modules. What lies around them runs as before, and so do
    the hooks of the blocks themselves, by which a probe sees the layers. The code is made in the first forwards; a
    block that torch gives up on runs as before, and torch warns.

    Args:
        model: any module.

    Examples:
        >>> compile_blocks(AutoModel.from_pretrained("bert-base-uncased"))
        12
    """
    import torch

    blocks = list(_blocks(model))
    for block in blocks:
        # Not block.compile(): that takes the hooks of the block into the compiled code.
        block.forward = torch.compile(block.forward, dynamic=True)
    return len(blocks)


@contextmanager
def as_written(model: nn.Module) -> Iterator[None]:
    """Runs code with the compiled parts of the model put back as they were, so that hooks inside them fire."""
    compiled = {module: module.forward for module in model.modules() if is_compiled_forward(module)}
    in_place = {module: call for module in model.modules() if (call := module.__dict__.get(COMPILED_CALL)) is not None}
    for module, forward in compiled.items():
        module.forward = getattr(forward, _ORIGINAL)
    for module in in_place:
        module.__dict__[COMPILED_CALL] = None
    try:
        yield
    finally:
        for module, forward in compiled.items():
            module.forward = forward
        for module, call in in_place.items():
            module.__dict__[COMPILED_CALL] = call


def is_compiled_forward(module: nn.Module) -> bool:
    """Whether the forward of a module is what torch.compile made of it."""
    return hasattr(module.forward, _ORIGINAL)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    from torch import nn

    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _blocks(child)
