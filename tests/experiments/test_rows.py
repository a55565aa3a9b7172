"""Two sources row by row: against NumPy and SciPy, and what is said of pairs whose relation is known."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from click.testing import CliRunner, Result

from cone_kernels import experiments
from cone_kernels.cli import main
from cone_kernels.experiments.result import Estimate
from cone_kernels.experiments.rows_result import FarRow, RowsResult
from cone_kernels.report import fragment
from cone_kernels.runs.progress import Progress
from cone_kernels.statistics.neighbours import EvenlySpaced, NeighbourOverlap
from cone_kernels.statistics.twin_rows import FOLDS, Rotation, TwinRows
from cone_kernels.sums import jackknife_groups
from cone_kernels.vector_files import Vectors
from tests.support.vector_writers import write_bin

D = 24


def cone(n: int, d: int = D, seed: int = 0) -> np.ndarray:
    """(n, d) float64 with a mean cosine well above 0."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, d)) + 1.5 * generator.normal(size=d)


def turn(d: int = D, wide: int = D) -> np.ndarray:
    """(d, wide) whose rows are orthonormal."""
    return np.linalg.qr(np.random.default_rng(7).normal(size=(wide, wide)))[0][:d]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_numbers_are_those_of_numpy() -> None:
    a = cone(500)
    b = 2 * (a + 0.3 * cone(500, seed=1))
    found = experiments.rows(a, b, k=5, top=3)
    u, v = unit(a), unit(b)
    cosines = (u * v).sum(1)
    assert found.cosine is not None
    assert found.cosine.value == pytest.approx(cosines.mean(), abs=1e-12)
    # Independent rows: the jackknife over groups is near the error of a mean.
    assert found.cosine.stderr == pytest.approx(cosines.std() / np.sqrt(500), rel=0.3)
    assert found.quantiles["least"] == pytest.approx(cosines.min(), abs=1e-6)
    assert found.quantiles["median"] == pytest.approx(np.median(cosines), abs=1e-3)
    assert found.permuted == pytest.approx((u * np.roll(v, 250, 0)).sum(1).mean(), abs=1e-6)
    ratios = np.linalg.norm(b, axis=1) / np.linalg.norm(a, axis=1)
    assert found.norm_ratio.value == pytest.approx(np.exp(np.log(ratios).mean()), rel=1e-12)
    assert found.norm_spread == pytest.approx(np.log(ratios).std(ddof=1), rel=1e-9)
    order = np.argsort(cosines)
    assert [row.index for row in found.furthest] == order[:3].tolist()
    assert [row.cosine for row in found.furthest] == pytest.approx(cosines[order[:3]].tolist(), abs=1e-6)


def test_the_rotation_is_that_of_scipy_on_the_other_folds() -> None:
    a = cone(400)
    b = a @ turn() + 0.1 * cone(400, seed=1)
    twins = TwinRows(D, D)
    for first in range(0, 400, 90):
        twins.add(torch.from_numpy(a[first : first + 90]), torch.from_numpy(b[first : first + 90]), first)
    u, v, fold = unit(a), unit(b), jackknife_groups(torch.arange(400)).numpy() % FOLDS
    wanted, others = [], []
    for one in range(FOLDS):
        q, _ = scipy.linalg.orthogonal_procrustes(u[fold != one], v[fold != one])
        wanted.append((u[fold == one] @ q * v[fold == one]).sum(1).mean())
        others.append(u[fold == one].mean(0) @ q @ v[fold == one].mean(0))
    rotation = twins.rotation()
    assert rotation is not None
    assert rotation.cosine == pytest.approx(np.mean(wanted), abs=1e-12)
    assert rotation.permuted == pytest.approx(np.mean(others), abs=1e-12)
    assert rotation.stderr == pytest.approx(np.std(wanted, ddof=1) / 2, rel=1e-9)


