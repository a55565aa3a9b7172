"""A short name for a model, for where its whole folder or hub id does not fit."""

from __future__ import annotations

import re

# Beginnings of folders' names that say nothing of the model in them.
_GENERIC = ("model", "checkpoint")


def short_name(name: str) -> str:
    """The last part of a folder or hub id; the last two where the last one says nothing.

    Example:
        >>> short_name("sentence-transformers/all-MiniLM-L6-v2"), short_name("runs/7/checkpoint-500")
        ('all-MiniLM-L6-v2', '7/checkpoint-500')
    """
    parts = [part for part in re.split(r"[/\\]", name) if part]
    kept = 2 if parts and parts[-1].startswith(_GENERIC) else 1
    return "/".join(parts[-kept:]) or name
