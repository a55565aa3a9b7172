"""Folders of tiny models with a word tokenizer, as a user has them on disk."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn

from tests.support.tiny_models import PAD, VOCAB, tiny_model

WORDS = tuple(f"w{number}" for number in range(4, VOCAB))
# In words. Each length of a shard is a forward, and three show that lengths do not matter.
THREE_LENGTHS = (1, 4, 9)


def sentences(count: int, lengths: Sequence[int] = range(1, 10), *, seed: int = 0) -> list[str]:
    """Of words drawn by chance, each sentence of one of `lengths`, in words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.choice(lengths))) for _ in range(count)]


def word_tokenizer(*, special: bool = True, pad: bool = True, **settings: Any) -> transformers.PreTrainedTokenizerFast:
    """Token 4 is "w4", and so on; a sentence starts with 2 and ends with 3 where `special`; "nothing" is no token."""
    vocabulary = {"[UNK]": 0, "[PAD]": PAD, "[CLS]": 2, "[SEP]": 3} | {word: int(word[1:]) for word in WORDS}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Replace("nothing", "")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = {"unk_token": "[UNK]", "eos_token": "[SEP]"} | ({"pad_token": "[PAD]"} if pad else {})
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **settings)


def save_checkpoint(
    folder: Path, architecture: str = "bert", *, model_class: str | None = None, seed: int = 0, **tokenizer: Any
) -> nn.Module:
    """Writes model and tokenizer to `folder` and returns the model."""
    model = tiny_model(architecture, seed=seed, model_class=model_class)
    model.save_pretrained(folder)
    word_tokenizer(**tokenizer).save_pretrained(folder)
    return model


def save_modules(folder: Path, subfolder: str, kind: str = "sentence_transformers.models.Transformer") -> None:
    """Writes the modules.json of sentence-transformers."""
    modules = [
        {"idx": 0, "name": "0", "path": subfolder, "type": kind},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