@pytest.mark.parametrize(("n", "most"), [(6, 64), (30, 64), (64, 64), (65, 64), (1000, 64)])
def test_neighbours_are_those_of_a_plain_search(n: int, most: int) -> None:
    a = cone(n)
    b = a + 0.7 * cone(n, seed=1)
    kept = EvenlySpaced(most)
    for first in range(0, n, 17):
        kept.add(torch.from_numpy(a[first : first + 17]), torch.from_numpy(b[first : first + 17]))
    step = 1
    while len(range(0, n, step)) > most:
        step *= 2
    near = []
    for rows in (a[::step], b[::step]):
        cosines = unit(rows.astype(np.float32).astype(float)) @ unit(rows.astype(np.float32).astype(float)).T
        np.fill_diagonal(cosines, -np.inf)
        near.append([set(row[:4]) for row in np.argsort(-cosines, axis=1)])
    shared = [len(x & y) / 4 for x, y in zip(*near, strict=True)]
    found = kept.overlap(4)
    assert found is not None
    assert (found.among, found.queries) == (len(shared), len(shared))
    assert found.overlap == pytest.approx(np.mean(shared), abs=1e-12)
    assert found.stderr == pytest.approx(np.std(shared, ddof=1) / len(shared) ** 0.5, rel=1e-12)
    if n == 6:  # with one row less all others are the four nearest of each
        assert kept.overlap(5) is None
    assert found.chance == 4 / (len(shared) - 1)


def test_of_many_rows_so_many_are_kept_and_so_many_ask() -> None:
    for n, among, queries in ((1025, 1025, 1025), (2048, 2048, 1024), (8193, 4097, 1025)):
        kept = EvenlySpaced()
        kept.add(torch.ones(n, 1), torch.ones(n, 1))
        found = kept.overlap(1)
        assert found is not None
        assert (found.among, found.queries) == (among, queries)


def bfloat16(rows: np.ndarray) -> np.ndarray:
    return torch.from_numpy(rows).bfloat16().double().numpy()


