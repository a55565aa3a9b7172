"""An HTML page as a tree, by the standard library's parser, for tests that read pages as browsers do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = ("meta", "wbr", "br", "link", "img", "input", "hr")


@dataclass(eq=False)
class Element:
    """An element; its children are elements and strings."""

    tag: str
    attributes: dict[str, str]
    parent: Element | None = None
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text within."""
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def walk(self) -> Iterator[Element]:
        """The element and all within it, in order."""
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child.walk()

    def all(self, *tags: str) -> list[Element]:
        """The elements of these tags within."""
        return [element for element in self.walk() if element.tag in tags]

    def within(self, *tags: str) -> bool:
        """Whether one of these stands around it."""
        return self.parent is not None and (self.parent.tag in tags or self.parent.within(*tags))

    def text_outside(self, left_out: Callable[[Element], bool]) -> str:
        """All text but that of some elements."""
        found = ""
        for child in self.children:
            found += child if isinstance(child, str) else "" if left_out(child) else child.text_outside(left_out)
        return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = self.at = Element("", {})

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> has an attribute twice"
        child = Element(tag, {name: value or "" for name, value in attrs}, self.at)
        self.at.children.append(child)
        if tag not in VOID:
            self.at = child

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        raise AssertionError(f"<{tag}/> closes itself, which HTML does not know")

    def handle_endtag(self, tag: str) -> None:
        assert self.at.tag == tag, f"</{tag}> closes <{self.at.tag}>"
        assert self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        self.at.children.append(data)


def read_html(page: str) -> Element:
    """The tree of a page whose every tag is closed where it must be."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.at is reader.root, f"<{reader.at.tag}> is not closed"
    return reader.root
