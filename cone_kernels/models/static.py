"""Models without a transformer: one vector for each token, and the mean of them for a sentence.

StaticEmbedding of sentence-transformers and model2vec keep the vectors in a folder with a tokenizer; GloVe, word2vec
and fastText in a file of words, of text or word2vec's binary one. As in `StaticEmbedding.encode`, no special tokens are
added.
"""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn

from cone_kernels.models.description import Description, Static
from cone_kernels.models.source import ModelError, Source, inside
from cone_kernels.word2vec import WORD2VEC_ENDING, Word2VecError, Word2VecFile

# Names of the table in a file of weights: of sentence-transformers and of model2vec, which has two more beside it.
_TABLES = ("embedding.weight", "embeddings")
_UNKNOWN = "[UNK]"


class StaticEmbedding(nn.Module):
    """A table of token vectors with the interface of a model of transformers: its hidden states are one layer.

    Args:
        table: (V, D) floating point.

    Examples:
        >>> StaticEmbedding(table)(torch.tensor([[4, 7]])).hidden_states[0].shape
        torch.Size([1, 2, 300])
    """

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(table), table.shape[1], device="meta")
        self.embedding.weight = nn.Parameter(table, requires_grad=False)
        self.config = _Config(*table.shape)

    @property
    def dtype(self) -> torch.dtype:
        """That of the table."""
        return next(self.parameters()).dtype

    def get_input_embeddings(self) -> nn.Module:
        """The table."""
        return self.embedding

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, output_hidden_states: bool = False
    ) -> Any:
        """The vectors of tokens (B, T) as `last_hidden_state` (B, T, D), each for itself whatever the mask."""
        from transformers.modeling_outputs import BaseModelOutput

        hidden = self.embedding(input_ids)
        return BaseModelOutput(hidden, hidden_states=(hidden,) if output_hidden_states else None)


class _Config:
    """What is asked of the configuration of a model of transformers."""

    model_type = "static"
    num_hidden_layers = 0

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        self.vocab_size, self.hidden_size = vocab_size, hidden_size

    def get_text_config(self) -> _Config:
        return self


@dataclass(frozen=True)
class StaticModel:
    """A table and what makes token ids of texts.

    Attributes:
        model: the table.
        tokenizer: a fast one of transformers, which adds no special tokens.
        drops_unknown: whether words that are not in the table are left out of a sentence.
    """

    model: StaticEmbedding
    tokenizer: Any
    drops_unknown: bool


def load_static(source: Source, description: Description, dtype: Any) -> StaticModel:
    """The table and the tokenizer of a folder or a repository of the hub.

    Args:
        source: the files: model.safetensors (or pytorch_model.bin) and tokenizer.json.
        description: `static` says whether it is of sentence-transformers or of model2vec alone, which leaves out the
            tokens that stand for unknown words.
        dtype: a torch dtype; "auto" keeps the table's, and makes float32 of integers.

    Raises:
        ModelError: a file is missing or damaged, or has no such table; the tokenizer has tokens without a row.
    """
    weights = source.weights(description.subfolder)
    tokens = source.file(inside(description.subfolder, "tokenizer.json"))
    if not weights or tokens is None:
        raise ModelError(f"model: {source.name} has no {'tokenizer.json' if weights else 'model.safetensors'}")
    table = _table(weights[0], source.name)
    tokenizer = Tokenizer.from_file(str(tokens))
    return static_model(table, tokenizer, description, dtype, source.name)


def static_model(table: Tensor, tokenizer: Tokenizer, description: Description, dtype: Any, name: str) -> StaticModel:
    """A table and the tokenizer of its rows.

    Args:
        table: (V, D) floating point.
        tokenizer: of the tokenizers library; it is changed.
        description, dtype: as in `load_static`.
        name: of the model.

    Raises:
        ModelError: the tokenizer has tokens without a row.
    """
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= len(table):
        raise ModelError(
            f"model: the tokenizer of {name} has a token {largest:,}, and its table has {len(table):,} rows"
        )
    unknown = _unknown_of(tokenizer)
    limit = description.max_length
    if limit is None and tokenizer.truncation is not None:
        limit = int(tokenizer.truncation["max_length"])
    drops = description.static == Static.MODEL2VEC and unknown is not None
    return StaticModel(_in_dtype(table, dtype), without_special(tokenizer, unknown, limit), drops)


