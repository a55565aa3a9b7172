"""The cone over training steps: each has weights of its own, so it has values of its own, and these are averaged.

Sums of several steps would be those of no model: vectors of different weights point elsewhere, and the cosines between
them are of no pair that any model makes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cone_kernels.integrations.scalars import named, statistics
from cone_kernels.metrics import leave_one_out, totals
from cone_kernels.state.cone_state import ConeState
from cone_kernels.state.moments import Moments
from cone_kernels.sums import GROUPS, jackknife_groups, jackknife_stderr


class StepMeans:
    """The mean over steps of each statistic, its standard error, and the last step's.

    The error is that of the sentences, given the steps: the grouped jackknife of the mean, a group of sentences of one
    step left out at a time. It does not grow with how far the weights move between the steps. A step that defines no
    value, as one of a single sentence, is left out of the mean.

    Args:
        token, pooling_gap: as in `cone_scalars`.

    Examples:
        >>> means = StepMeans()
        >>> means.add(first_state, n_sentences=32)
        >>> means.add(second_state, n_sentences=32)
        >>> means.scalars()
        {'cone/L6/anisotropy': 0.0552, 'cone/L6/anisotropy_stderr': 0.0031, 'cone/L6/anisotropy_last': 0.0549, ...}
    """

    def __init__(self, *, token: bool = False, pooling_gap: bool = False) -> None:
        self._statistics = statistics(token=token, pooling_gap=pooling_gap)
        self._layers: tuple[int, ...] = ()
        self._means: dict[str, _Mean] = {}
        self._offset = 0

    def add(self, state: ConeState, n_sentences: int) -> None:
        """Adds a step.

        Args:
            state: the sums of the step's sentences, numbered from 0.
            n_sentences: how many they are.
        """
        if state.layers != self._layers:  # the first step, or other layers than before
            self._layers, self._means, self._offset = state.layers, {}, 0
        first = _groups_of(n_sentences)
        state = replace(state, sentence=_cut(state.sentence, first), token=_cut(state.token, first))
        for name, statistic in self._statistics.items():
            value, left_out = statistic.of(state, totals), statistic.of(state, leave_one_out)
            filled = statistic.rows(state).count > 0
            self._means.setdefault(name, _Mean.of(value)).add(value, left_out, filled, self._offset)
        # The groups of the steps are dealt out one after the other, as if the sentences were numbered on.
        self._offset = (self._offset + first) % GROUPS

    def scalars(self) -> dict[str, float]:
        """`cone/L12/anisotropy`, its `_stderr`, and `_last` and `_last_stderr` of the last step; {} of no step."""
        columns: dict[str, Tensor] = {}
        for name, mean in self._means.items():
            columns[name], columns[f"{name}_stderr"] = mean.value(), mean.stderr()
            columns[f"{name}_last"], columns[f"{name}_last_stderr"] = mean.last, jackknife_stderr(*mean.last_left_out)
        return named(self._layers, columns)


@dataclass
class _Mean:
    """Sums over steps of the values that are defined, and how many they are; the same with each group left out."""

    total: Tensor  # (L,)
    n: Tensor  # (L,)
    left_out: Tensor  # (L, G)
    n_left_out: Tensor  # (L, G)
    filled: Tensor  # (L, G) bool: the groups that have a sentence in some step
    last: Tensor  # (L,)
    last_left_out: tuple[Tensor, Tensor]  # (L, g) each: the last step's values with each group left out, and `filled`

    @classmethod
    def of(cls, like: Tensor) -> _Mean:
        by_group = like.new_zeros(len(like), GROUPS)
        filled = torch.zeros_like(by_group, dtype=torch.bool)
        total, n = torch.zeros_like(like), torch.zeros_like(like)
        return cls(total, n, by_group, by_group.clone(), filled, like, (by_group, filled))

    def add(self, value: Tensor, left_out: Tensor, filled: Tensor, offset: int) -> None:
        """Adds the values (L,) of a step, and those (L, g) with each of its groups left out, which are the first g."""
        self.total += value.nan_to_num(nan=0.0)
        self.n += ~value.isnan()
        # Without a group in which it has no sentence, the step has the value that it has.
        everywhere = value[:, None].repeat(1, GROUPS)
        at = torch.arange(offset, offset + left_out.shape[1], device=value.device) % GROUPS
        everywhere[:, at] = left_out
        self.left_out += everywhere.nan_to_num(nan=0.0)
        self.n_left_out += ~everywhere.isnan()
        self.filled[:, at] |= filled
        self.last, self.last_left_out = value, (left_out, filled)

    def value(self) -> Tensor:
        return self.total / torch.where(self.n > 0, self.n, torch.nan)

    def stderr(self) -> Tensor:
        values = self.left_out / torch.where(self.n_left_out > 0, self.n_left_out, torch.nan)
        return jackknife_stderr(values, self.filled)


def _groups_of(n_sentences: int) -> int:
    """In how many groups, the first ones, so many sentences are that are numbered from 0."""
    n = min(n_sentences, 4 * GROUPS)  # these fill all groups
    return int(jackknife_groups(torch.arange(n)).max()) + 1 if n > 0 else 0


def _cut(moments: Moments, groups: int) -> Moments:
    """What a mean cosine takes of the first groups, to read; most groups of a step are empty."""
    sums = {name: getattr(moments, name)[:, :groups] for name in ("count", "unit_sum", "unit_sq_total")}
    return Moments.of_sums(moments.level, moments.layers, moments.dim, sums)
