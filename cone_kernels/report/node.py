"""One place in the results: a value of the JSON data and the JSON pointer (RFC 6901) that leads to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

_KINDS = {"dict": "an object", "list": "a list", "str": "a string"}


class Node:
    """A value in JSON data that knows where it stands, so that what is shown can be traced back to the file.

    Args:
        value: the JSON data; None also where there is nothing.
        pointer: where it stands; "" is the whole.

    Examples:
        >>> Node({"layers": [{"layer": 0}]})["layers"][0]["layer"].pointer
        '/layers/0/layer'
    """

    __slots__ = ("pointer", "value")

    def __init__(self, value: Any, pointer: str = "") -> None:
        self.value = value
        self.pointer = pointer

    def __getitem__(self, key: str | int) -> Node:
        """The value below; `ValueError` names the place where there is none."""
        if isinstance(key, int):
            items = self._typed(list)
            if not -len(items) <= key < len(items):
                raise ValueError(f"results: {self._where} has {len(items)} entries; it must have entry {key}")
            return Node(items[key], f"{self.pointer}/{key % len(items)}")
        if key not in self._typed(dict):
            raise ValueError(f"results: {self._where} has no {key!r}")
        return self.get(key)

    def get(self, key: str) -> Node:
        """The value below; a node of None where nothing has that name, or where this node itself has no value."""
        escaped = key.replace("~", "~0").replace("/", "~1")
        below = self._typed(dict).get(key) if self.known else None
        return Node(below, f"{self.pointer}/{escaped}")

    def __iter__(self) -> Iterator[Node]:
        """The entries of a list."""
        return (self[at] for at in range(len(self)))

    def __len__(self) -> int:
        return len(self._typed(list))

    def items(self) -> Iterator[tuple[str, Node]]:
        """Names and values of an object; none where there is nothing."""
        return ((key, self.get(key)) for key in (self._typed(dict) if self.known else ()))

    @property
    def entries(self) -> list[Node]:
        """The entries of a list; none where there is nothing."""
        return list(self) if self.known else []

    @property
    def known(self) -> bool:
        """Whether there is a value: neither absent nor null."""
        return self.value is not None

    @property
    def numeric(self) -> bool:
        """Whether it is a number; true and false do not count as numbers."""
        return isinstance(self.value, (int, float)) and not isinstance(self.value, bool)

    @property
    def number(self) -> float | int:
        """The value, which must be a finite number."""
        if not self.numeric or not abs(self.value) < float("inf"):
            raise ValueError(f"results: {self._where} is {_short(self.value)}; it must be a finite number")
        found: float | int = self.value
        return found

    @property
    def text(self) -> str:
        """The value, which must be a string."""
        return str(self._typed(str))

    def __repr__(self) -> str:
        return f"Node({_short(self.value)}, {self.pointer!r})"

    @property
    def _where(self) -> str:
        return self.pointer or "the whole"

    def _typed(self, kind: type) -> Any:
        if not isinstance(self.value, kind):
            raise ValueError(f"results: {self._where} is {_short(self.value)}; it must be {_KINDS[kind.__name__]}")
        return self.value


def known(*nodes: Node) -> bool:
    """Whether all of them have a value."""
    return all(node.known for node in nodes)


def common_place(nodes: Iterable[Node]) -> str:
    """The pointer of the smallest part of the results that all of these lie in; "" for the whole."""
    parents = [node.pointer.split("/")[:-1] for node in nodes]
    if not parents:
        return ""
    first, last = min(parents), max(parents)
    alike = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return "/".join(first[:alike])


def place_within(pointer: str, place: str) -> str:
    """A pointer as it is written below an element with `data-in="place"`: without that; whole where it leads elsewhere.

    Examples:
        >>> place_within("/models/0/layers/2/name", "/models/0/layers")
        '2/name'
    """
    within = pointer.removeprefix(f"{place}/")
    return pointer if not place or within == pointer or within.startswith("/") else within


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
