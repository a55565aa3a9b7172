"""What must agree before two states may merge, and where it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def refuse_differences(what: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raises ValueError naming every key in which the two differ.

    Args:
        what: the two things, as the message names them: "merge: the two WHAT differ in ...".
        mine, theirs: what must agree, by name.
    """
    differing = differences(mine, theirs)
    if differing:
        raise ValueError(f"merge: the two {what} differ in {', '.join(differing)}")


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Every key in which the two differ, with both values, in words; a key that one lacks counts as None.

    Examples:
        >>> differences({"dim": 384, "level": "token"}, {"dim": 768, "level": "token"})
        ['dim (384 and 768)']
    """
    keys = [key for key in sorted(set(mine) | set(theirs)) if mine.get(key) != theirs.get(key)]
    return [f"{key} ({mine.get(key)!r} and {theirs.get(key)!r})" for key in keys]