KNOWN: dict[str, tuple[Any, str]] = {
    "itself": (lambda a: a, "same up to rounding"),
    "another length": (lambda a: 3 * a, "same up to rounding"),
    "bfloat16": (bfloat16, "same up to rounding"),
    "turned": (lambda a: a @ turn(), "same up to a rotation"),
    "turned, in bfloat16": (lambda a: bfloat16(a @ turn()), "same up to a rotation"),
    "turned into a wider space": (lambda a: a @ turn(D, D + 9), "same up to a rotation"),
    "noise of a third": (lambda a: a + cone(len(a), seed=3) / 3, "different"),
    "cut to half its width": (lambda a: a[:, : D // 2], "different"),
    "other texts": (lambda a: np.roll(a, 1, 0), "different"),
    "of nothing alike": (lambda a: np.random.default_rng(5).normal(size=a.shape), "different"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_relation_is_told(name: str) -> None:
    make, verdict = KNOWN[name]
    a = cone(600)
    found = experiments.rows(a, make(a))
    assert found.verdict == verdict
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["verdict"] == verdict
    assert verdict in fragment(found.to_dict())
    # What a rotation does is of no interest where nothing is to be turned.
    turned = any(line.startswith("After the best rotation") for line in found.summary())
    assert turned == (verdict != "same up to rounding")


def test_one_row_has_no_error_and_no_other_to_be_compared_with() -> None:
    found = experiments.rows(np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]]))
    assert found.summary()[1:] == ("A row and its twin have a cosine of 0.707107; of one row no error is known.",)


def test_too_few_rows_leave_a_rotation_undecided() -> None:
    a = cone(28)
    few = experiments.rows(a, a @ turn())
    assert (few.verdict, few.rotation) == ("undecided", None)
    assert few.summary()[0].endswith("it takes at least 33.")
    for wider in (experiments.rows(cone(40), cone(40) @ turn(D, 33)), experiments.rows(cone(40, 33), cone(40))):
        assert (wider.verdict, wider.rotation) == ("undecided", None)  # of the wider space's directions there are 33
        assert wider.summary()[0].endswith("it takes at least 45.")
    assert experiments.rows(a, a).verdict == "same up to rounding"
    assert experiments.rows(cone(40), cone(40) @ turn()).verdict == "same up to a rotation"
    one = experiments.rows(a[:1], a[:1])
    assert "undecided" in fragment(one.to_dict())
    assert (one.verdict, one.neighbours) == ("undecided", None)
    assert json.dumps(one.to_dict(), allow_nan=False)


SAME, APART, BETWEEN = (0.9995, 0.0005), (0.5, 0.01), (0.995, 0.01)  # a cosine and its error, beside one of 0.5


@pytest.mark.parametrize(
    ("cosine", "turned", "verdict", "begins"),
    [
        (SAME, APART, "same up to rounding", "a and b are the same up to rounding: twins are less than 1% of the way "),
        (BETWEEN, SAME, "undecided", "Whether a and b are the same is undecided at 1,000 rows."),
        (APART, SAME, "same up to a rotation", "a and b are the same up to a rotation: turned, twins are less than 1%"),
        (APART, APART, "different", "a and b differ, and no rotation takes the one to the other."),
        (APART, BETWEEN, "undecided", "Whether a and b are the same is undecided at 1,000 rows."),
        (APART, None, "undecided", "Whether a rotation takes a and b to each other is undecided: with 1,000 rows it "),
        (None, SAME, "same up to a rotation", "a and b are the same up to a rotation: turned"),
    ],
)
def test_what_is_said_of_two_sources(cosine: Any, turned: Any, verdict: str, begins: str) -> None:
    found = RowsResult(
        a={"name": "a", "dim": 3}, b={"name": "b", "dim": 4}, count=1000, n_left_out=2,
        cosine=None if cosine is None else Estimate(*cosine), quantiles={"least": -0.5, "percent_1": 0.25},
        permuted=0.5, rotation=None if turned is None else Rotation(*turned, permuted=0.5),
        norm_ratio=Estimate(2.0, 0.5), norm_spread=math.nan,
        neighbours=NeighbourOverlap(5, 100, 1000, 0.75, 0.125, 0.005), furthest=(FarRow(7, -0.5, "seven"),),
        manifest={},
    )  # fmt: skip
    twins = [] if cosine is None else [
        f"A row and its twin have a mean cosine of {cosine[0]:.6f} ± {cosine[1]:.2g}, a row and another's twin one of "
        "0.500; one row in a hundred has less than 0.250000 with its twin."
    ]  # fmt: skip
    best = [] if turned is None or cosine == SAME else [
        f"After the best rotation, on rows that it was not fitted on, twins have {turned[0]:.4f} ± {turned[1]:.2g}, "
        "others 0.500."
    ]  # fmt: skip
    near = "Of the 5 nearest rows they share 75.0% ± 12.5% (100 rows asked among 1,000; chance 0.50%)."
    assert found.verdict == verdict
    first, *others = found.summary()
    assert first.startswith(begins)
    assert others == [*twins, *best, near]
    data = found.to_dict()
    # Of the way from a cosine of 1 to the 0.5 of unrelated rows.
    for name, one in (("distance", cosine), ("rotated_distance", turned)):
        wanted = None if one is None else {"value": (1 - one[0]) / 0.5, "stderr": one[1] / 0.5}
        assert data[name] == (wanted and pytest.approx(wanted, rel=1e-12))
    quantiles = {"least": -0.5, "percent_1": 0.25}
    assert data["cosine"] == (None if cosine is None else {"value": cosine[0], "stderr": cosine[1], **quantiles})
    turn = None if turned is None else {"cosine": turned[0], "stderr": turned[1], "permuted": 0.5}
    assert (data["rotation"], data["permuted"], data["left_out"], data["same_below"]) == (turn, 0.5, 2, 0.01)
    assert data["norm_ratio"] == {"value": 2.0, "stderr": 0.5, "spread": None}
    assert data["furthest"] == [{"index": 7, "cosine": -0.5, "id": "seven"}]
    assert (found.n_bad, repr(found)) == (2, f"RowsResult(a and b, 1,000 rows: {verdict})")
    alike = replace(found, permuted=1.0).distance  # where all are alike there is no way to go
    assert alike is None or math.isnan(alike.value)


def test_distances_near_the_bound_are_undecided() -> None:
    a = cone(60)
    noise = cone(60, seed=1)
    low, high, found = 0.02, 0.4, ""
    while found != "undecided":
        middle = (low + high) / 2
        assert low < middle < high, "no share of noise is undecided"
        found = experiments.rows(a, a + middle * noise).verdict
        low, high = (middle, high) if found == "same up to rounding" else (low, middle)
    assert experiments.rows(a, a + 0.02 * noise).verdict == "same up to rounding"
    assert experiments.rows(a, a + 0.4 * noise).verdict == "different"


def test_rows_that_are_not_used_are_counted() -> None:
    a, b = cone(50), cone(50)
    a[3], b[7, 2], b[9] = 0, np.nan, np.inf
    found = experiments.rows(a, b)
    assert (found.count, found.n_left_out, found.n_bad) == (47, 3, 3)
    assert found.verdict == "same up to rounding"
    with pytest.raises(ValueError, match="a, b: got 2 rows and no pair of which both are finite and not zero"):
        experiments.rows(np.zeros((2, 4)), np.ones((2, 4)))


def test_unequal_numbers_of_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got 20 rows of .* and 30 of .*; it must be as many of both"):
        experiments.rows(cone(20), cone(30))
    for name, n in (("a", 9000), ("b", 8500)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"v": [i % 7 + 1, 2.0]}) for i in range(n)))
    with pytest.raises(ValueError, match=r"at least 9000 rows of a.jsonl and 8500 of b.jsonl"):
        experiments.rows(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    block: np.ndarray = cone(8192, 2)  # where a block ends, one of the two ends too
    for counts, got in (((1, 2), "8192 rows of .* and 16384 of"), ((2, 1), "16384 rows of .* and 8192 of")):
        with pytest.raises(ValueError, match=f"a, b: got at least {got} .*; it must be as many of both"):
            experiments.rows(*(iter([block] * count) for count in counts))
    with pytest.raises(ValueError, match="k: got 0; it must be at least 1"):
        experiments.rows(cone(20), cone(20), k=0)


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_on_the_command_line(tmp_path: Path) -> None:
    a = cone(100).astype(np.float32)
    np.save(tmp_path / "a.npy", a)
    np.savez(tmp_path / "b.npz", one=a @ turn().astype(np.float32))
    (tmp_path / "ids.txt").write_text("".join(f"text {i}\n" for i in range(100)))
    files = (tmp_path / "a.npy", tmp_path / "b.npz")
    done = command("compare", "--rows", *files)
    assert done.exit_code == 0, done.output
    assert "are the same up to a rotation" in " ".join(done.output.split())
    by_name = json.loads(command("rows", *files, "--ids", tmp_path / "ids.txt", "--json", "-").stdout)
    assert by_name["furthest"][0]["id"] == f"text {by_name['furthest'][0]['index']}"
    assert by_name["verdict"] == "same up to a rotation"
    assert "same up to a rotation" in fragment(by_name)
    refused = command("compare", "--rows", "--paired", *files)
    assert (refused.exit_code, "--paired and --rows: give one of them" in refused.output) == (2, True)


def test_the_command_judges_what_is_left_out_and_reads_the_first_rows(tmp_path: Path) -> None:
    a = cone(100).astype(np.float32)
    a[[3, 60, 61]] = 0
    a[70, 2] = np.nan
    write_bin(tmp_path / "a.data", a)
    write_bin(tmp_path / "b.data", a[:, ::-1])
    files = (tmp_path / "a.data", tmp_path / "b.data", "--format", "fbin")
    done = command("rows", *files, "--max-bad", 3, "--json", tmp_path / "rows.json")
    assert done.exit_code == 3
    assert "Error: 4 were left out; --max-bad allows 3" in done.stderr
    assert "left out: 4 pairs of which one is zero or not finite" in done.stderr
    assert re.search(r"100 pairs in \d+\.\d s: [\d,]+ pairs/s", done.stderr)
    assert json.loads((tmp_path / "rows.json").read_text())["count"] == 96
    assert command("rows", *files, "--max-bad", 4).exit_code == 0
    first = command("rows", *files, "--limit", 60, "--max-bad", 1, "--json", "-")
    assert first.exit_code == 0
    found, wanted = json.loads(first.stdout), experiments.rows(a[:60], a[:60, ::-1]).to_dict()
    assert {key: found[key] for key in ("count", "cosine", "furthest")} == {
        key: wanted[key] for key in ("count", "cosine", "furthest")
    }
    assert found["a"]["rows"] == 60


def test_progress_and_a_limit_over_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5, 13.25, 14.12345])
    module = import_module("cone_kernels.experiments.rows")
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock.__next__))
    a: np.ndarray = cone(20_000, 4)
    reports: list[Progress] = []
    found = experiments.rows(a, iter(np.array_split(a, 3)), limit=9000, progress=reports.append)
    assert [(one.unit, one.sentences, one.tokens, one.expected, one.elapsed) for one in reports] == [
        ("pairs", 8192, 0, 9000, 2.5),
        ("pairs", 9000, 0, 9000, 3.25),
    ]
    assert found.manifest["seconds"] == 4.123
    assert found.count == 9000
    with pytest.raises(ValueError, match="limit: got 0; it must be at least 1"):
        experiments.rows(a, a, limit=0)


def test_any_source_gives_the_same(tmp_path: Path) -> None:
    a, b = cone(300), bfloat16(cone(300))
    np.save(tmp_path / "a.npy", a)
    found = experiments.rows(Vectors(tmp_path / "a.npy"), iter(b))
    again: RowsResult = experiments.rows(a, torch.from_numpy(b))
    for result in (found, again):
        result.to_dict()
    skip = {"a", "b", "manifest", "summary"}
    assert {k: v for k, v in found.to_dict().items() if k not in skip} == {
        k: v for k, v in again.to_dict().items() if k not in skip
    }
    assert io.StringIO(repr(found)).read().startswith("RowsResult(a.npy and ")
