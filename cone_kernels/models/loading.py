"""Loads a model and its tokenizer from a folder or the Hugging Face hub, and says exactly which model it is."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cone_kernels.files import sha256_of
from cone_kernels.models.compiled_blocks import compile_blocks
from cone_kernels.models.transformers_names import (
    ATTENTION_CHOSEN,
    ATTENTION_KEYWORD,
    DTYPE_KEYWORD,
    POSITION_EMBEDDINGS,
)

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")

# In files of these names sentence-transformers keeps the longest input that a model was tuned for.
_SENTENCE_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Tokenizers without a length of their own give 1e30.
_NO_LENGTH = 10**9


class ModelError(ValueError):
    """A model cannot be loaded as asked; the message names it and what is missing."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and what it is.

    Attributes:
        model: in eval mode, on its device; of an encoder-decoder model the encoder alone.
        tokenizer: the model's own.
        max_length: the most tokens that a sentence may have, with special tokens; None where there is no limit.
        input_names: which of the tokenizer's outputs the model's forward takes.
        info: JSON data that names the model: name, revision, architecture, model_type, n_layers, hidden_size,
            dtype, attention, weights_sha256, max_length, compiled.
    """

    model: torch.nn.Module
    tokenizer: Any
    max_length: int | None
    input_names: tuple[str, ...]
    info: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device


@dataclass(frozen=True)
class _Source:
    """Where the transformer's files are, and what sentence-transformers adds to them."""

    name: str
    revision: str | None
    subfolder: str = ""
    max_length: int | None = None
    lowercase: bool = False

    def file(self, filename: str) -> Path | None:
        """A file of the folder or hub repository, downloaded where need be; None where there is none."""
        path = Path(self.name).expanduser()
        if path.is_dir():
            return path / filename if (path / filename).is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(self.name, filename, revision=self.revision))
        except (EntryNotFoundError, LocalEntryNotFoundError):
            return None

    def commit(self) -> str | None:
        """The commit of a hub repository's files, which the hub's client keeps under snapshots/COMMIT."""
        config = self.file(f"{self.subfolder}/config.json" if self.subfolder else "config.json")
        parts = config.parts if config and not Path(self.name).expanduser().is_dir() else ()
        return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def load_model(
    path_or_hub_id: str | os.PathLike[str],
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    attention: str | None = None,
    torch_compile: bool = False,
) -> LoadedModel:
    """Loads a model from a local folder or by its hub id.

    Encoder-decoder models give their encoder. Folders of sentence-transformers are read too: their
    transformer is taken, with the longest input it was tuned for.

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

    Raises:
        ModuleNotFoundError: torch or transformers is not installed.
        FileNotFoundError: there is no such folder.
        ModelError: the model, device, dtype or attention cannot be had; weights are missing from the checkpoint; there
            are no blocks to compile.

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
            source = _sentence_transformer(_Source(name, revision))
            model, tokenizer = _load(source, chosen_dtype, trust_remote_code, attention)
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
    max_length = _max_length(model, tokenizer, source)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        max_length=max_length,
        input_names=_input_names(model, tokenizer),
        info={**_info(model, source, max_length), "compiled": torch_compile},
    )


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


def _sentence_transformer(source: _Source) -> _Source:
    """The source with what the files of sentence-transformers say of it; unchanged for a plain model."""
    modules_file = source.file("modules.json")
    if modules_file is None:
        return source
    try:
        first = json.loads(modules_file.read_text(encoding="utf-8"))[0]
        kind, subfolder = str(first["type"]), str(first["path"])
    except (ValueError, LookupError, TypeError) as error:
        raise ModelError(f"model: modules.json of {source.name} cannot be read: {error!r}") from None
    if kind.rpartition(".")[2] != "Transformer":
        raise ModelError(f"model: {source.name} starts with a {kind}; it must start with a Transformer module")
    for filename in _SENTENCE_CONFIGS:
        file = source.file(f"{subfolder}/{filename}" if subfolder else filename)
        if file is not None:
            config = json.loads(file.read_text(encoding="utf-8"))
            length, lowercase = config.get("max_seq_length"), bool(config.get("do_lower_case", False))
            return _Source(source.name, source.revision, subfolder, length, lowercase)
    return _Source(source.name, source.revision, subfolder)


def _load(source: _Source, dtype: Any, trust_remote_code: bool, attention: str | None) -> tuple[Any, Any]:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

    path = Path(source.name).expanduser()
    # A subfolder of a local folder is a folder; only the hub needs to be told of it.
    location = str(path / source.subfolder) if path.is_dir() else source.name
    shared: dict[str, Any] = {"revision": source.revision, "trust_remote_code": trust_remote_code}
    if not path.is_dir() and source.subfolder:
        shared["subfolder"] = source.subfolder
    config = transformers.AutoConfig.from_pretrained(location, **shared)
    tokenizer = transformers.AutoTokenizer.from_pretrained(location, **shared)
    if source.lowercase:
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


def _max_length(model: Any, tokenizer: Any, source: _Source) -> int | None:
    bounds = [source.max_length, tokenizer.model_max_length, _position_bound(model)]
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


def _info(model: Any, source: _Source, max_length: int | None) -> dict[str, Any]:
    config = model.config.get_text_config()
    return {
        "name": source.name,
        "revision": source.commit() or source.revision,
        "architecture": type(model).__name__,
        "model_type": config.model_type,
        "n_layers": getattr(config, "num_hidden_layers", None),
        "hidden_size": getattr(config, "hidden_size", None),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": getattr(model.config, ATTENTION_CHOSEN, None),
        "weights_sha256": _weights_sha256(source),
        "max_length": max_length,
    }


def _weights_sha256(source: _Source) -> str | None:
    """sha256 over the weight files, one after the other by name; of a single file it is that file's own."""
    prefix = f"{source.subfolder}/" if source.subfolder else ""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = source.file(f"{prefix}{stem}.index.json")
        names = [stem]
        if index is not None:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [source.file(prefix + name) for name in names]
        found = [file for file in files if file is not None]
        if len(found) == len(files):
            return sha256_of(*found)
    return None


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
