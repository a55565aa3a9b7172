"""The tools that look for what the tests do not: faults are put where they say, and altered input is made the same."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import pytest

from bench.fuzz import CASES, altered
from bench.mutate import faults_of, files_that_test
from tests.support.places import ROOT


@pytest.mark.parametrize("name", CASES)
def test_some_altered_inputs_of_every_kind_are_read_or_refused_in_words(name: str, tmp_path: Path) -> None:
    for number in range(8):
        CASES[name](random.Random(f"{name}-of the tests-{number}"), tmp_path)


def test_altered_bytes_are_made_by_the_seed_alone() -> None:
    content = bytes(range(256))
    made = [altered(content, random.Random(seed)) for seed in range(50)]
    assert made == [altered(content, random.Random(seed)) for seed in range(50)]
    assert sum(one != content for one in made) > 40


def test_a_fault_is_one_change_of_its_module() -> None:
    module = ROOT / "cone_kernels" / "sums.py"
    whole = ast.unparse(ast.parse(module.read_text())).splitlines()
    faults = faults_of(module)
    assert len(faults) > 50
    for fault in random.Random(0).sample(faults, 20):
        source, words = fault.source()
        ast.parse(source)
        lines = source.splitlines()
        assert lines != whole, words
        assert sum(a != b for a, b in zip(whole, lines, strict=False)) == 1 or len(lines) != len(whole), words
        assert words.startswith("cone_kernels/sums.py:")


def test_annotations_and_words_are_left_alone(tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    module.write_text('def f(x: "tuple[1, 2]", y: int = 3) -> int:\n    raise ValueError(f"got {x + 1}")\n')
    assert len(faults_of(module)) == 2  # the default, and the raise that is left out


def test_every_module_that_decides_has_tests() -> None:
    assert "tests/test_metrics.py" in files_that_test(ROOT / "cone_kernels" / "metrics.py")
    assert "tests/experiments/test_axis.py" in files_that_test(ROOT / "cone_kernels" / "experiments" / "solved_axes.py")
