"""The cone over training steps: each has weights of its own, so it has values of its own, and these are averaged.

Sums of several steps would be those of no model: vectors of different weights point elsewhere, and the cosines between
them are of no pair that any model makes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cone_kernels.integrations.scalars import named, statistics
from cone_kernels.metrics import leave_one_out, totals
from cone_kernels.state.cone_state import ConeState
from cone_kernels.sums import GROUPS, jackknife_stderr


class StepMeans:
    """The mean over steps of each statistic, its standard error, and the last step's.

    The error is that of the sentences, given the steps: the grouped jackknife of the mean, a group of sentences of one
    step left out at a time. It does not grow with how far the weights move between the steps. A step that defines no
    value, as one of a single sentence, is left out of the mean.

    Args:
        token, pooling_gap: as in `cone_scalars`.

    Example:
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
        self._last: ConeState | None = None

    def add(self, state: ConeState, n_sentences: int) -> None:
        """Adds a step.

        Args:
            state: the sums of the step's sentences, numbered from 0.
            n_sentences: how many they are.
        """
        if state.layers != self._layers:  # the first step, or other layers than before
            self._layers, self._means, self._offset = state.layers, {}, 0
        for name, statistic in self._statistics.items():
            filled = statistic.rows(state).count > 0
            self._means.setdefault(name, _Mean.of(filled)).add(
                statistic.of(state, totals), statistic.of(state, leave_one_out), filled, self._offset
            )
        # The groups of the steps are dealt out one after the other, as if the sentences were numbered on.
        self._offset = (self._offset + min(n_sentences, GROUPS)) % GROUPS
        self._last = state

    def scalars(self) -> dict[str, float]:
        """`cone/L12/anisotropy`, its `_stderr`, and `_last` and `_last_stderr` of the last step; {} of no step."""
        columns: dict[str, Tensor] = {}
        for name, mean in self._means.items():
            assert self._last is not None
            columns[name], columns[f"{name}_stderr"] = mean.value(), mean.stderr()
            columns[f"{name}_last"] = self._statistics[name].of(self._last, totals)
            columns[f"{name}_last_stderr"] = self._statistics[name].stderr(self._last)
        return named(self._layers, columns)


@dataclass
class _Mean:
    """Sums over steps of the values that are defined, and how many they are; the same with each group left out."""

    total: Tensor  # (L,)
    n: Tensor  # (L,)
    left_out: Tensor  # (L, G)
    n_left_out: Tensor  # (L, G)
    filled: Tensor  # (L, G) bool: the groups that have a sentence in some step

    @classmethod
    def of(cls, like: Tensor) -> _Mean:
        zeros = torch.zeros_like(like, dtype=torch.float64)
        return cls(zeros[:, 0].clone(), zeros[:, 0].clone(), zeros, zeros.clone(), torch.zeros_like(like))

    def add(self, value: Tensor, left_out: Tensor, filled: Tensor, offset: int) -> None:
        dealt = left_out.roll(offset, 1)
        self.total += value.nan_to_num(nan=0.0)
        self.n += ~value.isnan()
        self.left_out += dealt.nan_to_num(nan=0.0)
        self.n_left_out += ~dealt.isnan()
        self.filled |= filled.roll(offset, 1)

    def value(self) -> Tensor:
        return self.total / torch.where(self.n > 0, self.n, torch.nan)

    def stderr(self) -> Tensor:
        values = self.left_out / torch.where(self.n_left_out > 0, self.n_left_out, torch.nan)
        return jackknife_stderr(values, self.filled)
