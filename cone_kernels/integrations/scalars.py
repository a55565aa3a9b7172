"""A state as named numbers, for the loggers of training jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cone_kernels import metrics
from cone_kernels.experiments.layers import shape_of
from cone_kernels.metrics import Totals, leave_one_out, totals
from cone_kernels.state.cone_state import ConeState
from cone_kernels.state.moments import Moments
from cone_kernels.statistics.estimates import Estimates
from cone_kernels.sums import jackknife_stderr

_ROGUE = 3  # dimensions, as `cone layers` lists them

Sums = Callable[[Moments], Totals]


@dataclass(frozen=True)
class Statistic:
    """A number of each layer that is logged with its standard error.

    Attributes:
        of: its values, (L,) of `metrics.totals` and (L, G) of `metrics.leave_one_out`.
        rows: of a state, the rows whose groups are left out in turn.
    """

    of: Callable[[ConeState, Sums], Tensor]
    rows: Callable[[ConeState], Moments]

    def stderr(self, state: ConeState) -> Tensor:
        """Its grouped-jackknife standard error, (L,)."""
        return jackknife_stderr(self.of(state, leave_one_out), self.rows(state).count > 0)


def _sentence(state: ConeState, sums: Sums = totals) -> Tensor:
    return metrics.anisotropy(state.sentence, sums)


def _token(state: ConeState, sums: Sums = totals) -> Tensor:
    return metrics.anisotropy(state.token, sums)


def statistics(*, token: bool, pooling_gap: bool) -> Mapping[str, Statistic]:
    """What is logged of a state, by name.

    Args:
        token, pooling_gap: as in `cone_scalars`.
    """
    found = {"anisotropy": Statistic(_sentence, lambda state: state.sentence)}
    if token:
        found["token_anisotropy"] = Statistic(_token, lambda state: state.token)
    if pooling_gap:
        gap = Statistic(lambda state, sums: _sentence(state, sums) - _token(state, sums), lambda state: state.sentence)
        found["pooling_gap"] = gap
    return found


def named(layers: Sequence[int], columns: Mapping[str, Tensor]) -> dict[str, float]:
    """`cone/L12/NAME` of each layer, from the columns (L,) by name."""
    values = {name: column.tolist() for name, column in columns.items()}
    return {f"cone/L{layer}/{name}": column[at] for at, layer in enumerate(layers) for name, column in values.items()}


def cone_scalars(
    state: ConeState, *, layers: Sequence[int] | None = None, token: bool = False, pooling_gap: bool = False
) -> dict[str, float]:
    """`cone/L12/anisotropy` and `cone/L12/anisotropy_stderr` of each layer; NaN where the data defines none.

    Where the state keeps second moments also, of sentence vectors and without an error: the geometry of
    `metrics.geometry` (`cone/L12/rank_me`, `effective_rank`, `participation_ratio`, `iso_score` and
    `explained_variance_ratio`), the `mean_norm` and the `norm_deviation` of the lengths, the `mean_deviation` and the
    `least_deviation` of the dimensions, and what the three dimensions that contribute most do: `rogue_share` of the
    mean cosine, the number of the first, `rogue_dimension`, and `anisotropy_without_rogue`.

    Args:
        state: any.
        layers: the layers' numbers; default all.
        token: also `cone/L12/token_anisotropy`, of tokens instead of sentences.
        pooling_gap: also `cone/L12/pooling_gap`, the sentence level less the token level.

    Raises:
        ValueError: the state has no such layer.

    Examples:
        >>> cone_scalars(probe.state, layers=[6])
        {'cone/L6/anisotropy': 0.0552, 'cone/L6/anisotropy_stderr': 0.0031}
    """
    unknown = [] if layers is None else sorted(set(layers) - set(state.layers))
    if unknown:
        raise ValueError(f"layers: got {unknown}; it must be among the state's layers {state.layers}")
    columns: dict[str, Tensor] = {}
    for name, statistic in statistics(token=token, pooling_gap=pooling_gap).items():
        columns[name] = statistic.of(state, totals)
        columns[f"{name}_stderr"] = statistic.stderr(state)
    numbers = state.layers if layers is None else layers
    at = [state.layers.index(number) for number in numbers]
    values = named(numbers, {name: column[at] for name, column in columns.items()})
    if "second_moment" in state.sentence.fields:
        for number in numbers:
            values |= {f"cone/L{number}/{name}": value for name, value in _shape(state.sentence.select(number)).items()}
    return values


def _shape(moments: Moments) -> dict[str, float]:
    """How the vectors of one layer spread, by name; {} for fewer than two."""
    moments = moments.on_cpu()
    anisotropy = float(metrics.anisotropy(moments))
    rogue, without, geometry = shape_of(moments, _ROGUE, anisotropy)
    if geometry is None:
        return {}
    deviations = metrics.deviations(moments)[0]
    return geometry.values | {
        "mean_norm": float(metrics.mean_norm(moments)),
        "norm_deviation": float(metrics.norm_deviation(moments)),
        "mean_deviation": float(deviations.mean()),
        "least_deviation": float(deviations.min()),
        "rogue_share": sum(one.share for one in rogue),
        "rogue_dimension": float(rogue[0].dimension) if rogue else float("nan"),
        "anisotropy_without_rogue": without.value,
    }


def estimates(state: ConeState, *, token: bool = False, pooling_gap: bool = False) -> dict[str, Estimates]:
    """What is logged of a state with its error, by name, as estimates (L,) whose changes can be paired.

    Args:
        token, pooling_gap: as in `cone_scalars`.
    """
    return {
        name: Estimates.of_jackknife(
            statistic.of(state, totals).cpu(),
            statistic.of(state, leave_one_out).cpu(),
            statistic.rows(state).count.cpu(),
        )
        for name, statistic in statistics(token=token, pooling_gap=pooling_gap).items()
    }


def change_scalars(
    layers: Sequence[int], now: Mapping[str, Estimates], before: Mapping[str, Estimates]
) -> dict[str, float]:
    """`cone/L12/anisotropy_change` and its `_stderr`: the differences of estimates of the same sentences.

    Group for group the jackknife leaves the same sentences out of both, as `experiments.compare` does where its states
    are paired.

    Args:
        layers: the layers' numbers.
        now, before: what `estimates` gave.
    """
    columns: dict[str, Tensor] = {}
    for name, found in now.items():
        change = found.less(before[name])
        columns[f"{name}_change"], columns[f"{name}_change_stderr"] = change.values, change.stderr
    return named(layers, columns)


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
