"""What the files of sentence-transformers say of a model beside its transformer; a plain model has none of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from cone_kernels.models.source import ModelError, Source, inside

# In files of these names sentence-transformers keeps the longest input that a model was tuned for.
_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_ROUTES = (
    "it sends queries and documents different ways; for the layers of one of them give its folder, such as "
    "{folder}/{first}, and measure what encode gives by `cone vectors`"
)
# Settings of a Transformer that change its tokens or its layers, but for what changes neither.
_LOADING_KEYS = (
    *("model_args", "model_kwargs", "config_args", "config_kwargs", "tokenizer_args", "processor_kwargs"),
    "processing_kwargs",
)
_HARMLESS = frozenset(
    ("trust_remote_code", "revision", "torch_dtype", "dtype", "attn_implementation", "device_map", "use_safetensors")
)
# Modules that a folder may begin with in place of a transformer, and what to do with it.
_OTHER_BEGINNINGS = {
    "Router": _ROUTES,
    "Asym": _ROUTES,
    "CLIPModel": "it holds a model of images and texts; give the folder of CLIP itself, whose text tower is taken",
    "WordEmbeddings": "it has no layers: each word has one vector; measure what its encode gives by `cone vectors`",
    "BoW": "it has no layers: it counts words; measure what its encode gives by `cone vectors`",
}


# Tokens that `encode` of model2vec takes of a text at most, unless its configuration says otherwise.
_MODEL2VEC_TOKENS = 512


class Static(Enum):
    """Whose rules a table of token vectors follows, in place of a transformer."""

    SENTENCE_TRANSFORMERS = "StaticEmbedding"
    MODEL2VEC = "model2vec"


@dataclass(frozen=True)
class Description:
    """What there is around the transformer.

    Attributes:
        subfolder: where the transformer's files are; empty for the folder itself.
        base: the folder or hub id of the model that the transformer is an adapter (LoRA) of; None for a whole one.
        max_length: the longest input that it was tuned for.
        lowercase: whether text is lowercased first.
        static: what there is in place of a transformer; None for a transformer.
        modules: class and subfolder of each module of `modules.json`, the transformer first; none for a plain model.
        prompts: texts that are put before every sentence, by name.
        default_prompt: the name of the one that `encode` takes by itself.
        truncate_dim: of the vectors `encode` keeps so many first dimensions.
        no_output: why the modules do not say what `encode` gives; None where they do.
    """

    subfolder: str = ""
    base: str | None = None
    max_length: int | None = None
    lowercase: bool = False
    static: Static | None = None
    modules: tuple[tuple[str, str], ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    truncate_dim: int | None = None
    no_output: str | None = None

    def prompt(self, prompt: str | None, prompt_name: str | None) -> str:
        """The text that is put before every sentence: the one asked for, or as `encode` chooses it.

        Args:
            prompt: the text itself; "" for none.
            prompt_name: the name of one of `prompts`.

        Raises:
            ModelError: both are given, or there is no prompt of this name.
        """
        if prompt is not None and prompt_name is not None:
            raise ModelError(f"prompt: got {prompt!r} together with prompt_name {prompt_name!r}; give one of them")
        if prompt is not None:
            return prompt
        name = self.default_prompt if prompt_name is None else prompt_name
        if name is None:
            return ""
        if prompt_name is None and name not in self.prompts:
            raise ModelError(f"model: its default prompt {name!r} is none of its prompts: {', '.join(self.prompts)}")
        if name not in self.prompts:
            known = ", ".join(self.prompts) or "none, for the model has no prompts"
            raise ModelError(f"prompt_name: got {name!r}; it must be one of the model's prompts: {known}")
        return self.prompts[name]


def description_of(source: Source) -> Description:
    """Reads the files.

    Raises:
        ModelError: they are damaged, or begin with a module that is no transformer; the way round is named.
    """
    listed = source.json("modules.json")
    if listed is None:
        return _model2vec(source) or Description(base=_base(source, ""))
    try:
        modules = tuple((str(module["type"]), str(module["path"])) for module in listed)
        kind, subfolder = modules[0]
    except (LookupError, TypeError) as error:
        raise ModelError(f"model: modules.json of {source.name} cannot be read: {error!r}") from None
    subfolder = "" if subfolder == "." else subfolder
    static = Static.SENTENCE_TRANSFORMERS if kind.rpartition(".")[2] == Static.SENTENCE_TRANSFORMERS.value else None
    if static is None and kind.rpartition(".")[2] != "Transformer":
        raise _other_beginning(source, kind, subfolder)
    foreign = None if kind.startswith("sentence_transformers.") else f"its first module {kind} is code of its own"
    transformer = {} if static else _transformer(source, subfolder)
    settings = source.json("config_sentence_transformers.json") or {}
    family = settings.get("model_type", "SentenceTransformer")
    ours = family == "SentenceTransformer"
    prompts = {"query": "", "document": "", **(settings.get("prompts") or {})} if ours else {}
    return Description(
        subfolder=subfolder,
        base=None if static else _base(source, subfolder),
        static=static,
        max_length=transformer.get("max_seq_length"),
        lowercase=bool(transformer.get("do_lower_case", False)),
        modules=modules,
        prompts={name: text or "" for name, text in prompts.items()},
        default_prompt=settings.get("default_prompt_name") if ours else None,
        truncate_dim=settings.get("truncate_dim") if ours else None,
        no_output=foreign or why_no_output(family, transformer),
    )


def _model2vec(source: Source) -> Description | None:
    """What model2vec's configuration says, of a folder without modules.json; None for other folders."""
    config = source.json("config.json") or {}
    if config.get("model_type") != Static.MODEL2VEC.value:
        return None
    kinds = ["StaticEmbedding", "Normalize"] if config.get("normalize") else ["StaticEmbedding"]
    return Description(
        static=Static.MODEL2VEC,
        max_length=config.get("max_length", _MODEL2VEC_TOKENS),
        modules=tuple(
            (f"sentence_transformers.models.{kind}", "" if not at else kind) for at, kind in enumerate(kinds)
        ),
    )


