"""A model that is ready to run, and what it is."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from cone_kernels.models.description import Description
from cone_kernels.models.source import ModelError, NoOutputError
from cone_kernels.models.transformers_names import ATTENTION_CHOSEN, POSITION_EMBEDDINGS

if TYPE_CHECKING:
    import torch

    from cone_kernels.models.output import Output

ModelLike: TypeAlias = "str | os.PathLike[str] | LoadedModel | torch.nn.Module"
"""A folder, a hub id, what `load_model` returned, a model of transformers in memory, or a `SentenceTransformer`."""

# Tokenizers without a length of their own give 1e30.
_NO_LENGTH = 10**9
# A model's vocabulary may be rounded up, or have room for tokens to come; one four times as large is another's.
_LEAST_SHARE = 4


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and what it is.

    Attributes:
        model: in eval mode, on its device; of an encoder-decoder model the encoder alone.
        tokenizer: the model's own.
        max_length: the most tokens that a sentence may have, with special tokens; None where there is no limit.
        input_names: which of the tokenizer's outputs the model's forward takes.
        info: JSON data that names the model: name, revision, architecture, model_type, n_layers, hidden_size,
            dtype, attention, weights_sha256, max_length, compiled, prompt, output; drops_unknown where it is so; of a
            GGUF file its name as gguf_file.
        output: how a model of sentence-transformers makes its own sentence vectors; None for other models, and where
            `info["output"]` has a reason.
        prompt: put before every sentence.
        image_processor: of a model of images, what makes its input; it has no tokenizer then.
        image_positions: how many positions its hidden states have of one image.
        drops_unknown: words that the tokenizer does not know are left out of a sentence, as in a table of words.
    """

    model: torch.nn.Module
    tokenizer: Any
    max_length: int | None
    input_names: tuple[str, ...]
    info: dict[str, Any]
    output: Output | None = None
    prompt: str = ""
    drops_unknown: bool = False
    image_processor: Any = None
    image_positions: int = 0

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device


def loaded_of(
    model: Any,
    tokenizer: Any,
    description: Description,
    *,
    name: str,
    prompt: str,
    revision: str | None = None,
    weights_sha256: str | None = None,
    compiled: bool = False,
    drops_unknown: bool = False,
    gguf_file: str | None = None,
) -> LoadedModel:
    """A model with its tokenizer, without an output so far.

    Args:
        model, tokenizer: of transformers.
        description: what there is around the transformer.
        name, revision, weights_sha256, compiled, gguf_file: of its `info`.
        prompt, drops_unknown: as in `LoadedModel`.

    Raises:
        ModelError: the tokenizer knows a small part of the model's vocabulary alone.
    """
    config = model.config.get_text_config()
    _refuse_foreign_tokenizer(tokenizer, getattr(config, "vocab_size", None), name)
    max_length = _max_length(model, tokenizer, description)
    info = {
        "name": name,
        "revision": revision,
        "architecture": type(model).__name__,
        "model_type": config.model_type,
        "n_layers": getattr(config, "num_hidden_layers", None),
        "hidden_size": getattr(config, "hidden_size", None),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": getattr(model.config, ATTENTION_CHOSEN, None),
        "weights_sha256": weights_sha256,
        "max_length": max_length,
        "compiled": compiled,
        "prompt": prompt or None,
        "output": None,
        **({"drops_unknown": True} if drops_unknown else {}),
        **({} if gguf_file is None else {"gguf_file": gguf_file}),
    }
    names = _input_names(model, tokenizer)
    return LoadedModel(model, tokenizer, max_length, names, info, prompt=prompt, drops_unknown=drops_unknown)


