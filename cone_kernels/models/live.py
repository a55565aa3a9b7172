"""A model that is in memory already, of transformers or sentence-transformers, as a run takes it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cone_kernels.models.description import Description, Static, why_no_output
from cone_kernels.models.images import image_model_of
from cone_kernels.models.loaded import LoadedModel, evaluation, loaded_of, prompt_length, with_output
from cone_kernels.models.output import Output, pooled_tokens
from cone_kernels.models.source import ModelError, NoOutputError
from cone_kernels.models.transformer import image_encoder, text_encoder
from cone_kernels.models.transformers_names import PEFT_CONFIGURATION, PEFT_INSIDE, PEFT_PROMPT


def live_model(
    model: nn.Module,
    tokenizer: Any = None,
    *,
    prompt: str | None = None,
    prompt_name: str | None = None,
    truncate_dim: int | None = None,
) -> LoadedModel:
    """A model in memory as a run takes it; nothing of it is changed, and it stays where it is.

    Args:
        model: of transformers, or a `SentenceTransformer`, whose transformer is taken with the modules after it.
        tokenizer: of a model of transformers; a `SentenceTransformer` has its own.
        prompt, prompt_name, truncate_dim: as in `load_model`.

    Raises:
        TypeError: it is neither.
        ModelError: a model of transformers comes without a tokenizer, or a `SentenceTransformer` with one or without a
            transformer; a model of peft learns a prompt; `prompt_name` or `truncate_dim` is none of this model's.

    Examples:
        >>> live_model(SentenceTransformer("all-MiniLM-L6-v2")).info["output"]["pooling"]
        'mean'
    """
    if _is_sentence_transformer(model):
        return _of_sentence_transformer(model, tokenizer, prompt, prompt_name, truncate_dim)
    name = _name_of(model)
    if tokenizer is None:
        raise ModelError("tokenizer: got none; it must be given with a model that is in memory already")
    plain, part = Description(), text_encoder(_inside_peft(model))
    said = plain.prompt(prompt, prompt_name)
    loaded = loaded_of(part, tokenizer, plain, name=name, weights_sha256=_sha256(part), prompt=said)
    return with_output(loaded, plain, None, truncate_dim)


def live_image_model(model: nn.Module, processor: Any = None) -> LoadedModel:
    """A model of images in memory as a run takes it, of CLIP and its kin the tower of images; nothing of it is changed.

    Args:
        model: of transformers.
        processor: what makes its input of images: its image processor, or a processor that has one for images beside
            its tokenizer.

    Raises:
        TypeError: the model is not one of transformers.
        ModelError: it takes no images, or gives no position of an image a vector; there is no processor, or it is not
            one of images.

    Examples:
        >>> model, processor = (kind.from_pretrained(folder) for kind in (ViTModel, AutoImageProcessor))
        >>> live_image_model(model, processor).image_positions
        197
    """
    if _is_sentence_transformer(model):
        raise ModelError(
            "model: got a SentenceTransformer with a corpus of images; it must be the model of transformers that is in "
            "it, or a folder"
        )
    name = _name_of(model)
    part = image_encoder(_inside_peft(model), name)
    makes_images = getattr(processor, "image_processor", processor)
    if makes_images is None:
        raise ModelError("processor: got none; it must be given with a model of images that is in memory already")
    if not callable(makes_images) or hasattr(makes_images, "get_vocab"):
        raise ModelError(f"processor: got a {type(processor).__name__}; it must be the image processor of the model")
    with evaluation(part):
        return image_model_of(part, makes_images, name, revision=None, weights_sha256=_sha256(part), compiled=False)


def _is_sentence_transformer(model: Any) -> bool:
    """By the names of its classes, for importing sentence-transformers takes seconds."""
    return "SentenceTransformer" in [one.__name__ for one in type(model).__mro__]


def _name_of(model: Any) -> str:
    """Where a model of transformers is from, or its class.

    Raises:
        TypeError: it is no model of transformers.
    """
    if not (isinstance(model, nn.Module) and hasattr(model, "config")) or isinstance(model, nn.Sequential):
        raise TypeError(
            f"model: got {type(model).__name__}; it must be a folder, a hub id, what load_model returned, a model of "
            "transformers or a SentenceTransformer"
        )
    return getattr(model.config, "_name_or_path", "") or type(model).__name__


def _inside_peft(model: Any) -> Any:
    """The model that peft has put adapters into, with them; any other model itself.

    The forward of the model around it names no argument, by which a run would know what to give it.
    """
    if not hasattr(model, PEFT_INSIDE):
        return model
    if getattr(getattr(model, PEFT_CONFIGURATION), PEFT_PROMPT):
        raise ModelError(
            f"model: got a {type(model).__name__} that learns a prompt; it must have adapters in its layers (LoRA)"
        )
    return getattr(model, PEFT_INSIDE)()


def _of_sentence_transformer(
    model: Any, tokenizer: Any, prompt: str | None, prompt_name: str | None, truncate_dim: int | None
) -> LoadedModel:
    if tokenizer is not None:
        raise ModelError("tokenizer: got one with a SentenceTransformer; it must be None, for that has its own")
    first, *after = model
    static = Static.SENTENCE_TRANSFORMERS if type(first).__name__ == Static.SENTENCE_TRANSFORMERS.value else None
    if static is None and not (type(first).__name__ == "Transformer" and hasattr(first, "auto_model")):
        raise ModelError(
            f"model: got a SentenceTransformer that starts with a {type(first).__name__}; it must start "
            "with a Transformer or a StaticEmbedding"
        )
    kinds = tuple((f"{type(module).__module__}.{type(module).__name__}", "") for module in model)
    no_output: str | None = None
    if static is None:
        transformer, tokenizer = text_encoder(first.auto_model), first.tokenizer
        keys = ("modality_config", "transformer_task", "processing_kwargs")
        no_output = why_no_output("SentenceTransformer", {key: getattr(first, key, None) for key in keys})
        if transformer is not first.auto_model:
            no_output = f"sentence-transformers runs the whole {type(first.auto_model).__name__}"
    description = Description(
        max_length=first.max_seq_length if static is None else None,
        static=static,
        modules=kinds,
        prompts={name: text or "" for name, text in model.prompts.items()},
        default_prompt=model.default_prompt_name,
        truncate_dim=model.truncate_dim,
        no_output=no_output,
    )
    if static is not None:
        transformer, tokenizer = _table_of(first, description)
    loaded = loaded_of(
        transformer,
        tokenizer,
        description,
        name=getattr(transformer.config, "_name_or_path", "") or type(transformer).__name__,
        weights_sha256=_sha256(transformer),
        prompt=description.prompt(prompt, prompt_name),
    )

    def output() -> Output:
        names = tuple(type(module).__name__ for module in model)
        modes: tuple[str, ...] = ("mean",)
        skipped, first_step = 0, 1
        if static is None:
            if not after or names[1] != "Pooling":
                raise NoOutputError("no Pooling follows its transformer")
            own, first_step = after[0], 2
            modes, skipped = pooled_tokens(own.pooling_mode, own.include_prompt, lambda: prompt_length(loaded))
        steps = tuple(_OfVectors(module) for module in after[first_step - 1 :])
        like = next(transformer.parameters())
        vectors = like.new_zeros(1, len(modes) * int(loaded.info["hidden_size"]))
        with evaluation(*steps), torch.inference_mode():
            for name, step in zip(names[first_step:], steps, strict=True):
                try:
                    vectors = step(vectors)
                # A module may ask for anything else that sentence-transformers hands on.
                except Exception as error:
                    raise NoOutputError(
                        f"its module {name} does not map sentence vectors alone ({type(error).__name__}: {error})"
                    ) from error
        sha256 = _sha256(*steps) if any(True for step in steps for _ in step.parameters()) else None
        return Output(names, modes, steps, vectors.shape[1], skipped, description.truncate_dim, sha256)

    return with_output(loaded, description, output, truncate_dim)


def _table_of(first: Any, description: Description) -> tuple[nn.Module, Any]:
    """The table of a StaticEmbedding of sentence-transformers, in its memory, and its tokenizer, copied."""
    from tokenizers import Tokenizer

    from cone_kernels.models.static import static_model

    table = first.embedding.weight.detach()
    copied = Tokenizer.from_str(first.tokenizer.to_str())
    found = static_model(table, copied, description, table.dtype, type(first).__name__)
    return found.model.eval(), found.tokenizer


def _sha256(*modules: nn.Module) -> str:
    """sha256 (hex) over the names, shapes and values of all parameters and buffers; that of a file is another."""
    sha256 = hashlib.sha256()
    for at, module in enumerate(modules):
        for name, kept in sorted(module.state_dict().items()):
            for part in _parts(kept):
                content = part.detach().cpu().contiguous()
                sha256.update(f"|{at}.{name}|{content.dtype}|{tuple(content.shape)}|".encode())
                sha256.update(content.flatten().view(torch.uint8).numpy().data if content.numel() else b"")
    return sha256.hexdigest()


def _parts(kept: Any) -> Iterator[Tensor]:
    """The tensors of an entry of a state dict; a quantized module keeps a tuple of weight and bias, and their dtype."""
    if isinstance(kept, (tuple, list)):
        for one in kept:
            yield from _parts(one)
    elif isinstance(kept, Tensor):
        yield kept.dequantize() if kept.is_quantized else kept


class _OfVectors(nn.Module):
    """A module of sentence-transformers as a map of vectors (B, d) to vectors (B, d')."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, vectors: Tensor) -> Tensor:
        mapped: Tensor = self.module({"sentence_embedding": vectors})["sentence_embedding"]
        return mapped
