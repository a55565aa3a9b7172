"""Each op of both GPU backends once, on small odd shapes: what compute-sanitizer watches."""

from __future__ import annotations

import torch

from cone_kernels import (
    masked_mean_pool,
    mean_pairwise_cosine,
    pool_moments,
    row_moments,
    second_moment,
    top_eigenvectors,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def run(backend: str) -> None:
    """Aligned and unaligned rows, ragged sentences, one with no token, more than one layer."""
    for d in (65, 128, 1000):
        for dtype in (torch.float32, torch.bfloat16):
            generator = torch.Generator().manual_seed(d)
            hidden = torch.randn(3, 21, 7, d, generator=generator).to(dtype).to(DEVICE)
            mask = torch.arange(7, device=DEVICE) < torch.arange(21, device=DEVICE)[:, None] % 8
            pool_moments(hidden, mask, backend=backend)
            rows = hidden.flatten(1, 2)
            row_moments(rows, backend=backend)
            second_moment(rows, backend=backend)
            second_moment(rows, center=True, backend=backend)
            top_eigenvectors(rows, 2, max_iterations=6, backend=backend)
            leaf = hidden.detach().requires_grad_()
            pooled = masked_mean_pool(leaf, mask, backend=backend)
            mean_pairwise_cosine(pooled, backend=backend).sum().backward()
    if DEVICE == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    for name in ("triton", "cuda"):
        run(name)
        print(f"{name}: each op has run")
