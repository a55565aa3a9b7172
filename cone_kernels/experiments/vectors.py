"""Vectors that somebody has already: how tight their cone is, what carries it, and what lies along its axes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cone_kernels.experiments.cone_claims import cone_claims, share_claims
from cone_kernels.experiments.layers import shape_of
from cone_kernels.experiments.level import levels_of
from cone_kernels.experiments.solved_axes import extremes_of, solved_axes, window
from cone_kernels.experiments.vectors_result import VectorAxes, VectorAxis, VectorProjection, VectorsResult
from cone_kernels.experiments.without_rogue import of_vectors
from cone_kernels.names import OUTPUT, VectorFormat
from cone_kernels.runs.measure_vectors import VectorsOptions, measure_vectors
from cone_kernels.runs.measurement import Measurement, from_state, threads_of
from cone_kernels.vector_files import Vectors

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cone_kernels.state.cone_state import ConeState
    from cone_kernels.statistics.extremes import Extreme


def vectors(
    source: Any = None,
    *,
    state: ConeState | str | os.PathLike[str] | None = None,
    format: VectorFormat | None = None,  # noqa: A002
    field: str | None = None,
    ids: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    scale: float | None = None,
    second_moment: bool = False,
    rogue: int = 3,
    axis: int | None = None,
    top: int = 5,
    save_state: str | os.PathLike[str] | None = None,
    **options: Unpack[VectorsOptions],
) -> VectorsResult:
    """Measures vectors that are in files or in Python; no model is needed, and the rows are read once.

    Args:
        source: a file or several, a `Vectors`, an array or a tensor (n, d), or an iterable of batches or rows; what
            `Vectors` and `Vectors.from_rows` take.
        state: a state of vectors saved before, in place of a source.
        format, field, scale: as in `Vectors`.
        ids: texts or ids of the rows, as in `Vectors`; of rows given in Python a sequence of strings.
        second_moment: also the `Geometry`: participation ratio, IsoScore, ...; that is a product of matrices, and takes
            many times as long as reading.
        rogue: how many of the dimensions that contribute most are listed.
        axis: how many of the top axes to find; implies `second_moment`, and the rows are read a second time.
        top: vectors at each end of an axis.
        save_state: where to write the state, which `compare`, `rotation`, `center` and `cone show` take.
        options: `VectorsOptions`: limit, backend, threads, workers, shard, checkpoint, resume, ...

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: a file cannot be read.
        ModuleNotFoundError: pyarrow, datasets or faiss is not installed.
        VectorFileError: a file is damaged, or holds no vectors of one width and dtype.
        StateFileError: the state's file is damaged.
        BackendUnavailable: the backend asked for cannot run here.
        TypeError: an option is unknown, the source is of another type, or is an iterator and axes are asked for.
        ValueError: an option is out of range or does not go with another; the state has layers of a model.

    Examples:
        >>> result = vectors("minilm.npy", axis=1, ids="sentences.txt")
        >>> result.level.anisotropy, result.axis.components[0].top[0].id
    """
    for name, value, least in (("rogue", rogue, 0), ("axis", axis, 1), ("top", top, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name}: got {value}; it must be at least {least}")
    about: dict[str, Any] = {"format": format, "field": field, "ids": ids, "scale": scale}
    if state is not None:
        asked = {"source": source, **about, "axis": axis, "save_state": save_state, **options}
        taken = [name for name, value in asked.items() if value is not None] + ["second_moment"] * second_moment
        if taken:
            raise ValueError(f"state: got one together with {', '.join(taken)}; nothing is read, so leave them out")
        return vectors_of(from_state(state), rogue=rogue)
    opened = open_vectors(source, **about)
    if axis is not None and opened.read_once:
        raise TypeError(f"source: got an iterator with axis {axis}; it must be one that can be read twice")
    if axis is not None and options.get("shard") is not None:
        raise ValueError(f"axis: got {axis} with shard {options['shard']!r}; the axes are those of all vectors")
    measurement = measure_vectors(
        opened, second_moment=second_moment or axis is not None, save_state=save_state, **options
    )
    with threads_of(measurement):
        return vectors_of(measurement, rogue=rogue, axis=axis, top=top, source=opened)


def open_vectors(
    source: Any,
    *,
    format: VectorFormat | None = None,  # noqa: A002
    field: str | None = None,
    ids: Any = None,
    scale: float | None = None,
) -> Vectors:
    """What `vectors` takes as a `Vectors`.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError, ModuleNotFoundError, TypeError, ValueError: as `vectors`.
    """
    given = {"format": format, "field": field, "ids": ids, "scale": scale}
    if source is None:
        raise ValueError("source: got none; it must be files, vectors in Python, or a state in its place")
    if isinstance(source, (str, os.PathLike)) or _all_paths(source):
        return Vectors(source, format=format, field=field, ids=ids, scale=scale)
    in_file = ("format", "field", "ids", "scale") if isinstance(source, Vectors) else ("format", "field")
    taken = [name for name in in_file if given[name] is not None]
    if taken:
        of = "a Vectors, which has its own" if isinstance(source, Vectors) else "vectors given in Python"
        raise ValueError(f"{', '.join(taken)}: got a value for {of}; leave it out")
    return source if isinstance(source, Vectors) else Vectors.from_rows(source, ids=ids, scale=scale)


def vectors_of(
    measurement: Measurement, *, rogue: int = 3, axis: int | None = None, top: int = 5, source: Vectors | None = None
) -> VectorsResult:
    """The result of a measurement of vectors; see `vectors`.

    Args:
        measurement: of `measure_vectors`, or of a saved state of vectors.
        rogue, axis, top: as in `vectors`.
        source: the vectors, to be read again for the axes and the ids of what lies at their ends.

    Raises:
        ValueError: the measurement is of a model, or the vectors do not allow so many axes.
    """
    state = measurement.state
    if "vectors" not in measurement.model or state.output is None:
        raise ValueError(f"state: got one of a model, {measurement.name}; it must be one of vectors (see `layers`)")
    moments = state.output
    (level,) = levels_of(moments, rows="vectors")
    found, without, geometry = shape_of(moments, rogue, level.anisotropy)
    share = next(iter(share_claims(moments, rogue)), None)
    if source is not None and not source.read_once and share is not None and share.verdict == "greater":
        without = of_vectors(source, measurement.corpus["sentences"], [one.dimension for one in found])
    return VectorsResult(
        vectors={"name": measurement.name, "rows": measurement.corpus["sentences"], **_described(measurement)},
        corpus=measurement.corpus,
        level=level,
        rogue_dimensions=found,
        without_rogue=without,
        geometry=geometry,
        axis=None if axis is None or source is None else _axes(measurement, source, axis, top),
        manifest={**measurement.manifest, "vectors": {"rogue": rogue, "axis": axis, "top": top}},
        state=state,
        cone=cone_claims(moments)[0],
        share=share,
    )


def _described(measurement: Measurement) -> dict[str, Any]:
    about = measurement.model["vectors"]
    return {name: about.get(name) for name in ("dim", "dtype", "scale", "fingerprint")}


def _axes(measurement: Measurement, source: Vectors, k: int, top: int) -> VectorAxes:
    solved = solved_axes(measurement.moments(OUTPUT), k, "vectors", "vectors")
    blocks = source.blocks(0, measurement.corpus["sentences"], window(source.dim))
    extremes = extremes_of(blocks, solved, top)
    ends = [(extremes.highest(at), extremes.lowest(at)) for at in range(k)]
    rows = sorted({one.index for pair in ends for end in pair for one in end})
    names = dict(zip(rows, source.ids_of(rows), strict=True)) if source.has_ids else {}

    def named(end: Iterable[Extreme]) -> tuple[VectorProjection, ...]:
        return tuple(VectorProjection(one.index, one.projection, names.get(one.index)) for one in end)

    components = tuple(
        VectorAxis(**solved.numbers(at), top=named(ends[at][0]), bottom=named(ends[at][1])) for at in range(k)
    )
    return VectorAxes(components, float(solved.found.centered_mean_cosine), tuple(solved.reasons("the vectors")))


def _all_paths(source: Any) -> bool:
    return isinstance(source, (list, tuple)) and all(isinstance(one, (str, os.PathLike)) for one in source)
