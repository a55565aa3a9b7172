"""Loads a model and its tokenizer from a folder or the Hugging Face hub, and says exactly which model it is."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cone_kernels.models.compiled_blocks import compile_blocks
from cone_kernels.models.description import Description, description_of
from cone_kernels.models.source import ModelError, Source
from cone_kernels.models.transformers_names import (
    ATTENTION_CHOSEN,
    ATTENTION_KEYWORD,
    DTYPE_KEYWORD,
    POSITION_EMBEDDINGS,
)

if TYPE_CHECKING:
    import torch

    from cone_kernels.models.output import Output

__all__ = ["DTYPES", "LoadedModel", "ModelError", "load_model"]

DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")

# Tokenizers without a length of their own give 1e30.
_NO_LENGTH = 10**9


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and what it is.

    Attributes:
        model: in eval mode, on its device; of an encoder-decoder model the encoder alone.
        tokenizer: the model's own.
        max_length: the most tokens that a sentence may have, with special tokens; None where there is no limit.
        input_names: which of the tokenizer's outputs the model's forward takes.
        info: JSON data that names the model: name, revision, architecture, model_type, n_layers, hidden_size,
            dtype, attention, weights_sha256, max_length, compiled, prompt, truncate_dim, output.
        output: how a model of sentence-transformers makes its own sentence vectors; None for other models, and where
            `info["output"]` has a reason.
        prompt: put before every sentence.
    """

    model: torch.nn.Module
    tokenizer: Any
    max_length: int | None
    input_names: tuple[str, ...]
    info: dict[str, Any]
    output: Output | None = None
    prompt: str = ""

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device


def load_model(
    path_or_hub_id: str | os.PathLike[str],
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    attention: str | None = None,
    torch_compile: bool = False,
    prompt: str | None = None,
    prompt_name: str | None = None,
    truncate_dim: int | None = None,
) -> LoadedModel:
    """Loads a model from a local folder or by its hub id.

    Encoder-decoder models give their encoder. Folders of sentence-transformers are read too: their transformer, with
    the longest input it was tuned for, the prompt that `encode` takes, and as `output` the modules after it.

    Args:
        path_or_hub_id: a folder, or an id such as "mixedbread-ai/mxbai-embed-large-v1".
        device: "cpu", "cuda", "cuda:1", ...; None takes the first GPU, or the CPU where there is none.
        dtype: what the model computes in, a torch dtype or its name; "auto" keeps the checkpoint's own.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run the Python code that a model may bring along; never without this.
        attention: one of transformers' implementations: "sdpa", "eager", "flash_attention_2", ...; None takes its
            choice.
        torch_compile: compile the model's blocks by torch.compile; the first batches of a run then take longer, and the
            last bits differ from those without.
        prompt: a text to put before every sentence; "" for none. Default: as `encode` of sentence-transformers, the
            folder's default prompt.
        prompt_name: the name of one of the folder's prompts, in place of `prompt`.
        truncate_dim: keep so many first dimensions of `output`. Default: what the folder says.

    Raises:
        ModuleNotFoundError: torch or transformers is not installed.
        FileNotFoundError: there is no such folder.
        ModelError: the model, device, dtype or attention cannot be had; weights are missing from the checkpoint; there
            are no blocks to compile; `prompt_name` or `truncate_dim` is none of this model's.

    Example:
        >>> loaded = load_model("sentence-transformers/all-MiniLM-L6-v2")
        >>> loaded.info["architecture"], loaded.max_length
        ('BertModel', 256)
    """
    _require_transformers()
    chosen_device = _device(device)
    chosen_dtype = _dtype(dtype)
    name = os.fspath(path_or_hub_id)
    _check_name(name)
    with _quiet():
        try:
            source = Source(name, revision)
            description = description_of(source)
            model, tokenizer = _load(source, description, chosen_dtype, trust_remote_code, attention)
        except ModelError:
            raise
        # A damaged or foreign folder can fail in any of the libraries below, each with errors of its own.
        except Exception as error:
            raise _explained(name, error) from error
    model = model.eval().to(chosen_device)
    if torch_compile and compile_blocks(model) == 0:
        raise ModelError(f"torch_compile: {type(model).__name__} has no list of blocks to compile")
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    max_length = _max_length(model, tokenizer, description)
    try:
        said = description.prompt(prompt, prompt_name)
    except ValueError as error:
        raise ModelError(str(error)) from None
    loaded = LoadedModel(
        model=model,
        tokenizer=tokenizer,
        max_length=max_length,
        input_names=_input_names(model, tokenizer),
        info={**_info(model, source, description, max_length), "compiled": torch_compile, "prompt": said or None},
        prompt=said,
    )
    return _with_output(loaded, source, description, truncate_dim)


