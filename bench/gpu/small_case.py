"""Each op of a GPU backend once, on small odd shapes: what compute-sanitizer watches.

python -m bench.gpu.small_case BACKEND all|CASE
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WIDTHS, DTYPES = (65, 128, 1000), ("float32", "bfloat16")
MANY_VECTORS = "many-vectors"
# Compiled apart: a process for each compiles them all in the time of one.
CASES = (*(f"{d}-{dtype}" for d in WIDTHS for dtype in DTYPES), MANY_VECTORS)


def run(backend: str, case: str, device: torch.device) -> None:
    """One of `CASES`, on a device."""
    import torch

    if case == MANY_VECTORS:
        many_vectors(backend, device)
    else:
        d, dtype = case.split("-")
        every_op(backend, int(d), getattr(torch, dtype), device)


def every_op(backend: str, d: int, dtype: torch.dtype, device: torch.device) -> None:
    """Aligned and unaligned rows, ragged sentences, one with no token, layers evenly spaced, apart and packed."""
    import torch

    from cone_kernels import (
        masked_mean_pool,
        mean_pairwise_cosine,
        pool_moments,
        row_moments,
        second_moment,
        top_eigenvectors,
    )

    hidden = torch.randn(3, 21, 7, d, generator=torch.Generator().manual_seed(d)).to(dtype).to(device)
    mask = torch.arange(7, device=device) < torch.arange(21, device=device)[:, None] % 8
    pool_moments(hidden, mask, backend=backend)
    # Copies of neighbours with one in between are not evenly spaced in memory.
    copies = [hidden[layer].clone() for layer in (0, 1, 1, 2)]
    pool_moments([copies[0], copies[1], copies[3]], mask, backend=backend)
    starts = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
    pool_moments(hidden[:, mask], cu_seqlens=starts, backend=backend)
    rows = hidden.flatten(1, 2)
    row_moments(rows, backend=backend)
    row_moments(rows, sentence_ids=torch.arange(147, device=device) * 5, backend=backend)
    second_moment(rows, backend=backend)
    second_moment(rows, center=True, backend=backend)
    top_eigenvectors(rows, 2, max_iterations=6, backend=backend)
    top_eigenvectors(covariance=second_moment(rows, backend=backend).float(), k=2, max_iterations=6, backend=backend)
    leaf = hidden.detach().requires_grad_()
    pooled = masked_mean_pool(leaf, mask, backend=backend)
    mean_pairwise_cosine(pooled, backend=backend).sum().backward()


def many_vectors(backend: str, device: torch.device) -> None:
    """A block of 72 vectors, no power of two, on data."""
    import torch

    from cone_kernels import top_eigenvectors

    rows = torch.randn(2, 300, 128, generator=torch.Generator().manual_seed(0)).to(device)
    top_eigenvectors(rows, 64, max_iterations=2, backend=backend)


def main(backend: str, case: str) -> None:
    """Runs a case, or all."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in CASES if case == "all" else [case]:
        run(backend, name, device)
        if device.type == "cuda":
            torch.cuda.synchronize()
        print(f"{backend}, {name}: each op has run", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
