"""Every name of transformers, and of what is built on it, that this package relies on: the one place to mend.

Beside each is which releases have it, where not all from 5.8 to 5.24 do. What can be told by behaviour is: a cache is
found whatever its argument is called. tests/models/test_transformers_names.py says which of these no longer hold.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

# Arguments of a model's forward.
TOKENS = ("input_ids", "inputs_embeds")
PIXELS = "pixel_values"
OTHER_INPUTS = (PIXELS, "input_features", "input_values")  # of images, spectrograms and waves
INPUTS = (*TOKENS, *OTHER_INPUTS)
ATTENTION_MASK = "attention_mask"
PATCH_MASK = "pixel_attention_mask"  # SigLIP 2
POSITIONS = "position_ids"
SEQUENCE_NUMBERS = "seq_idx"  # of the sentences in one row, beside or in place of STARTS
DECODER_TOKENS = ("decoder_input_ids", "decoder_inputs_embeds", "labels")
RETURN_HIDDEN_STATES = "output_hidden_states"
RETURN_MAPPING = "return_dict"
# Where the sentences of a batch flattened into one row begin, and the longest: queries and keys.
STARTS = ("cu_seq_lens_q", "cu_seq_lens_k")
LONGEST = ("max_length_q", "max_length_k")
# Caches that are no objects with a behaviour of their own but tuples or lists of tensors are known by these alone.
CACHES = (
    "cache",  # from 5.24
    "past_key_values",  # to 5.23
    "cache_params",  # Mamba, to 5.23
    "mems",  # XLNet
    "past_buckets_states",  # Reformer
    "state",  # RWKV
)

# What a tokenizer makes of a sentence, beside its token ids.
TOKEN_TYPES = "token_type_ids"
SPECIAL_TOKENS = "special_tokens_mask"
# What a class of tokenizers has of its own where a call does more than to ask the tokenizers library.
ENCODING = ("__call__", "_encode_plus", "_convert_encoding")

# Private methods of models of sounds: how many frames so many samples make; the mask of frames from that of samples.
FRAMES_OF_SAMPLES = "_get_feat_extract_output_lengths"
FRAME_MASK = "_get_feature_vector_attention_mask"
# Kinds of models that let all frames see each other, whatever the mask of samples says, and have the first method.
UNMASKED_SOUND = ("whisper",)

# Models with a tower of texts and one of images have both of these, and the method of each that gives its vectors.
TOWERS = {"text_model": "get_text_features", "vision_model": "get_image_features"}

# Fields of a model's output: the layers; of an encoder-decoder model called as a whole, its encoder's.
HIDDEN_STATES = ("hidden_states", "encoder_hidden_states")

# Of a model, and of its configuration, of the whole or of the part that reads texts.
CONFIGURATION = "config"
TEXT_CONFIGURATION = "get_text_config"
PADDING_TOKEN = "pad_token_id"

# Keywords of from_pretrained, and the private attribute of a configuration that tells what was chosen.
ATTENTION_KEYWORD = "attn_implementation"
ATTENTION_CHOSEN = "_attn_implementation"
DTYPE_KEYWORD = "dtype"
GGUF_KEYWORD = "gguf_file"
# Part of the name of every attention that keeps the sentences of a flattened batch apart.
FLASH = "flash"
# What torch's own attention of that kind is registered as; transformers would look for a package of a name with FLASH.
VARLEN = "varlen"
# The end of the name of an embedding of positions that count from after its padding index.
POSITION_EMBEDDINGS = "position_embeddings"
# The attribute of sentence-transformers' first module that is the Hugging Face model.
INNER_MODEL = "auto_model"
# Of a layer of peft: whether its adapters are off, and which are on.
ADAPTERS_IN_USE = ("disable_adapters", "active_adapters")
# A model of peft: its method for the model inside, with the adapters in it, and where it says that a prompt is learnt.
PEFT_INSIDE, PEFT_CONFIGURATION, PEFT_PROMPT = "get_base_model", "active_peft_config", "is_prompt_learning"
# Trainer names these of an evaluation, each after its prefix, in the metrics and the log of it.
EVALUATION_SPEED = ("_runtime", "_samples_per_second", "_steps_per_second")


def filled_cache(arguments: Mapping[str, Any]) -> str | None:
    """The name of the argument that is a cache of earlier tokens; None where there is none or it is still empty.

    Args:
        arguments: of a call of a model's forward, by name.

    Examples:
        >>> filled_cache({"input_ids": ids, "past_key_values": DynamicCache()})
        >>> filled_cache({"input_ids": ids, "past_key_values": model(ids).past_key_values})
        'past_key_values'
    """
    for name, value in arguments.items():
        kind: Any = type(value)
        if (name in CACHES or _is_cache(kind)) and any(bool(tensor.any()) for tensor in _tensors(value)):
            return name
    return None


def takes_cache(arguments: Mapping[str, Any]) -> bool:
    """Whether one of the arguments is a cache, an empty one too, as in the forwards of `generate`.

    Args:
        arguments: of a call of a model's forward, by name.
    """
    kinds: dict[str, Any] = {name: type(value) for name, value in arguments.items() if value is not None}
    return any(name in CACHES or _is_cache(kind) for name, kind in kinds.items())


def padding_token(model: nn.Module) -> int | None:
    """The id of the padding token of a model; None where its configuration does not say."""
    config = getattr(model, CONFIGURATION, None)
    of_texts = getattr(config, TEXT_CONFIGURATION, lambda: config)()
    number = getattr(of_texts, PADDING_TOKEN, None)
    return number if isinstance(number, int) else None


def adapter_layers(model: nn.Module) -> list[Any]:
    """The layers of a model that peft has put adapters into."""
    # A model of transformers has methods of these names.
    kinds = {type(module) for module in model.modules()}
    tuned = {kind for kind in kinds if all(isinstance(getattr(kind, name, 0), property) for name in ADAPTERS_IN_USE)}
    return [module for module in model.modules() if type(module) in tuned]


def adapters_in_use(layers: Iterable[Any]) -> tuple[Any, ...]:
    """Which adapters these layers apply now, as something to compare: equal where they are the same.

    Examples:
        >>> before = adapters_in_use(layers)
        >>> with model.disable_adapter():
        ...     adapters_in_use(layers) == before
        False
    """
    off, active = ADAPTERS_IN_USE
    return tuple((getattr(layer, off), *getattr(layer, active)) for layer in layers)


def encodes_as_library(tokenizer: Any) -> bool:
    """Whether a call of a tokenizer gives what its `backend_tokenizer` gives, which the call before has set up.

    Examples:
        >>> encodes_as_library(AutoTokenizer.from_pretrained("sentence-transformers/all-MiniLM-L6-v2"))
        True
    """
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    return isinstance(tokenizer, PreTrainedTokenizerFast) and all(
        getattr(kind, name) is getattr(PreTrainedTokenizerFast, name) for name in ENCODING
    )


@functools.lru_cache(maxsize=64)
def _is_cache(kind: type) -> bool:
    """Whether a class is one of transformers' caches: by its name or that of a base, or by what it can be asked."""
    return any(base.__name__.endswith("Cache") for base in kind.__mro__) or hasattr(kind, "get_seq_length")


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a cache that can hold tokens; a cache that is made with room for them begins with zeros."""
    from torch import Tensor, nn

    seen: set[int] = set()
    pending = [value]
    while pending:
        item = pending.pop()
        if id(item) in seen or isinstance(item, (type, nn.Module)):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            if item.dim() > 1:  # others are lengths and the like
                yield item
        elif isinstance(item, Mapping):
            pending.extend(item.values())
        elif isinstance(item, (tuple, list)):
            pending.extend(item)
        else:
            pending.extend(getattr(item, "__dict__", {}).values())
