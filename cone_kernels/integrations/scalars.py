"""A state as named numbers, for the loggers of training jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cone_kernels import metrics
from cone_kernels.state.cone_state import ConeState


def cone_scalars(
    state: ConeState, *, layers: Sequence[int] | None = None, token: bool = False, pooling_gap: bool = False
) -> dict[str, float]:
    """`cone/L12/anisotropy` and `cone/L12/anisotropy_stderr` of each layer; NaN where the data defines none.

    Args:
        state: any.
        layers: the layers' numbers; default all.
        token: also `cone/L12/token_anisotropy`, of tokens instead of sentences.
        pooling_gap: also `cone/L12/pooling_gap`, the sentence level less the token level.

    Raises:
        ValueError: the state has no such layer.

    Example:
        >>> cone_scalars(probe.state, layers=[6])
        {'cone/L6/anisotropy': 0.0552, 'cone/L6/anisotropy_stderr': 0.0031}
    """
    unknown = [] if layers is None else sorted(set(layers) - set(state.layers))
    if unknown:
        raise ValueError(f"layers: got {unknown}; it must be among the state's layers {state.layers}")
    columns = {
        "anisotropy": metrics.anisotropy(state.sentence),
        "anisotropy_stderr": metrics.anisotropy_stderr(state.sentence),
    }
    if token:
        columns["token_anisotropy"] = metrics.anisotropy(state.token)
        columns["token_anisotropy_stderr"] = metrics.anisotropy_stderr(state.token)
    if pooling_gap:
        columns["pooling_gap"] = metrics.pooling_gap(state)
        columns["pooling_gap_stderr"] = metrics.pooling_gap_stderr(state)
    values = {name: column.tolist() for name, column in columns.items()}
    numbers = state.layers if layers is None else layers
    return {
        f"cone/L{number}/{name}": column[state.layers.index(number)]
        for number in numbers
        for name, column in values.items()
    }


def log_cone(writer: Any, state: ConeState, step: int, **options: Any) -> dict[str, float]:
    """Writes `cone_scalars` of a state; returns them.

    Args:
        writer: anything with `add_scalar(name, value, step)`, as TensorBoard's SummaryWriter, or with
            `log(values, step=step)`, as a W&B run.
        state: any.
        step: of the training job.
        options: of `cone_scalars`.

    Raises:
        TypeError: `writer` has neither method.
    """
    values = cone_scalars(state, **options)
    if hasattr(writer, "add_scalar"):
        for name, value in values.items():
            writer.add_scalar(name, value, step)
    elif hasattr(writer, "log"):
        writer.log(values, step=step)
    else:
        raise TypeError(f"writer: got {type(writer).__name__}; it must be an object with add_scalar or log")
    return values
