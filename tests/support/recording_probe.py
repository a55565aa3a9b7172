"""A probe that keeps what it adds, and the same statistics computed plainly, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cone_kernels import metrics
from cone_kernels.probe.cone_probe import ConeProbe
from cone_kernels.probe.forward import ProbedForward
from cone_kernels.state.cone_state import ConeState


class RecordingProbe(ConeProbe):
    """Keeps copies of the tensors handed to the state, by layer, of every forward."""

    def __init__(self, model: Any, **options: Any) -> None:
        super().__init__(model, **options)
        self.added: dict[int, list[Tensor]] = {}

    def _add_held(self, forward: ProbedForward, *rest: Any, **options: Any) -> None:
        for layer, hidden in forward.held:
            self.added.setdefault(layer, []).append(hidden.clone())
        super()._add_held(forward, *rest, **options)


def plain_anisotropy(rows: Tensor) -> float:
    """Mean cosine of distinct pairs of rows (n, d), by the n x n matrix in float64."""
    units = torch.nn.functional.normalize(rows.double(), dim=1)
    cosines = units @ units.T
    n = len(rows)
    return float((cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1)))


def assert_statistics_of(state: ConeState, batches: Sequence[tuple[Sequence[Tensor], Tensor]]) -> None:
    """The state's counts and anisotropy at both levels are those of (hidden_states, mask) pairs."""
    n_layers = len(batches[0][0])
    assert state.layers == tuple(range(n_layers))
    for layer in range(n_layers):
        tokens = torch.cat([hidden[layer][mask.bool()] for hidden, mask in batches])
        rows = [row[kept] for hidden, mask in batches for row, kept in zip(hidden[layer], mask.bool(), strict=True)]
        sentences = torch.stack([row.double().mean(dim=0) for row in rows])
        for moments, wanted in ((state.token, tokens), (state.sentence, sentences)):
            assert int(moments.count[layer].sum()) == len(wanted)
            got = float(metrics.anisotropy(moments)[layer])
            assert abs(got - plain_anisotropy(wanted)) < 1e-6, (layer, moments.level)


def hidden_states(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        states: tuple[Tensor, ...] = model(**batch, output_hidden_states=True)["hidden_states"]
    return states


def probed(model: nn.Module, *batches: dict[str, Tensor], **options: Any) -> ConeState:
    with ConeProbe(model, **options) as probe, torch.no_grad():
        for batch in batches:
            model(**batch)
    return probe.state


def same(a: ConeState, b: ConeState) -> bool:
    return a.fingerprint() == b.fingerprint()
