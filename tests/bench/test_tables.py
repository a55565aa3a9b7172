"""The page of benchmarks has the figures of bench/results/, and what is missed is said to be missed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bench import tables


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the results that a test may change."""
    shutil.copytree(tables.RESULTS, tmp_path / "results")
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_the_page_is_what_the_results_say() -> None:
    page = tables.PAGE.read_text(encoding="utf-8")
    assert tables.with_tables(page) == page
    files = {path.stem for pattern in ("cpu-*.json", "gpu-*.json") for path in tables.RESULTS.glob(pattern)}
    assert {name for _, name, _ in tables.TABLE.findall(page)} == files | {f"{tables.GPU}-runs"}


def test_a_new_measurement_changes_the_page(results: Path) -> None:
    page = tables.PAGE.read_text(encoding="utf-8")
    file = results / "cpu-epyc-2-cores.json"
    found = json.loads(file.read_text())
    found["benchmarks"]["bench/bench_mean_pairwise_cosine.py::test_mean_pairwise_cosine"] |= {
        "bandwidth_share_of_torch_sum": 0.951,
        "median_seconds": 0.0375,
    }
    file.write_text(json.dumps(found))
    changed = set(tables.with_tables(page).splitlines()) - set(page.splitlines())
    assert len(changed) == 1
    assert "| 1,229 MB | 37.5 ms | 0.95 of `torch.sum`'s bandwidth (target 0.9, reached); 12 × " in changed.pop()


def test_targets_of_times_are_reached_from_below() -> None:
    ratio = tables.Ratio("times", "× the bare forward", "target", less=True)
    assert ratio.shown({"times": 1.029, "target": 1.03}) == "1.03 × the bare forward (target 1.03, reached)"
    assert ratio.shown({"times": 1.06, "target": 1.03}) == "1.06 × the bare forward (target 1.03, **missed**)"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (7.57e-9, "7.6e-9"),
        (0.699, "0.70"),
        (0.9973, "1.0"),
        (1.0324, "1.03"),
        (63.4, "63"),
        (99.7, "100"),
        (25373.6, "25,000"),
    ],
)
def test_two_digits(value: float, shown: str) -> None:
    assert tables.two_digits(value) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(26.01, "26 s"), (0.0409, "40.9 ms"), (7.71e-5, "77.1 µs")])
def test_durations(seconds: float, shown: str) -> None:
    assert tables.duration(seconds) == shown