def _with_output(
    loaded: LoadedModel, source: Source, description: Description, truncate_dim: int | None
) -> LoadedModel:
    """The model with its own output, or with the reason why that is not known."""
    from cone_kernels.models.output import NoOutputError, output_of_folder

    if truncate_dim is not None and not description.modules:
        raise ModelError(
            f"truncate_dim: got {truncate_dim}; it must be None, for {source.name} is no folder of "
            "sentence-transformers, whose vectors are truncated"
        )
    if not description.modules:
        return replace(loaded, info={**loaded.info, "output": None})
    names = [kind.rpartition(".")[2] for kind, _ in description.modules]
    try:
        if description.no_output is not None:
            raise NoOutputError(description.no_output)
        output = output_of_folder(
            source,
            description.modules,
            next(loaded.model.parameters()),
            skipped=lambda: _prompt_length(loaded),
            truncate_dim=description.truncate_dim,
        )
    except NoOutputError as error:
        if truncate_dim is not None:
            raise ModelError(f"truncate_dim: got {truncate_dim}; it must be None, for {error}") from None
        return replace(loaded, info={**loaded.info, "output": {"modules": names, "reason": str(error)}})
    if truncate_dim is not None:
        output = output.truncated(truncate_dim)
    return replace(loaded, output=output, info={**loaded.info, "output": output.to_dict()})


def _prompt_length(loaded: LoadedModel) -> int:
    """Tokens of the prompt with the special ones before it, as sentence-transformers counts them."""
    if not loaded.prompt:
        return 0
    ids = loaded.tokenizer(loaded.prompt, verbose=False)["input_ids"]
    return len(ids) - (ids[-1] in loaded.tokenizer.all_special_ids)


def _require_transformers() -> None:
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in {"torch", "transformers"}:
            raise
        message = f"{error.name} is not installed; models need it: pip install 'cone_kernels[hf]'"
        raise ModuleNotFoundError(message, name=error.name) from None


def _device(device: str | torch.device | None) -> torch.device:
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ModelError(f"device: got {device!r}; it must be cpu, cuda or cuda:N") from None
    if chosen.type not in {"cpu", "cuda"}:
        raise ModelError(f"device: got {device!r}; it must be cpu, cuda or cuda:N (the sums are float64)")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise ModelError(
            f"device: got {str(device)!r}; it must be one of the {count} GPUs that torch {torch.__version__} sees"
        )
    return chosen


def _dtype(dtype: str | torch.dtype) -> Any:
    import torch

    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ModelError(f"dtype: got {dtype!r}; it must be one of {', '.join(DTYPES)}")
    return "auto" if dtype == "auto" else getattr(torch, dtype)


def _check_name(name: str) -> None:
    path = Path(name).expanduser()
    if path.is_file():
        raise ModelError(f"model: {name} is a file; it must be a model's folder or a hub id")
    if not path.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1 or not name):
        raise FileNotFoundError(f"model: there is no folder {name!r}")


def _load(
    source: Source, description: Description, dtype: Any, trust_remote_code: bool, attention: str | None
) -> tuple[Any, Any]:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

    # A subfolder of a local folder is a folder; only the hub needs to be told of it.
    location = source.name if source.folder is None else str(source.folder / description.subfolder)
    shared: dict[str, Any] = {"revision": source.revision, "trust_remote_code": trust_remote_code}
    if source.folder is None and description.subfolder:
        shared["subfolder"] = description.subfolder
    config = transformers.AutoConfig.from_pretrained(location, **shared)
    tokenizer = transformers.AutoTokenizer.from_pretrained(location, **shared)
    if description.lowercase:
        _lowercase(tokenizer, source.name)
    loader = transformers.AutoModel
    if config.is_encoder_decoder and type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        loader = transformers.AutoModelForTextEncoding
        config.is_encoder_decoder = False
    if attention is not None:
        shared[ATTENTION_KEYWORD] = attention
    shared[DTYPE_KEYWORD] = dtype
    model, loading = loader.from_pretrained(location, config=config, output_loading_info=True, **shared)
    missing = sorted(key for key in loading["missing_keys"] if not _may_miss(model, key))
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ModelError(f"model: {len(missing)} weights of {source.name} are not in its checkpoint: {shown}")
    if getattr(model.config, "is_encoder_decoder", False) and hasattr(model, "decoder"):
        model = model.get_encoder()
    model.config.use_cache = False
    return model, tokenizer


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


def _explained(name: str, error: Exception) -> ModelError:
    text = str(error)
    if "trust_remote_code" in text:
        return ModelError(f"model: {name} brings Python code of its own, which runs only with trust_remote_code")
    first_line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    where = "folder" if Path(name).expanduser().is_dir() else "hub id"
    return ModelError(f"model: the {where} {name!r} cannot be loaded: {first_line}")


def _max_length(model: Any, tokenizer: Any, description: Description) -> int | None:
    bounds = [description.max_length, tokenizer.model_max_length, _position_bound(model)]
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


def _input_names(model: Any, tokenizer: Any) -> tuple[str, ...]:
    accepted = inspect.signature(model.forward).parameters
    return tuple(name for name in tokenizer.model_input_names if name in accepted)


def _info(model: Any, source: Source, description: Description, max_length: int | None) -> dict[str, Any]:
    config = model.config.get_text_config()
    return {
        "name": source.name,
        "revision": source.commit(description.subfolder) or source.revision,
        "architecture": type(model).__name__,
        "model_type": config.model_type,
        "n_layers": getattr(config, "num_hidden_layers", None),
        "hidden_size": getattr(config, "hidden_size", None),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": getattr(model.config, ATTENTION_CHOSEN, None),
        "weights_sha256": source.weights_sha256(description.subfolder),
        "max_length": max_length,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' warnings, reports and progress bars, which are put back afterwards."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_bars = not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()