def without_special(tokenizer: Tokenizer, unknown: str | None, limit: int | None = None) -> Any:
    """A tokenizer as transformers has them, that gives the tokens of a text alone.

    Args:
        tokenizer: of the tokenizers library; it is changed.
        unknown: what it has in place of a word that it does not know; None for nothing.
        limit: the most tokens of a text; None for no limit.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    named = ({} if unknown is None else {"unk_token": unknown}) | ({} if limit is None else {"model_max_length": limit})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def load_word_vectors(path: Path, dtype: Any) -> StaticModel:
    """The table of a file of words: word2vec's binary one (`.bin`), or one of text, with a word and its numbers on each
    line, after a line "V D" in word2vec's and fastText's.

    Texts are cut at spaces and punctuation, and lowercased where no word of the table has a capital letter; words that
    are not in the table are left out. Of a word that comes twice the first counts.

    Args:
        path: the file, whose words are UTF-8.
        dtype: a torch dtype; "auto" is float32.

    Raises:
        ModelError: the file is no such table; with the line, or the word, where there is one.

    Examples:
        >>> load_word_vectors(Path("glove.6B.50d.txt"), torch.float32).model.embedding.weight.shape
        torch.Size([400001, 50])
    """
    words, table = _read_binary_words(path) if path.suffix.lower() == WORD2VEC_ENDING else _read_words(path)
    # Row 0 is that of unknown words, which is used by none.
    vocabulary = {_UNKNOWN: 0} | {word: row for row, word in enumerate(words, start=1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    if not any(word != word.lower() for word in words):
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return StaticModel(_in_dtype(torch.from_numpy(table), dtype), without_special(tokenizer, _UNKNOWN), True)


def _read_words(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    """The words of a text file, each once, and (V + 1, D) their vectors after a row of zeros."""
    words: dict[str, None] = {}
    rows: list[NDArray[np.float32]] = []
    with path.open("rb") as file:
        first = file.readline().split()
        header = len(first) == 2 and all(part.isdigit() for part in first)
        dim = int(first[1]) if header else len(first) - 1
        if dim < 2:
            raise ModelError(f"model: {path} is no file of word vectors: line 1 is not a word and its numbers, or V D")
        if not header:
            file.seek(0)
        for number, line in enumerate(file, start=2 if header else 1):
            # A word may have spaces in it, and so is what stands before the numbers.
            parts = line.rstrip().rsplit(b" ", dim)
            try:
                row = np.array(list(map(float, parts[1:])), dtype=np.float32)
                word = parts[0].decode("utf-8")
            except ValueError:
                row, word = np.zeros(0, np.float32), ""
            if len(row) != dim or not word:
                raise ModelError(f"model: line {number:,} of {path} is not a word and {dim} numbers after it")
            if word not in words:
                words[word] = None
                rows.append(row)
    if not rows:
        raise ModelError(f"model: {path} has no word")
    return list(words), np.concatenate([np.zeros((1, dim), np.float32), np.stack(rows)])


def _read_binary_words(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    """As `_read_words`, of a binary file of word2vec."""
    words: dict[str, int] = {}
    try:
        file = Word2VecFile.open(path)
        with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as content:
            for row in range(file.rows):
                words.setdefault(file.word(content[slice(*file.word_bytes(row))], row), row)
            table = np.zeros((len(words) + 1, file.dim), np.float32)
            file.copy_vectors(content, words.values(), table[1:])
    except Word2VecError as error:
        raise ModelError(f"model: {error}") from None
    return list(words), table


def _table(path: Path, name: str) -> Tensor:
    """(V, D): a row for each token id; model2vec may have tokens share rows, and give each a weight."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
        else:
            found = torch.load(path, "cpu", weights_only=True)
    except Exception as error:
        raise ModelError(f"model: the weights of {name} cannot be read: {error}") from None
    table = next((found[key] for key in _TABLES if key in found), None)
    if not isinstance(table, Tensor) or table.dim() != 2 or table.is_complex():
        raise ModelError(f"model: {path.name} of {name} has no table {' or '.join(_TABLES)} of token vectors (V, D)")
    if "mapping" in found:
        table = table[found["mapping"].long()]
    if "weights" in found:
        table = table.to(torch.promote_types(table.dtype, torch.float32)) * found["weights"][:, None]
    return table if table.is_floating_point() else table.float()


def _in_dtype(table: Tensor, dtype: Any) -> StaticEmbedding:
    return StaticEmbedding(table if dtype == "auto" else table.to(dtype))


def _unknown_of(tokenizer: Tokenizer) -> str | None:
    """What a tokenizer has in place of a word that it does not know."""
    unknown: str | None = getattr(tokenizer.model, "unk_token", None)
    if isinstance(tokenizer.model, models.Unigram):
        number = json.loads(tokenizer.to_str())["model"].get("unk_id")
        unknown = None if number is None else tokenizer.id_to_token(int(number))
    return unknown if unknown is not None and tokenizer.token_to_id(unknown) is not None else None
