"""Every promise of the docs names tests that are there."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.places import ROOT

DOCUMENT = ROOT / "docs" / "what_is_promised.md"
ROWS = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ") and "What happens" not in line]


def named_tests(row: str) -> list[str]:
    return re.findall(r"`(tests/[\w/]+\.py::\w+)`", row)


@pytest.mark.parametrize("row", ROWS, ids=[row.split("|")[1].strip() for row in ROWS])
def test_a_promise_names_a_test_that_is_there(row: str) -> None:
    found = named_tests(row)
    assert found
    for name in found:
        file, function = name.split("::")
        tree = ast.parse((ROOT / file).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


def test_all_parts_of_the_table_are_read() -> None:
    assert len(ROWS) >= 45
    assert sum(row.count("::") for row in ROWS) == sum(len(named_tests(row)) for row in ROWS)
