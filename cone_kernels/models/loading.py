"""Loads a model and its tokenizer from a folder or the Hugging Face hub, and says exactly which model it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cone_kernels.files import sha256_of
from cone_kernels.models.compiled_blocks import compile_blocks
from cone_kernels.models.description import Description, description_of
from cone_kernels.models.loaded import LoadedModel, loaded_of, prompt_length, with_output
from cone_kernels.models.source import GGUF, ModelError, Source
from cone_kernels.models.transformer import load_transformer, text_encoder
from cone_kernels.word2vec import WORD2VEC_ENDING, is_word2vec

if TYPE_CHECKING:
    import torch

    from cone_kernels.models.output import Output
    from cone_kernels.models.towers import Towers

_ONNX = (
    "has ONNX weights, which this tool does not run; give the model that they were converted from, or measure the "
    "vectors that they give by `cone vectors`, and hold them against the model's own by `cone rows`"
)
# Endings of text files of word vectors.
WORD_VECTORS = (".txt", ".vec")
DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")


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
    gguf_file: str | None = None,
) -> LoadedModel:
    """Loads a model from a local folder or by its hub id.

    Encoder-decoder models give their encoder, CLIP and its kin the tower of texts; an adapter (LoRA) is loaded with its
    base. Folders of sentence-transformers are read too: their transformer, with the longest input it was tuned for, the
    prompt that `encode` takes, and as `output` the modules after it. Of a table of token vectors (StaticEmbedding,
    model2vec, a file of word vectors as GloVe's or word2vec's) the layers are one, the table.

    Args:
        path_or_hub_id: a folder, a GGUF file, a file of word vectors, or an id such as
            "mixedbread-ai/mxbai-embed-large-v1".
        device: "cpu", "cuda", "cuda:1", ...; None takes the first GPU, or the CPU where there is none.
        dtype: what the model computes in, a torch dtype or its name; "auto" keeps the checkpoint's own.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run the Python code that a model may bring along; never without this.
        attention: one of transformers' implementations: "sdpa", "eager", "flash_attention_2", ..., or "varlen", torch's
            own for packed batches on a GPU in 16 bits; None takes transformers' choice.
        torch_compile: compile the model's blocks by torch.compile; the first batches of a run then take longer, and the
            last bits differ from those without.
        prompt: a text to put before every sentence; "" for none. Default: as `encode` of sentence-transformers, the
            folder's default prompt.
        prompt_name: the name of one of the folder's prompts, in place of `prompt`.
        truncate_dim: keep so many first dimensions of `output`. Default: what the folder says.
        gguf_file: the name of the GGUF file that is the model, of a hub id or of a folder with several.

    Raises:
        ModuleNotFoundError: torch or transformers is not installed.
        FileNotFoundError: there is no such folder.
        ModelError: the model, device, dtype or attention cannot be had; weights are missing from the checkpoint; there
            are no blocks to compile; `prompt_name` or `truncate_dim` is none of this model's; there is no such
            `gguf_file`.

    Examples:
        >>> loaded = load_model("sentence-transformers/all-MiniLM-L6-v2")
        >>> loaded.info["architecture"], loaded.max_length
        ('BertModel', 256)
    """
    _require_transformers()
    chosen_device = _device(device)
    chosen_dtype = _dtype(dtype)
    name = os.fspath(path_or_hub_id)
    _check_name(name)
    with _explaining(name):
        source = Source(name, revision, gguf_file)
        description = description_of(source)
        whole, tokenizer, drops_unknown = _loaded(source, description, chosen_dtype, trust_remote_code, attention)
        model = text_encoder(whole)
    if model is not whole and description.no_output is None:
        description = replace(description, no_output=f"sentence-transformers runs the whole {type(whole).__name__}")
    model = _placed(model, chosen_device, torch_compile)
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    weights = source.weights(description.subfolder)
    if description.base is not None:
        weights = Source(description.base).weights() + weights
    loaded = loaded_of(
        model,
        tokenizer,
        description,
        name=name,
        revision=source.commit(description.subfolder) or revision,
        weights_sha256=sha256_of(*weights) if weights else None,
        prompt=description.prompt(prompt, prompt_name),
        compiled=torch_compile,
        drops_unknown=drops_unknown,
        gguf_file=None if source.gguf is None else source.gguf.name,
    )

    def output() -> Output:
        from cone_kernels.models.output import output_of_folder

        like, truncated = next(model.parameters()), description.truncate_dim
        return output_of_folder(
            source,
            description.modules,
            like,
            int(loaded.info["hidden_size"]),
            static=description.static is not None,
            prompt_length=lambda: prompt_length(loaded),
            truncate_dim=truncated,
        )

    return with_output(loaded, description, output, truncate_dim)


def load_image_model(
    path_or_hub_id: str | os.PathLike[str],
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    attention: str | None = None,
    torch_compile: bool = False,
) -> LoadedModel:
    """Loads a model of images, of CLIP and its kin the tower of images, with its image processor.

    Args:
        path_or_hub_id, device, dtype, revision, trust_remote_code, attention, torch_compile: as in `load_model`.

    Raises:
        ModuleNotFoundError, FileNotFoundError, ModelError: as `load_model`; the model takes no images.
    """
    _require_transformers()
    from cone_kernels.models.images import image_model_of
    from cone_kernels.models.transformer import load_image_model as load

    name, chosen_device, chosen_dtype = os.fspath(path_or_hub_id), _device(device), _dtype(dtype)
    _check_name(name)
    source = Source(name, revision)
    with _explaining(name):
        model, image_processor = load(source, chosen_dtype, trust_remote_code, attention)
    model = _placed(model, chosen_device, torch_compile)
    weights = source.weights()
    about = {"revision": source.commit("") or revision, "weights_sha256": sha256_of(*weights) if weights else None}
    return image_model_of(model, image_processor, name, **about, compiled=torch_compile)


def load_towers(
    path_or_hub_id: str | os.PathLike[str],
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Towers:
    """Loads a model with a tower of texts and one of images, whole, with its tokenizer and its image processor.

    Args:
        path_or_hub_id, device, dtype, revision, trust_remote_code: as in `load_model`.

    Raises:
        ModuleNotFoundError, FileNotFoundError, ModelError: as `load_model`; it has no two towers.
    """
    _require_transformers()
    from cone_kernels.models.towers import Towers
    from cone_kernels.models.transformer import load_image_processor

    name, chosen_device, chosen_dtype = os.fspath(path_or_hub_id), _device(device), _dtype(dtype)
    _check_name(name)
    source = Source(name, revision)
    with _explaining(name):
        model, tokenizer = load_transformer(source, Description(), chosen_dtype, trust_remote_code, None)
        towers = Towers(model.eval().to(chosen_device), tokenizer, None, name)
        return replace(towers, image_processor=load_image_processor(source, trust_remote_code))


def _loaded(
    source: Source, description: Description, dtype: Any, trust_remote_code: bool, attention: str | None
) -> tuple[Any, Any, bool]:
    """The model, its tokenizer, and whether words that this does not know are left out of a sentence."""
    if description.static is None and (source.whole is None or source.gguf is not None):
        return *load_transformer(source, description, dtype, trust_remote_code, attention), False
    if source.gguf_file is not None:
        raise ModelError(f"gguf_file: got {source.gguf_file!r}; it must be left out, for {source.name} is a table")
    if attention is not None:
        raise ModelError(f"attention: got {attention!r}; it must be left out, for a table of token vectors has none")
    from cone_kernels.models.static import load_static, load_word_vectors

    found = load_word_vectors(source.whole, dtype) if source.whole else load_static(source, description, dtype)
    return found.model, found.tokenizer, found.drops_unknown


def _placed(model: Any, device: torch.device, torch_compile: bool) -> Any:
    """The model on a device, for evaluation, its blocks compiled where that is asked for."""
    model = model.eval().to(device)
    if torch_compile and compile_blocks(model) == 0:
        raise ModelError(f"torch_compile: {type(model).__name__} has no list of blocks to compile")
    return model


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
    if not name:
        raise ModelError("model: got an empty name; it must be a model's folder or a hub id")
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() in (GGUF, *WORD_VECTORS):
            return
        if path.suffix.lower() == WORD2VEC_ENDING and is_word2vec(path):
            return
        if path.suffix.lower() == ".onnx":
            raise ModelError(f"model: {name} {_ONNX}")
        raise ModelError(
            f"model: {name} is a file; it must be a model's folder or a hub id, a GGUF file ({GGUF}), or a file of "
            f"word vectors: of text ({' or '.join(WORD_VECTORS)}), or word2vec's binary one ({WORD2VEC_ENDING}), which "
            "begins with a line of two whole numbers"
        )
    if not path.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"model: there is no folder {name!r}")


_WHICH_GGUF = "; of GGUF files one must be named: gguf_file (--gguf-file)"
# How an environment variable is switched on, as the hub's client reads it.
_SET = {"1", "ON", "YES", "TRUE"}


def _other_kind(folder: Path) -> str | None:
    """What a folder without a model of transformers has in place of one, in words; None where nothing is known."""
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return "is an adapter, and its base model cannot be loaded: it must be a folder here, or in the hub's cache"
    if any(folder.rglob("*.onnx")) and not any(any(folder.rglob(f"*{end}")) for end in (".safetensors", ".bin", GGUF)):
        return _ONNX
    if (folder / "config.json").is_file():
        has_tokenizer = any(folder.glob("*token*")) or any(folder.glob("*vocab*"))
        if (folder / "preprocessor_config.json").is_file() and not has_tokenizer:
            return "has no tokenizer, as models of images and sounds; the corpus of one of images is a folder of images"
        return None
    return "has no config.json; it must be one that save_pretrained, or sentence-transformers, has written"


def _refused_by_the_hub(error: Exception) -> str | None:
    """Why the hub does not give a model, in words; None where something else went wrong."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    raised = (error, error.__cause__)
    if any(isinstance(one, GatedRepoError) for one in raised):
        return "it is gated; accept its terms on its page of the hub, then run `hf auth login` or set HF_TOKEN"
    if any(isinstance(one, RepositoryNotFoundError) for one in raised):
        return "the hub shows no such model; for a private one run `hf auth login` or set HF_TOKEN"
    return None


