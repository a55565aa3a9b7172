"""Each op of a GPU backend once, on small odd shapes: what compute-sanitizer watches.

python -m bench.gpu.small_case BACKEND all|CASE
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WIDTHS, DTYPES = (65, 128, 1000), ("float32", "bfloat16")
MANY_VECTORS = "many-vectors"
# Compiled apart: a process for each compiles them all in the time of one.
CASES = (*(f"{d}-{dtype}" for d in WIDTHS for dtype in DTYPES), MANY_VECTORS)
_FEW = "few"
# Of a tenth of the work, for checkers that slow each access to memory down a hundredfold and more.
FEW_CASES = tuple(f"{case}-{_FEW}" for case in ("65-float32", "128-bfloat16", "1000-bfloat16", MANY_VECTORS))


@dataclass(frozen=True)
class Sizes:
    """How much of everything: layers, sentences and tokens of each; rows and iterations of the eigenvectors."""

    layers: int = 3
    sentences: int = 21
    tokens: int = 7
    rows: int = 300
    iterations: int = 6


def run(backend: str, case: str, device: torch.device) -> None:
    """One of `CASES` or `FEW_CASES`, on a device."""
    import torch

    few = case.endswith(f"-{_FEW}")
    sizes = Sizes(layers=2, sentences=5, tokens=4, rows=96, iterations=2) if few else Sizes()
    case = case.removesuffix(f"-{_FEW}")
    if case == MANY_VECTORS:
        many_vectors(backend, sizes, device)
    else:
        d, dtype = case.split("-")
        every_op(backend, int(d), getattr(torch, dtype), sizes, device)


def every_op(backend: str, d: int, dtype: torch.dtype, sizes: Sizes, device: torch.device) -> None:
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

    layers, sentences, tokens = sizes.layers, sizes.sentences, sizes.tokens
    hidden = torch.randn(layers, sentences, tokens, d, generator=torch.Generator().manual_seed(d)).to(dtype).to(device)
    mask = torch.arange(tokens, device=device) < torch.arange(sentences, device=device)[:, None] % (tokens + 1)
    pool_moments(hidden, mask, backend=backend)
    # Copies of neighbours with one in between are not evenly spaced in memory.
    copies = [hidden[layer].clone() for layer in (0, 1, 1, layers - 1)]
    pool_moments([copies[0], copies[1], copies[3]], mask, backend=backend)
    starts = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
    pool_moments(hidden[:, mask], cu_seqlens=starts, backend=backend)
    rows = hidden.flatten(1, 2)
    row_moments(rows, backend=backend)
    row_moments(rows, sentence_ids=torch.arange(rows.shape[1], device=device) * 5, backend=backend)
    second_moment(rows, backend=backend)
    second_moment(rows, center=True, backend=backend)
    limited = {"max_iterations": sizes.iterations, "backend": backend}
    top_eigenvectors(rows, 2, **limited)
    top_eigenvectors(covariance=second_moment(rows, backend=backend).float(), k=2, **limited)
    leaf = hidden.detach().requires_grad_()
    pooled = masked_mean_pool(leaf, mask, backend=backend)
    mean_pairwise_cosine(pooled, backend=backend).sum().backward()


def many_vectors(backend: str, sizes: Sizes, device: torch.device) -> None:
    """A block of 72 vectors, no power of two, on data; of few of one layer, and one step."""
    import torch

    from cone_kernels import top_eigenvectors

    rows = torch.randn(sizes.layers - 1, sizes.rows, 128, generator=torch.Generator().manual_seed(0)).to(device)
    top_eigenvectors(rows, 64, max_iterations=min(2, sizes.iterations - 1), backend=backend)


def main(backend: str, case: str) -> None:
    """Runs a case, or all of `CASES`."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in CASES if case == "all" else [case]:
        run(backend, name, device)
        if device.type == "cuda":
            torch.cuda.synchronize()
        print(f"{backend}, {name}: each op has run", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
