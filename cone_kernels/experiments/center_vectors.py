"""The fix for vectors that somebody has already: a centering fitted on them, measured on them, and applied to them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from cone_kernels.experiments.centering_result import CenteringResult
from cone_kernels.experiments.cone_claims import cone_claims
from cone_kernels.experiments.dependence import Dependence
from cone_kernels.experiments.held_out import Blocks, cross_fitted, judged, of_same_rows
from cone_kernels.experiments.level import Level, levels_of
from cone_kernels.experiments.solved_axes import window
from cone_kernels.files import writing
from cone_kernels.names import OUTPUT, CenteringMethod, Layer
from cone_kernels.runs.measure_vectors import measure_vectors
from cone_kernels.runs.measurement import Measurement, threads_of

if TYPE_CHECKING:
    from torch import Tensor

    from cone_kernels.centering import Centering
    from cone_kernels.vector_files import Vectors


def center_vectors(
    source: Vectors,
    *,
    fitted_on: Measurement | None,
    layer: Layer | None,
    method: CenteringMethod,
    components: int | None,
    shrinkage: float | None,
    field: str | None,
    write: str | os.PathLike[str] | None,
    output: str | os.PathLike[str] | None,
    **options: Any,
) -> CenteringResult:
    """Fits a centering, and reads the vectors once more to apply it to them; see `center`.

    Args:
        source: the vectors; bytes are opened as float32.
        fitted_on: a saved state that the centering is fitted on; None fits it on the vectors themselves.
        layer: of that state.
        method, components, shrinkage, output: as in `center`.
        field: what the tensor or column that is written is called.
        write: where the opened vectors go, in the order they were in; None writes none. What was zero or not finite is
            written too: as the zero vector is mapped, and as NaN.
        options: `VectorsOptions`.

    Raises:
        TypeError, ValueError: as `center`; the vectors can be read only once; they cannot be written so.
    """
    from cone_kernels.centering import Centering
    from cone_kernels.vector_files.writing import check_writable, written

    if source.read_once:
        raise TypeError("vectors: got an iterator; it must be one that can be read twice")
    if options.get("shard") is not None:
        raise ValueError(f"shard: got {options['shard']!r}; a centering is fitted on all vectors")
    if write is not None:
        check_writable(write, source.dtype)
    needs_moment = fitted_on is None and method != "mean"
    measurement = measure_vectors(source, second_moment=needs_moment, **options)
    fit: dict[str, Any] = {"method": method, "components": components, "shrinkage": shrinkage}
    with threads_of(measurement):
        state = measurement.state if fitted_on is None else fitted_on.state
        centering = Centering.fit(state, layer=OUTPUT if fitted_on is None else fitted_on.layer(layer), **fit)
        if centering.dim != source.dim:
            raise ValueError(f"state: got width {centering.dim}; it must be {source.dim}, the width of the vectors")
        rows = measurement.corpus["sentences"]
        to = nullcontext(None) if write is None else written(write, rows, source.dim, source.dtype, field)
        with to as take:
            after = _opened(source, rows, centering, take)
        moments = measurement.moments(OUTPUT)
        same = fitted_on is None or of_same_rows(fitted_on.moments(fitted_on.layer(layer)), moments)
        blocks = _used(source, rows)
        found = cross_fitted(blocks, moments, fit) if same else judged(blocks, moments, [centering])
    if output is not None:
        with writing(output):
            centering.save(output)
    given = measurement.manifest
    return CenteringResult(
        model=measurement.model,
        corpus=measurement.corpus,
        layer=OUTPUT,
        layer_name=measurement.layer_name(OUTPUT),
        before=levels_of(measurement.moments(OUTPUT), rows="vectors")[0],
        after=after,
        fitted_on={"state": None if fitted_on is None else fitted_on.name, "sentences": centering.count},
        cone=cone_claims(moments)[0],
        held_out=found,
        file=None if output is None else os.fspath(output),
        manifest={
            **given,
            "centering_fingerprint": centering.fingerprint(),
            "written": None if write is None else os.fspath(write),
        },
        centering=centering,
        dependence=Dependence.of_moments(moments),
    )


def _used(source: Vectors, rows: int) -> Blocks:
    """The vectors that are in the sums, with their groups; they are read at every call."""
    from cone_kernels.runs.sentence_vectors import used_blocks
    from cone_kernels.sums import jackknife_groups

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        for indices, found in used_blocks(source.blocks(0, rows, window(source.dim))):
            yield found, jackknife_groups(indices)

    return blocks


def _opened(source: Vectors, rows: int, centering: Centering, take: Callable[[Tensor], None] | None) -> Level:
    """The level of the vectors after the centering, in float64; each block is handed on, where it is to be written."""
    from cone_kernels.runs.sentence_vectors import used_rows
    from cone_kernels.state.cone_state import Moments

    moments = Moments.empty("sentence", [0], source.dim)
    for first, block in source.blocks(0, rows, window(source.dim)):
        given = block.double()
        opened, used = centering(given), used_rows(given)
        moments.update(opened[used], sentence_ids=used.nonzero()[:, 0] + first)
        if take is not None:
            take(opened)
    return levels_of(moments, rows="vectors")[0]
