"""Reads a report back as a reader does: what its numbers say, and where in the results they come from."""

from __future__ import annotations

import re
from decimal import Context, Decimal, localcontext
from pathlib import Path
from typing import Any

from cone_kernels.report import write_report
from tests.support.html_tree import Element, read_html

RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


class Report:
    """A report that was written, and the results it was written from."""

    def __init__(self, results: dict[str, Any], file: Path) -> None:
        write_report(results, file)
        self.results, self.page = results, file.read_text("utf-8")
        self.root = read_report(self.page)

    def at(self, pointer: str) -> Any:
        """What a JSON pointer leads to."""
        return value_at(self.results, pointer)


def read_report(page: str) -> Element:
    """The tree of a page or a fragment, every place in the results told from their beginning, every shared style put
    back where it belongs."""
    root = read_html(page)
    rules = {}
    for sheet in root.all("style"):
        for name, rule in re.findall(r"^\.cone \.([\w-]+)\{([^}]*)\}$", sheet.text, flags=re.MULTILINE):
            assert name not in rules
            rules[name] = "; ".join(": ".join(part.split(":", 1)) for part in rule.split(";"))
    for element in root.walk():
        for name in ("data-at", "data-key", "data-from"):
            if name in element.attributes:
                found = element.attributes[name].split(" ") if name == "data-from" else [element.attributes[name]]
                element.attributes[name] = " ".join(whole_pointer(pointer, element) for pointer in found)
        kinds = element.attributes.get("class", "").split()
        shared = [kind for kind in kinds if kind in rules]
        if shared:
            assert "style" not in element.attributes
            (element.attributes["style"],) = (rules[kind] for kind in shared)
            element.attributes["class"] = " ".join(kind for kind in kinds if kind not in shared)
    return root


def whole_pointer(pointer: str, element: Element) -> str:
    """A JSON pointer that leads on from `data-in` of the nearest element around it; one that begins with / is whole."""
    around: Element | None = element
    while around is not None and not pointer.startswith("/"):
        if "data-in" in around.attributes:
            pointer = f"{around.attributes['data-in']}/{pointer}"
        around = around.parent
    assert pointer.startswith("/"), pointer
    return pointer


def value_at(data: Any, pointer: str) -> Any:
    """What a JSON pointer leads to, by RFC 6901; None also where there is nothing."""
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        data = data[int(name)] if isinstance(data, list) else None if data is None else data.get(name)
    return data


def read_number(shown: str) -> tuple[Decimal, Decimal]:
    """What a reader takes a number for, and half a unit of its last digit."""
    found = re.fullmatch(r"([+−]?)([\d,]+(?:\.\d+)?)(?:×10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?(%?)", shown)
    assert found, shown
    sign, digits, raised, is_percent = found.groups()
    power = int(raised.translate(RAISED)) if raised else 0
    power -= 2 if is_percent else 0
    number = Decimal(digits.replace(",", "")).scaleb(power)
    unit = Decimal(1).scaleb(power - len(digits.partition(".")[2]))
    return (-number if sign == "−" else number), unit / 2


def is_rounded(value: float, shown: str) -> bool:
    with localcontext(Context(prec=1100)):  # in which any float is exact
        number, half = read_number(shown)
        return abs(number - Decimal(value)) <= half


def is_traced(element: Element) -> bool:
    return any(name in element.attributes for name in ("data-at", "data-key"))
