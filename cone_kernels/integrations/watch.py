"""Watches the model of a training job, in training and in evaluation apart: what the callbacks have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch.distributed as dist
from torch import Tensor, nn

from cone_kernels.distributed import all_reduce
from cone_kernels.integrations.scalars import cone_scalars
from cone_kernels.models.transformers_names import INNER_MODEL, STARTS, TOKENS
from cone_kernels.probe.calibration import bind_arguments, calibrating
from cone_kernels.probe.cone_probe import ConeProbe
from cone_kernels.probe.watched_forward import WatchedForward, in_backward, unwrapped

Phase = Literal["training", "evaluation"]


class ConeWatch:
    """Two probes on one model, one for training and one for evaluation, read and reset at each log.

    Which of them counts a forward is said by `begin_step` and `begin_evaluation`: the model's mode does not tell, for
    a model as it was loaded, or frozen, may be in evaluation mode while it is trained.

    Args:
        every: of the training steps watch those whose number is a multiple of `every`.
        layers, token, pooling_gap: as in `cone_scalars`.
        repeats: for the B samples of a forward which the loader repeats, (B,) bool, or None where it repeats none.
        probe_options: of `ConeProbe`.

    Raises:
        ValueError: `every` is below 1.
    """

    def __init__(
        self,
        *,
        every: int = 10,
        layers: Sequence[int] | None = None,
        token: bool = False,
        pooling_gap: bool = False,
        repeats: Callable[[int], Tensor | None] | None = None,
        **probe_options: Any,
    ) -> None:
        if every < 1:
            raise ValueError(f"every: got {every}; it must be 1 (each step) or more")
        self._every = every
        self._scalars = {"layers": layers, "token": token, "pooling_gap": pooling_gap}
        self._repeats = repeats
        self._probe_options = probe_options
        self._probes: dict[Phase, ConeProbe] = {}
        self._noted: WatchedForward | None = None

    @property
    def attached(self) -> bool:
        """Whether a model is watched now."""
        return bool(self._probes)

    def attach(self, model: nn.Module) -> None:
        """Watch a Hugging Face model, or the one in a SentenceTransformer, until `detach`.

        Raises:
            TypeError, RuntimeError: as `ConeProbe`.
        """
        self.detach()
        inner = transformer_in(unwrapped(model))
        phases: tuple[Phase, ...] = ("training", "evaluation")
        self._probes = {phase: ConeProbe(inner, **self._probe_options).attach() for phase in phases}
        self._model = inner
        self._noted = None if self._repeats is None else WatchedForward(inner, self._note_repeats)
        self.begin_evaluation()

    def detach(self) -> None:
        """Leave the model as it was."""
        if self._noted is not None:
            self._noted.remove()
        for probe in self._probes.values():
            probe.detach()
        self._probes, self._noted = {}, None

    def begin_step(self, step: int) -> None:
        """Say that the forwards from here on are of this training step."""
        self._probes["evaluation"].pause()
        if step % self._every == 0:
            self._probes["training"].resume()
        else:
            self._probes["training"].pause()

    def begin_evaluation(self) -> None:
        """Say that the forwards from here on are of an evaluation."""
        self._probes["training"].pause()
        self._probes["evaluation"].resume()

    def take(self, phase: Phase) -> dict[str, float]:
        """`cone_scalars` of the sentences since the last call, over all ranks (each calls this); {} for none."""
        probe = self._probes.get(phase)
        if probe is None:
            return {}
        counts: list[int] = [probe.n_sentences]
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if together:
            counts = [0] * dist.get_world_size()
            dist.all_gather_object(counts, probe.n_sentences)
        if not any(counts):
            return {}
        own = probe.state if probe.n_sentences > 0 else None
        state = all_reduce(own) if together else probe.state
        probe.reset()
        return cone_scalars(state, **self._scalars)  # type: ignore[arg-type]

    def _note_repeats(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Tell the probes which samples of the batch are repeats."""
        if self._repeats is not None and not calibrating.get() and not in_backward():
            repeats = self._repeats(_n_sentences(bind_arguments(self._model, args, kwargs) or {}))
            for probe in self._probes.values() if repeats is not None else ():
                probe.next_batch(repeats=repeats)  # a probe that does not count this forward forgets them
        return forward(*args, **kwargs)


def transformer_in(model: nn.Module) -> nn.Module:
    """The Hugging Face model in a SentenceTransformer; any other model itself."""
    first = model[0] if isinstance(model, nn.Sequential) and len(model) > 0 else model
    inner: nn.Module = getattr(first, INNER_MODEL, None) or model
    return inner


def _n_sentences(arguments: dict[str, Any]) -> int:
    starts = arguments.get(STARTS[0])
    if isinstance(starts, Tensor):
        return len(starts) - 1
    tokens = next((arguments[name] for name in TOKENS if arguments.get(name) is not None), None)
    return len(tokens) if isinstance(tokens, Tensor) else 0
