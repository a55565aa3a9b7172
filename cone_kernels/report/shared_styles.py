"""Styles that many elements of a page have in common, each written once as a rule of the style sheet."""

from __future__ import annotations

import re

# Texts in a page have no quotation marks of their own: they are escaped.
_STYLED = re.compile(r'<(?P<tag>\w+)(?P<before>[^<>]*?) style="(?P<style>[^"]*)"(?P<after>[^<>]*)>')
_CLASS = re.compile(r' class="([^"]*)"')


def share_styles(html: str, prefix: str = "s") -> tuple[str, str]:
    """The same HTML with a class in place of each `style`, and the rules of these classes.

    Args:
        html: what stands in an element of the class `cone`.
        prefix: of the classes; other HTML on the same page must have another one.

    Examples:
        >>> share_styles('<p style="color: red">a</p><p class="b" style="color: red">c</p>')
        ('<p class="s0">a</p><p class="b s0">c</p>', '.cone .s0{color:red}\\n')
    """
    classes: dict[str, str] = {}

    def with_class(found: re.Match[str]) -> str:
        name = classes.setdefault(found["style"], f"{prefix}{len(classes)}")
        others = found["before"] + found["after"]
        own = _CLASS.search(others)
        kinds = name if own is None else f"{own[1]} {name}"
        return f'<{found["tag"]} class="{kinds}"{_CLASS.sub("", others)}>'

    shared = _STYLED.sub(with_class, html)
    return shared, "".join(f".cone .{name}{{{_short(style)}}}\n" for style, name in classes.items())


def _short(style: str) -> str:
    return re.sub(r"([:;]) ", r"\1", style)
