"""The transformer of a folder or a repository of the hub, and its tokenizer, as transformers loads them."""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any

from cone_kernels.models.description import Description
from cone_kernels.models.source import ModelError, Source, inside
from cone_kernels.models.transformers_names import (
    ATTENTION_KEYWORD,
    DTYPE_KEYWORD,
    GGUF_KEYWORD,
    PIXELS,
    TOWERS,
    VARLEN,
)
from cone_kernels.models.varlen_attention import register_varlen_attention

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def load_transformer(
    source: Source, description: Description, dtype: Any, trust_remote_code: bool, attention: str | None
) -> tuple[Any, Any]:
    """The model and its tokenizer; of T5 and its kin the encoder alone.

    Args:
        source: the files.
        description: what there is around the transformer.
        dtype: a torch dtype, or "auto".
        trust_remote_code, attention: as in `load_model`.

    Raises:
        ModelError: weights are missing from the checkpoint, or a package that its kind needs is not installed.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

    location, shared = _location(source, description.subfolder)
    shared["trust_remote_code"] = trust_remote_code
    if source.gguf is not None:
        for package in ("gguf", "accelerate"):
            _require(package, f"{source.name} is a GGUF file")
        location, shared[GGUF_KEYWORD] = str(source.gguf.parent), source.gguf.name
    described, own = (location, shared), dict(shared)
    if description.base is not None:
        _require("peft", f"{source.name} is an adapter")
        described = (description.base, {"trust_remote_code": trust_remote_code})
    config = transformers.AutoConfig.from_pretrained(described[0], **described[1])
    has_tokenizer = any(source.file(inside(description.subfolder, name)) for name in _TOKENIZER_FILES)
    named, options = (location, shared) if has_tokenizer else described
    tokenizer = transformers.AutoTokenizer.from_pretrained(named, **options)
    if description.lowercase:
        _lowercase(tokenizer, source.name)
    loader = transformers.AutoModel
    # Folders of an encoder alone say that they are no encoder-decoder; the class of the whole would miss the decoder.
    encoder = MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(config), None)
    if encoder is not None and (config.is_encoder_decoder or encoder.__name__.endswith("EncoderModel")):
        loader = transformers.AutoModelForTextEncoding
        config.is_encoder_decoder = False
    model = _weights(loader, source, location, {**own, "config": config}, dtype, attention)
    model.config.use_cache = False
    return model, tokenizer


def load_image_model(source: Source, dtype: Any, trust_remote_code: bool, attention: str | None) -> tuple[Any, Any]:
    """The model of images, of CLIP and its kin the tower of images, and its image processor.

    Args:
        source, dtype, trust_remote_code, attention: as in `load_transformer`.

    Raises:
        ModelError: as `load_transformer`; the model takes no images.
    """
    import transformers

    location, options = _location(source, "")
    options["trust_remote_code"] = trust_remote_code
    whole = _weights(transformers.AutoModel, source, location, options, dtype, attention)
    return image_encoder(whole, source.name), load_image_processor(source, trust_remote_code)


def _weights(
    loader: Any, source: Source, location: str, options: dict[str, Any], dtype: Any, attention: str | None
) -> Any:
    """The model with the weights of its checkpoint, all of which must be there."""
    chosen = {DTYPE_KEYWORD: dtype} | ({} if attention is None else {ATTENTION_KEYWORD: attention})
    if attention == VARLEN:
        register_varlen_attention()
    model, loading = loader.from_pretrained(location, output_loading_info=True, **options, **chosen)
    missing = sorted(key for key in loading["missing_keys"] if not _may_miss(model, key))
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ModelError(f"model: {len(missing)} weights of {source.name} are not in its checkpoint: {shown}")
    return model


def load_image_processor(source: Source, trust_remote_code: bool) -> Any:
    """What makes a model's input of images.

    Args:
        source: the files.
        trust_remote_code: as in `load_model`.
    """
    # transformers 5.8's own name for it refuses, without torchvision, what this one loads.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    location, shared = _location(source, "")
    return AutoImageProcessor.from_pretrained(location, trust_remote_code=trust_remote_code, **shared)


def text_encoder(model: Any) -> Any:
    """The part of a model that makes hidden states of texts.

    It is the encoder of an encoder-decoder model, the tower of texts of CLIP and its kin, and else the model itself.
    """
    if getattr(model.config, "is_encoder_decoder", False) and hasattr(model, "get_encoder"):
        return model.get_encoder()
    tower = getattr(model, "text_model", None)
    takes_images = PIXELS in inspect.signature(model.forward).parameters
    return tower if tower is not None and takes_images and hasattr(model, "get_text_features") else model


def image_encoder(model: Any, name: str) -> Any:
    """The part of a model that makes hidden states of images: of CLIP and its kin the tower of images, else all of it.

    Args:
        model: of transformers.
        name: of the model.

    Raises:
        ModelError: it takes no images.
    """
    has_towers = all(hasattr(model, tower) and hasattr(model, method) for tower, method in TOWERS.items())
    part = getattr(model, tuple(TOWERS)[1]) if has_towers else model
    if PIXELS not in inspect.signature(part.forward).parameters:
        raise ModelError(f"model: {name} is a {type(part).__name__}, which takes no images; the corpus has them")
    return part


def _location(source: Source, subfolder: str) -> tuple[str, dict[str, Any]]:
    """Where transformers finds the files: a folder, or a hub id with what more it must be told."""
    shared: dict[str, Any] = {"revision": source.revision}
    # A subfolder of a local folder is a folder; only the hub needs to be told of it.
    if source.folder is not None:
        return str(source.folder / subfolder), shared
    return source.name, shared | ({"subfolder": subfolder} if subfolder else {})


def _require(package: str, what: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ModelError(
            f"model: {what}; it needs the package {package}, which is not installed: pip install {package}"
        )


def _may_miss(model: Any, key: str) -> bool:
    """Whether a checkpoint need not hold this weight: pooling heads follow the last hidden state, and sinusoids
    are computed."""
    owner = model.get_submodule(key.rpartition(".")[0])
    return "pooler" in key or "Sinusoid" in type(owner).__name__


def _lowercase(tokenizer: Any, name: str) -> None:
    """Lowercases before tokenizing, as sentence-transformers does where a folder asks for it."""
    if not tokenizer.is_fast:
        raise ModelError(f"model: {name} asks for lowercased text, which needs a fast tokenizer")
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    steps = [normalizers.Lowercase()] + ([backend.normalizer] if backend.normalizer else [])
    backend.normalizer = normalizers.Sequence(steps)
