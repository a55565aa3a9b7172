"""What a watch is to log of training steps, computed plainly from hidden states, for tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tests.support.recording_probe import hidden_states, plain_anisotropy

# The tokens (T, d) of one sentence in each layer.
Sentence = tuple[Tensor, ...]


def sentences_of(model: nn.Module, batch: dict[str, Tensor]) -> list[Sentence]:
    """The sentences of a batch, as the model in evaluation mode makes them."""
    training = model.training
    states = hidden_states(model.eval(), batch)
    model.train(training)
    mask = batch["attention_mask"].bool()
    return [tuple(state[row][mask[row]].double() for state in states) for row in range(len(mask))]


def step_values(
    steps: Sequence[Sequence[Sentence]],
    *,
    layers: Sequence[int] | None = None,
    token: bool = False,
    pooling_gap: bool = False,
) -> dict[str, float]:
    """The mean over steps of each step's own values, the error of that by leaving out each sentence in turn, and the
    last step's; for steps of at most 16 sentences, 64 in all."""
    found: dict[str, float] = {}
    names = ["anisotropy", *(["token_anisotropy"] if token else []), *(["pooling_gap"] if pooling_gap else [])]
    for layer in range(len(steps[0][0])) if layers is None else layers:
        for name in names:
            value, error = _mean_and_error(steps, layer, name)
            last, last_error = _mean_and_error(steps[-1:], layer, name)
            key = f"cone/L{layer}/{name}"
            found |= {key: value, f"{key}_stderr": error, f"{key}_last": last, f"{key}_last_stderr": last_error}
    return found


def _mean_and_error(steps: Sequence[Sequence[Sentence]], layer: int, name: str) -> tuple[float, float]:
    without = [
        _mean([*steps[:at], [*step[:row], *step[row + 1 :]], *steps[at + 1 :]], layer, name)
        for at, step in enumerate(steps)
        for row in range(len(step))
    ]
    centre = sum(without) / len(without)
    squares = sum((one - centre) ** 2 for one in without)
    return _mean(steps, layer, name), math.sqrt((len(without) - 1) / len(without) * squares)


def _mean(steps: Sequence[Sequence[Sentence]], layer: int, name: str) -> float:
    return sum(_value(step, layer, name) for step in steps) / len(steps)


def _value(step: Sequence[Sentence], layer: int, name: str) -> float:
    of_sentences = plain_anisotropy(torch.stack([sentence[layer].mean(0) for sentence in step]))
    of_tokens = plain_anisotropy(torch.cat([sentence[layer] for sentence in step]))
    return {"anisotropy": of_sentences, "token_anisotropy": of_tokens, "pooling_gap": of_sentences - of_tokens}[name]
