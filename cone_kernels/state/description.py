"""A state in a few words: the lines that `repr` shows, and the table that a notebook shows."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cone_kernels.devices import is_captured
from cone_kernels.sums import SECOND_MOMENT_FIELDS

_ROWS = {"sentence": "sentences", "token": "tokens"}
_LEFT_OUT = {"n_zero": "zero", "n_nonfinite": "not finite", "n_empty": "without a token"}
_LAYERS_SHOWN = 8


def layers_in_words(layers: Sequence[int]) -> str:
    """The numbers of layers: a range where they follow each other, otherwise the first eight.

    Examples:
        >>> layers_in_words(range(7)), layers_in_words([0, 6, 12])
        ('0 to 6', '0, 6, 12')
    """
    if len(layers) > 1 and list(layers) == list(range(layers[0], layers[0] + len(layers))):
        return f"{layers[0]} to {layers[-1]}"
    more = len(layers) - _LAYERS_SHOWN
    return ", ".join(map(str, layers[:_LAYERS_SHOWN])) + (f" and {more} more" if more > 0 else "")


def rows_in_words(level: str, sums: Mapping[str, Tensor]) -> str:
    """How many rows of a level were counted and left out, of the layer with the fewest and that with the most.

    Sums on a GPU are read at once, by one wait for it; those that cannot be read (without memory, or while a CUDA
    graph is captured) are not.

    Examples:
        >>> rows_in_words("sentence", moments.sums)
        'sentences: 998 to 1,000 counted; left out: 0 to 2 not finite'
    """
    names = [name for name in ("count", *_LEFT_OUT) if name in sums]
    if not all(_readable(sums[name]) for name in names):
        return f"{_ROWS[level]}: cannot be read now"
    counts = torch.stack([sums[name].sum(-1) for name in names]).tolist()  # a count for each layer
    of = dict(zip(names, counts, strict=True))
    left_out = [f"{_span(of[name])} {what}" for name, what in _LEFT_OUT.items() if any(of.get(name, ()))]
    lost = f"left out: {', '.join(left_out)}" if left_out else "none left out"
    return f"{_ROWS[level]}: {_span(of['count'])} counted; {lost}"


def as_table(lines: str) -> str:
    """The lines of a `repr`, the first of which says what it is of, as an HTML table.

    Examples:
        >>> as_table("Moments(token level)\\n  layers: 0 to 6")
        '<table><caption>Moments(token level)</caption><tr><th style="text-align:left">layers</th>...'
    """
    head, *rows = html.escape(lines).split("\n  ")
    left = 'style="text-align:left"'
    cells = (row.partition(": ") for row in rows)
    body = "".join(f"<tr><th {left}>{what}</th><td {left}>{said}</td></tr>" for what, _, said in cells)
    return f"<table><caption>{head}</caption>{body}</table>"


def second_moments_in_words(fields: Sequence[str]) -> str:
    """The second moments among these fields."""
    return " and ".join(name for name in SECOND_MOMENT_FIELDS if name in fields) or "not kept"


def model_in_words(info: Mapping[str, Any]) -> str:
    """The model's name in a state's `info`, where it may be a name or an object with one."""
    model = info.get("model")
    name = model.get("name") if isinstance(model, Mapping) else model
    return str(name) if name else "model not named"


def _span(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def _readable(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and not tensor.is_meta and not is_captured(tensor)
