"""Models with random weights and sentences of real lengths, made on the spot: nothing is downloaded."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from tests.support.tiny_checkpoints import WORDS, word_tokenizer
from tests.support.tiny_models import tiny_model

BERT_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
SHAPES = {
    "BERT-large": BERT_LARGE,
    "MiniLM": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "small": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256},
}
# Of the words in a sentence; with two special tokens these are the lengths of SNLI's dev set under BERT's tokenizer:
# a mean of 12.5 tokens, a tenth of 8 or fewer, a twentieth of 24 or more, at most 63.
_LOG_MEAN, _LOG_DEVIATION, _MOST_WORDS = 2.24, 0.46, 61


def write_model(
    folder: Path, shape: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> None:
    """Writes a BERT of one of `SHAPES` and a tokenizer of `WORDS`.

    It has no dropout, so that it is trained alike on every device. Large weights are drawn faster on a GPU.
    """
    settings: dict[str, Any] = {**SHAPES[shape], "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    with torch.device(device):
        model = tiny_model("bert", seed=seed, **settings)
    model.to(dtype).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)


def sentences(count: int, seed: int = 0) -> list[str]:
    """So many distinct sentences of `WORDS`."""
    draw, made = random.Random(seed), dict[str, None]()
    while len(made) < count:
        words = round(draw.lognormvariate(_LOG_MEAN, _LOG_DEVIATION))
        made[" ".join(draw.choices(WORDS, k=min(max(words, 1), _MOST_WORDS)))] = None
    return list(made)