def _explained(name: str, error: Exception) -> ModelError:
    text = str(error)
    if "trust_remote_code" in text:
        return ModelError(f"model: {name} brings Python code of its own, which runs only with trust_remote_code")
    folder = Path(name).expanduser()
    if not folder.is_dir() and (why := _refused_by_the_hub(error)):
        return ModelError(f"model: the hub id {name!r} cannot be loaded: {why}")
    # A repository of such files has no other weights, and often no configuration either.
    hint = "" if folder.is_dir() or "gguf" not in name.lower() else _WHICH_GGUF
    if not folder.is_dir() and isinstance(error, OSError) and "connect" in text:
        offline = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE", "0").upper() in _SET else "no connection"
        return ModelError(
            f"model: the hub id {name!r} cannot be loaded: there is no folder of this name here, and it is neither in "
            f"the cache nor to be had from the hub ({offline}){hint}"
        )
    if folder.is_dir() and (why := _other_kind(folder)):
        return ModelError(f"model: the folder {name!r} cannot be loaded: it {why}")
    first_line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    where = "folder" if folder.is_dir() else "hub id"
    return ModelError(f"model: the {where} {name!r} cannot be loaded: {first_line}{hint}")


@contextmanager
def _explaining(name: str) -> Iterator[None]:
    """A block that loads a model without a word; what goes wrong in it is said in one line.

    Args:
        name: of the model.

    Raises:
        ModelError: the block raised anything.
    """
    with _quiet():
        try:
            yield
        except ModelError:
            raise
        # A damaged or foreign folder can fail in any of the libraries below, each with errors of its own.
        except Exception as error:
            raise _explained(name, error) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' warnings, reports and progress bars, which are put back afterwards.

    The hub's bars stay where a terminal shows them: a download takes minutes.
    """
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
    # transformers switches the hub's bars off with its own.
    if hub_bars and sys.stderr is not None and sys.stderr.isatty():
        enable_progress_bars()
    else:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()
