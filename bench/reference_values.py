"""Mean cosines to hold one's own against: a trained model, the same one untrained, other shapes untrained.

python -m bench.reference_values --model M --corpus C [--sentences N] [--out FILE]

Untrained models have the random weights that transformers gives a new one, and the trained model's tokenizer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, GPT2Config

from cone_kernels import Corpus, experiments
from cone_kernels.corpora.captions import captions

SEEDS = 3


def reference_values(model: str, corpus: str, sentences: int) -> dict[str, Any]:
    """The layer curves by what was run on what, as JSON data."""
    texts = list(Corpus(corpus, sample=sentences))
    tokenizer = AutoTokenizer.from_pretrained(model)
    own = AutoConfig.from_pretrained(model)
    words = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    shapes = {
        "its own shape": own,
        "BERT base": BertConfig(**words),
        "GPT-2": GPT2Config(**words, bos_token_id=tokenizer.cls_token_id, eos_token_id=tokenizer.sep_token_id),
    }
    found = {"trained": [curve(model, texts)], "trained, captions of a grammar": [curve(model, captions(sentences))]}
    for name, config in shapes.items():
        found[f"untrained, {name}"] = []
        for seed in range(SEEDS):
            with tempfile.TemporaryDirectory() as folder:
                torch.manual_seed(seed)
                AutoModel.from_config(config).save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                found[f"untrained, {name}"].append(curve(folder, texts))
    return {"sentences": len(texts), "curves": found}


def curve(model: str, texts: Any) -> dict[str, list[float]]:
    """The mean cosine of every layer, of sentences and of tokens."""
    layers = experiments.layers(model, texts).layers
    return {
        "sentence": [layer.sentence.anisotropy for layer in layers],
        "token": [layer.token.anisotropy for layer in layers],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    text = json.dumps(reference_values(chosen.model, chosen.corpus, chosen.sentences), indent=1)
    print(text)
    if chosen.out:
        chosen.out.write_text(text + "\n")
