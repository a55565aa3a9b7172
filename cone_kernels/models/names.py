"""What a model is called where its whole folder or hub id does not fit, and what it calls its own pooling."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cone_kernels.names import MODEL_POOLING, OUTPUT, POOLINGS, Layer

# Beginnings of folders' names that say nothing of the model in them.
_GENERIC = ("model", "checkpoint")


def short_name(name: str) -> str:
    """The last part of a folder or hub id; the last two where the last one says nothing.

    Examples:
        >>> short_name("sentence-transformers/all-MiniLM-L6-v2"), short_name("runs/7/checkpoint-500")
        ('all-MiniLM-L6-v2', '7/checkpoint-500')
    """
    parts = [part for part in re.split(r"[/\\]", name) if part]
    kept = 2 if parts and parts[-1].startswith(_GENERIC) else 1
    return "/".join(parts[-kept:]) or name


def with_own_pooling(poolings: Sequence[str], info: Mapping[str, Any]) -> tuple[str, ...]:
    """The poolings in the order of `POOLINGS`, with the model's own one in place of `MODEL_POOLING`.

    Args:
        poolings: as `cone_kernels.names.asked_poolings` gives them.
        info: of the `LoadedModel`.

    Raises:
        ValueError: the model has no pooling of its own, or one that layers cannot be pooled by.

    Examples:
        >>> with_own_pooling(["mean", "model"], {"name": "bge", "output": {"pooling": "cls"}})
        ('mean', 'cls')
    """
    if MODEL_POOLING not in poolings:
        return tuple(poolings)
    output = info.get("output") or {}
    own = output.get("pooling")
    if own not in POOLINGS or output.get("include_prompt") is False:
        why = output.get("reason") or "it is no folder of sentence-transformers"
        if own is not None:
            why = f"it pools by {own}" + ("" if own not in POOLINGS else " without its prompt")
        raise ValueError(
            f"pooling: got {MODEL_POOLING!r} for {info['name']}; it must be one of {', '.join(POOLINGS)}, because {why}"
        )
    return tuple(name for name in POOLINGS if name in poolings or name == own)


def default_layer(has_output: bool, pooling: str) -> Layer:
    """The layer that is looked at where a user names none: the model's output, unless layers were pooled as asked.

    Args:
        has_output: whether there is one.
        pooling: of the layers, by its own name; any but the mean was asked for.

    Examples:
        >>> default_layer(True, "mean"), default_layer(True, "cls")
        ('output', -1)
    """
    return OUTPUT if has_output and pooling == "mean" else -1


def measured_layer(layer: Layer | None, info: Mapping[str, Any], pooling: str = "mean") -> Layer:
    """The layer that a model is asked for, where a user names one or none.

    Args:
        layer: as asked for; None is the `default_layer`.
        info: of the `LoadedModel`.
        pooling: of the layers, by its own name.

    Raises:
        ValueError: the output is asked for together with a pooling of layers, or the model has none that is known.
    """
    if layer == OUTPUT and pooling != "mean":
        raise ValueError(f"pooling: got {pooling!r} with the layer {OUTPUT!r}; it must be left out, as the model pools")
    output = info.get("output")
    known = output is not None and "reason" not in output
    if layer == OUTPUT and not known:
        why = "it is no folder of sentence-transformers" if output is None else output["reason"]
        raise ValueError(f"layer: got {OUTPUT!r} for {info['name']}; it must be a number, because {why}")
    return default_layer(known, pooling) if layer is None else layer