def with_output(
    loaded: LoadedModel, description: Description, make: Callable[[], Output] | None, truncate_dim: int | None
) -> LoadedModel:
    """The model with its own output, or with the reason why that is not known.

    Args:
        loaded: the model.
        description: what there is around its transformer; without modules there is no output.
        make: gives the output, or raises NoOutputError; None for a model without modules.
        truncate_dim: keep so many of its first dimensions; None as the model says.

    Raises:
        ModelError: `truncate_dim` is out of range, or there is no output that it could be of.
    """
    if make is None or not description.modules:
        if truncate_dim is not None:
            raise ModelError(
                f"truncate_dim: got {truncate_dim}; it must be None, for {loaded.info['name']} is no model of "
                "sentence-transformers, whose vectors are truncated"
            )
        return loaded
    names = [kind.rpartition(".")[2] for kind, _ in description.modules]
    try:
        if description.no_output is not None:
            raise NoOutputError(description.no_output)
        output = make()
    except NoOutputError as error:
        if truncate_dim is not None:
            raise ModelError(f"truncate_dim: got {truncate_dim}; it must be None, for {error}") from None
        return replace(loaded, info={**loaded.info, "output": {"modules": names, "reason": str(error)}})
    if truncate_dim is not None:
        output = output.truncated(truncate_dim)
    if description.static and output.is_plain_mean:
        why = "it is the mean of layer 0, which is measured there"
        return replace(loaded, info={**loaded.info, "output": {"modules": names, "reason": why}})
    return replace(loaded, output=output, info={**loaded.info, "output": output.to_dict()})


@contextmanager
def evaluation(*modules: torch.nn.Module) -> Iterator[None]:
    """The modules in evaluation mode; each part of them that was in training mode is put back afterwards."""
    trained = [part for module in modules for part in module.modules() if part.training]
    # Not by eval(): some modules do more in it, such as adapters that merge their weights, which nothing would undo.
    for part in trained:
        part.training = False
    try:
        yield
    finally:
        for part in trained:
            part.training = True


def prompt_length(loaded: LoadedModel) -> int:
    """Tokens of the prompt with the special ones before it, as sentence-transformers counts them."""
    if not loaded.prompt:
        return 0
    cut = {} if loaded.max_length is None else {"truncation": True, "max_length": loaded.max_length}
    ids = loaded.tokenizer(loaded.prompt, verbose=False, **cut)["input_ids"]
    return len(ids) - bool(ids and ids[-1] in loaded.tokenizer.all_special_ids)


def _max_length(model: Any, tokenizer: Any, description: Description) -> int | None:
    # As sentence-transformers does: its own length takes the place of the tokenizer's.
    own = description.max_length
    bounds = [tokenizer.model_max_length if own is None else own, _position_bound(model)]
    known = [int(bound) for bound in bounds if bound is not None and 0 < bound < _NO_LENGTH]
    return min(known, default=None)


def _position_bound(model: Any) -> int | None:
    """The tokens that the model has positions for."""
    embeddings = _padded_positions(model)
    if embeddings is not None:
        return int(embeddings.num_embeddings) - first_position(model)
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def first_position(model: Any) -> int:
    """The position of a sentence's first token: 0, but RoBERTa and its kin count from after the padding index."""
    embeddings = _padded_positions(model)
    return 0 if embeddings is None else int(embeddings.padding_idx) + 1


def _padded_positions(model: Any) -> Any:
    for name, module in model.named_modules():
        if name.endswith(POSITION_EMBEDDINGS) and getattr(module, "padding_idx", None) is not None:
            return module
    return None


def unknown_token(tokenizer: Any) -> int | None:
    """The id of what a tokenizer puts in place of a word that it does not know; None where it has none of its own.

    A tokenizer of bytes knows all words, and names its end of text in that place.
    """
    unknown: int | None = tokenizer.unk_token_id
    others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
    return None if unknown in others else unknown


def _refuse_foreign_tokenizer(tokenizer: Any, vocab_size: int | None, name: str) -> None:
    # transformers makes up a tokenizer of a few special tokens where it finds no file of one: every word is unknown.
    if vocab_size is not None and len(tokenizer) * _LEAST_SHARE < vocab_size:
        raise ModelError(
            f"model: the tokenizer of {name} knows {len(tokenizer):,} tokens of a vocabulary of {vocab_size:,}; it "
            "must be the model's own (are its files there? tokenizer.save_pretrained writes them beside the model's)"
        )


def _input_names(model: Any, tokenizer: Any) -> tuple[str, ...]:
    accepted = inspect.signature(model.forward).parameters
    return tuple(name for name in tokenizer.model_input_names if name in accepted)
