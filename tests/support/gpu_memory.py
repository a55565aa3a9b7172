"""What tests on a GPU share: layers as a model leaves them in memory, a model, and an eye on waiting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def no_waits() -> Iterator[None]:
    """An error where the host waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def apart(layers: Sequence[Tensor]) -> list[Tensor]:
    """Copies of layers at addresses that are not evenly spaced, as those of layers allocated one by one."""
    first = layers[0]
    aligned = 16 // first.element_size()
    size = (first.numel() + aligned - 1) // aligned * aligned
    starts = [layer * size + aligned * layer * layer for layer in range(len(layers))]
    memory = first.new_empty(starts[-1] + size)
    copies = [memory[start : start + first.numel()].view(first.shape) for start in starts]
    for copy, layer in zip(copies, layers, strict=True):
        copy.copy_(layer)
    return copies


class Blocks(nn.Module):
    """As much of a model as a probe asks for; nothing in its forward waits for the device."""

    def __init__(self, layers: int, dim: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(500, dim)
        self.layer = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim)) for _ in range(layers)
        )

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, output_hidden_states: bool = False
    ) -> dict[str, Any]:
        """(B, T) -> the last layer's (B, T, D), and all layers' where asked for."""
        hidden = [self.embeddings(input_ids)]
        for layer in self.layer:
            hidden = [*(hidden if output_hidden_states else ()), layer(hidden[-1])]
        output: dict[str, Any] = {"last_hidden_state": hidden[-1]}
        return output | ({"hidden_states": tuple(hidden)} if output_hidden_states else {})
