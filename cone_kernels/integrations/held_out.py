"""A fixed set of texts, measured again and again while a model is trained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from cone_kernels.integrations.scalars import change_scalars, cone_scalars, estimates
from cone_kernels.models.description import Description
from cone_kernels.models.loaded import LoadedModel, evaluation, loaded_of
from cone_kernels.models.transformer import text_encoder
from cone_kernels.probe.cone_probe import ConeProbe
from cone_kernels.runs.batches import length_batches
from cone_kernels.runs.encoded_shard import EncodedShard
from cone_kernels.runs.runner import TOKEN_BUDGET
from cone_kernels.state.cone_state import ConeState
from cone_kernels.statistics.estimates import Estimates

START = "start"


@dataclass(eq=False)
class HeldOut:
    """Texts that are measured with the weights of the moment, and compared with what they were.

    A measurement leaves a training as it finds it: each module's mode and the states of the random generators are put
    back. It makes no gradients. The values are of evaluation mode, of these weights alone, and over the same texts, so
    a change is paired: what both values owe to the choice of texts cancels in its error.

    Attributes:
        texts: two or more; each is taken in without a prompt, cut at the model's longest input.
        tokenizer: the model's.
        reference: what the values are compared with: `start`, the first measurement; a saved state of the same texts,
            or its file; None for nothing.
        scalars: `token` and `pooling_gap` of `cone_scalars`.
        probe_options: of `ConeProbe`.

    Examples:
        >>> held_out = HeldOut(texts, tokenizer)
        >>> held_out.scalars_of(held_out.measure(model))
        {'cone/L6/anisotropy': 0.0552, 'cone/L6/anisotropy_stderr': 0.0031, ...}
    """

    texts: Sequence[str]
    tokenizer: Any
    reference: str | os.PathLike[str] | ConeState | None = START
    scalars: dict[str, Any] = field(default_factory=dict)
    probe_options: dict[str, Any] = field(default_factory=dict)
    _loaded: tuple[nn.Module, LoadedModel, EncodedShard] | None = field(default=None, init=False)
    _before: dict[str, Estimates] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        refuse_few_texts(self.texts)
        if self.tokenizer is None:
            raise ValueError("tokenizer: got none; it must be the model's where probe_texts are given")

    def measure(self, model: nn.Module) -> ConeState:
        """The sums of the texts under the model as it is.

        Args:
            model: of transformers; of an encoder-decoder model the encoder is measured, of CLIP the tower of texts.

        Raises:
            ModelError: the tokenizer is another model's.
            ValueError, RuntimeError: the model cannot be probed.
        """
        loaded, encoded = self._encoded(model)
        budget = TOKEN_BUDGET.get(loaded.device.type, TOKEN_BUDGET["cuda"])
        devices = [loaded.device] if loaded.device.type == "cuda" else []
        probe = ConeProbe(loaded.model, **self.probe_options)
        # No inference mode: what a model keeps of a forward, such as tables of positions, could not be trained with.
        with torch.random.fork_rng(devices), torch.no_grad(), evaluation(loaded.model), probe:
            for batch in length_batches(encoded.lengths, budget):
                inputs = encoded.padded_inputs(batch, loaded)
                probe.next_batch(torch.tensor(batch), mask=encoded.counted(batch, inputs))
                loaded.model(**inputs)
        return probe.state

    def scalars_of(self, state: ConeState) -> dict[str, float]:
        """`cone_scalars` of a measurement, and how its first-order values changed from the reference.

        Raises:
            ValueError: the reference is a state of other texts, or of other layers.
            OSError, StateFileError: its file cannot be read, or is damaged.
        """
        values = cone_scalars(state, **self.scalars)
        if self.reference is None:
            return values
        now = estimates(state, **self.scalars)
        if self._before is None:
            self._before = now if self.reference == START else self._of_saved(self.reference, state)
        return values | change_scalars(state.layers, now, self._before)

    def _encoded(self, model: nn.Module) -> tuple[LoadedModel, EncodedShard]:
        """The model as a run takes it, and the texts as its tokens; both are kept."""
        if self._loaded is None or self._loaded[0] is not model:
            # The adapters of peft are in the layers of the model that they adapt.
            plain: Any = model
            part = text_encoder(plain.get_base_model() if hasattr(plain, "get_base_model") else plain)
            tokenizer = getattr(self.tokenizer, "tokenizer", self.tokenizer)  # a processor of several modalities
            name = type(part).__name__
            loaded = loaded_of(part, tokenizer, Description(), name=name, prompt="")
            self._loaded = model, loaded, EncodedShard.of(loaded, list(self.texts))
        return self._loaded[1:]

    def _of_saved(self, reference: str | os.PathLike[str] | ConeState, like: ConeState) -> dict[str, Estimates]:
        saved = reference if isinstance(reference, ConeState) else ConeState.load(reference)
        missing = sorted(set(like.layers) - set(saved.layers))
        if missing:
            raise ValueError(f"reference: got a state of layers {saved.layers}; it must have layers {missing} too")
        if not saved.sentence.count[0].cpu().equal(like.sentence.count[0].cpu()):
            raise ValueError(
                "reference: got a state with other numbers of sentences in its jackknife groups; it must be of the "
                "same probe_texts in the same order"
            )
        at = torch.tensor([saved.layers.index(layer) for layer in like.layers])
        return {name: found.at(at) for name, found in estimates(saved, **self.scalars).items()}


def refuse_few_texts(texts: Sequence[str]) -> None:
    """Raises a ValueError unless there are two texts or more, as a mean cosine is of pairs."""
    if isinstance(texts, str) or len(texts) < 2:
        raise ValueError(f"probe_texts: got {texts!r:.80}; it must be two texts or more, as a mean cosine is of pairs")
