"""The same texts by two sources, row by row: another precision, another runtime, another server."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from cone_kernels.doctor import versions
from cone_kernels.experiments.result import Estimate
from cone_kernels.experiments.rows_result import FarRow, RowsResult
from cone_kernels.experiments.vectors import open_vectors
from cone_kernels.names import VectorFormat
from cone_kernels.runs.progress import Progress
from cone_kernels.vector_files import BLOCK_ROWS, Vectors

if TYPE_CHECKING:
    from torch import Tensor


def rows(
    a: Any,
    b: Any,
    *,
    format: VectorFormat | None = None,  # noqa: A002
    field: str | None = None,
    ids: str | None = None,
    limit: int | None = None,
    k: int = 10,
    top: int = 5,
    progress: Callable[[Progress], None] | None = None,
) -> RowsResult:
    """Compares the vectors that two sources give for the same texts, row i of the one with row i of the other.

    Both are read once, a block at a time. The mean cosine of twins is judged against that of permuted rows, since in a
    narrow cone unrelated rows are alike too; then after the best rotation, which is fitted on other rows than it is
    judged on; and by whether both agree on the nearest rows.

    Args:
        a, b: paths of files of vectors, `Vectors`, or what `Vectors.from_rows` takes; with as many rows.
        format, field: as in `Vectors`, of both, which are files then.
        ids: texts or ids of the rows: a column or a file, of `a` where it is a file.
        limit: only the first so many rows.
        k: how many nearest rows are compared.
        top: how many of the rows that differ most are listed, with their ids where `a` or `b` has some.
        progress: called after every block of rows.

    Raises:
        FileNotFoundError, IsADirectoryError, VectorFileError: a file cannot be read.
        TypeError: it is none of these.
        ValueError: they have different numbers of rows, none in common that is used, or an argument is out of range.

    Examples:
        >>> rows("fp32.npy", "bf16.npy").verdict
        'same up to rounding'
    """
    for name, value in (("k", k), ("top", top), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}; it must be at least 1")
    import torch

    from cone_kernels.statistics.neighbours import EvenlySpaced
    from cone_kernels.statistics.twin_rows import TwinRows

    started = time.perf_counter()
    about: dict[str, Any] = {"format": format, "field": field}
    sources = [open_vectors(a, ids=ids, **about), open_vectors(b, **about)]
    expected = next((source.rows for source in sources if source.rows is not None), None)
    expected = limit if expected is None else min(expected, limit or expected)
    twins, spaced = TwinRows(sources[0].dim, sources[1].dim), EvenlySpaced()
    read = 0
    for first, (rows_a, rows_b) in _blocks(sources[0], sources[1], limit):
        used = twins.add(rows_a, rows_b, first)
        spaced.add(rows_a[used], rows_b[used])
        read += len(rows_a)
        if progress is not None:
            progress(Progress(read, 0, expected, elapsed=time.perf_counter() - started, unit="pairs"))
    if twins.count == 0:
        raise ValueError(f"a, b: got {read} rows and no pair of which both are finite and not zero; it must be some")
    cosines, permuted = twins.cosines, twins.permuted
    quantiles = {"least": 0.0, "percent_1": 0.01, "median": 0.5}
    ordered = cosines.sort().values
    ratio, ratio_error, spread = twins.log_ratio()
    scale = math.exp(ratio)
    return RowsResult(
        a=_about(sources[0], read),
        b=_about(sources[1], read),
        count=twins.count,
        n_left_out=twins.n_left_out,
        cosine=Estimate(*twins.cosine()) if twins.same_width else None,
        quantiles={name: float(ordered[int(q * (len(ordered) - 1))]) for name, q in quantiles.items() if len(ordered)},
        permuted=float(permuted.double().mean()) if len(permuted) else math.nan,
        rotation=twins.rotation(),
        norm_ratio=Estimate(scale, scale * ratio_error),
        norm_spread=spread,
        neighbours=spaced.overlap(k),
        furthest=_furthest(twins.furthest(top), sources),
        manifest={
            "versions": versions(),
            "threads": torch.get_num_threads(),
            "seconds": round(time.perf_counter() - started, 3),
        },
    )


def _blocks(a: Vectors, b: Vectors, limit: int | None) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """(number of the first row, the rows of both) block by block, up to a limit.

    Raises:
        ValueError: one ends before the other.
    """
    if None not in (a.rows, b.rows) and a.rows != b.rows:
        raise ValueError(f"a, b: got {a.rows} rows of {a.name} and {b.rows} of {b.name}; it must be as many of both")
    pairs = itertools.zip_longest(a.blocks(rows=BLOCK_ROWS), b.blocks(rows=BLOCK_ROWS))
    for one, other in pairs:
        lengths = [0 if found is None else len(found[1]) for found in (one, other)]
        if lengths[0] != lengths[1]:
            first = (one or other)[0]
            got = f"{first + lengths[0]} rows of {a.name} and {first + lengths[1]} of {b.name}"
            raise ValueError(f"a, b: got at least {got}; it must be as many of both")
        left = len(one[1]) if limit is None else limit - one[0]
        yield one[0], (one[1][:left], other[1][:left])
        if left <= len(one[1]) and limit is not None:
            return


def _about(source: Vectors, read: int) -> dict[str, Any]:
    about = {"name": source.name, "rows": read, "dim": source.dim, "dtype": source.kind, "scale": source.scale}
    return {**about, "fingerprint": source.fingerprint}


def _furthest(found: list[tuple[int, float]], sources: list[Vectors]) -> tuple[FarRow, ...]:
    named = next((source for source in sources if source.has_ids), None)
    ids: list[str | None] = named.ids_of([row for row, _ in found]) if named and found else [None] * len(found)
    return tuple(FarRow(row, cosine, name) for (row, cosine), name in zip(found, ids, strict=True))