def _base(source: Source, subfolder: str) -> str | None:
    """The model that the transformer's files adapt; None where they are those of a whole model."""
    if source.file(inside(subfolder, "config.json")) is not None:
        return None
    adapter = source.json(inside(subfolder, "adapter_config.json"))
    if adapter is None:
        return None
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise ModelError(f"model: {source.name} is an adapter and does not name its base (base_model_name_or_path)")
    return str(base)


def _transformer(source: Source, subfolder: str) -> dict[str, Any]:
    for filename in _TRANSFORMER_CONFIGS:
        config = source.json(inside(subfolder, filename))
        if config is not None:
            return dict(config)
    return {}


def why_no_output(family: str, transformer: Mapping[str, Any]) -> str | None:
    """Why what `encode` gives cannot be made of the last hidden states of plain text; None where it can.

    Args:
        family: the class of sentence-transformers that the model is.
        transformer: the settings of its Transformer module, as sentence_bert_config.json has them.
    """
    if family != "SentenceTransformer":
        return f"it is a {family}, which gives other things than one vector a sentence"
    modalities = transformer.get("modality_config") or {"text": {}}
    if "message" in modalities or "text" not in modalities:
        return "it is not given plain text but messages in a chat template, which this tool does not make"
    task = transformer.get("transformer_task") or "feature-extraction"
    if task != "feature-extraction":
        return f"its transformer_task is {task}, where this tool knows feature-extraction"
    for key in _LOADING_KEYS:
        changed = sorted(set(transformer.get(key) or {}) - _HARMLESS)
        if changed:
            return f"it sets {key}.{changed[0]}, which this tool does not heed"
    text = modalities["text"]
    given = text.get("method", "forward"), text.get("method_output_name", "last_hidden_state")
    if given != ("forward", "last_hidden_state"):
        return f"its modules are given what {given[0]} calls {given[1]}, where this tool knows the last hidden states"
    return None


def _other_beginning(source: Source, kind: str, subfolder: str) -> ModelError:
    name = kind.rpartition(".")[2]
    first = ""
    if name in {"Router", "Asym"}:
        config = (
            source.json(inside(subfolder, "router_config.json")) or source.json(inside(subfolder, "config.json")) or {}
        )
        first = next(iter(config.get("types", {})), "query_0_Transformer")
    folder = inside(source.name, subfolder) if subfolder else source.name
    hint = _OTHER_BEGINNINGS.get(name, "it must start with a Transformer module")
    return ModelError(f"model: {source.name} starts with a {kind}: {hint.format(folder=folder, first=first)}")
