"""Whether a cone turned or was removed, on rows where that is known, and against all pairs one by one."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from cone_kernels import ConeState
from cone_kernels.experiments import compare
from cone_kernels.experiments.compare_result import CompareResult
from cone_kernels.experiments.cone_change import ConeChange
from cone_kernels.report import fragment
from cone_kernels.sums import jackknife_blocks, jackknife_groups
from tests.experiments.test_compare import state_of
from tests.support.moment_cases import normal

N, D = 800, 16


def basis(at: int) -> Tensor:
    return torch.eye(D, dtype=torch.float64)[at]


def noise(seed: int, n: int = N) -> Tensor:
    return normal(n, D, dtype=torch.float64, seed=seed, shift=0)


def states(*layers: tuple[Tensor, Tensor]) -> tuple[ConeState, ConeState]:
    before, after = (torch.stack(rows)[:, :, None] for rows in zip(*layers, strict=True))
    return state_of(before), state_of(after)


BEFORE = noise(0) + 3 * basis(0)
AFTER = {
    "removed": noise(0),
    "turned": noise(0) + 3 * basis(1),
    "grew": noise(0) + 5 * basis(0),
    "added": noise(0) + 3.354 * basis(0) + 2 * basis(1),
    "stayed": noise(0) + 3 * basis(0) + 0.01 * noise(5),
}


@pytest.fixture(scope="module")
def result() -> CompareResult:
    return compare(*states(*((BEFORE, after) for after in AFTER.values())))


def cones(result: CompareResult) -> list[ConeChange]:
    return [row.cone for row in result.layers]


def test_each_change_is_called_by_its_name(result: CompareResult) -> None:
    assert [cone.verdict for cone in cones(result)] == list(AFTER)


def test_numbers_are_means_over_all_pairs_of_other_blocks(result: CompareResult) -> None:
    blocks = jackknife_blocks(states((BEFORE, BEFORE))[0].sentence.count[0])[jackknife_groups(torch.arange(N))]
    other = blocks[:, None] != blocks
    u, v = (torch.nn.functional.normalize(x, dim=1) for x in (BEFORE, AFTER["turned"]))
    before, after, both = (float((a @ b.mT)[other].mean()) for a, b in ((u, u), (v, v), (u, v)))
    cone = cones(result)[1]
    assert (cone.before, cone.after) == (pytest.approx(before, rel=1e-12), pytest.approx(after, rel=1e-12))
    assert cone.kept == pytest.approx(both**2 / before, rel=1e-10)
    assert cone.removed.estimate == pytest.approx(before - cone.kept, rel=1e-12)
    assert cone.new.estimate == pytest.approx(after - cone.kept, rel=1e-12)


def product(a: Tensor, b: Tensor, apart: Tensor) -> float:
    """The mean of x·y over pairs of rows (n, d) of two states that are apart (n, n)."""
    return float((a @ b.mT)[apart].mean())


@pytest.mark.parametrize("paired", [True, False])
def test_errors_are_those_of_leaving_out_every_block(paired: bool) -> None:
    rows = 96
    x, y = noise(3, rows) + 3 * basis(0), noise(4, rows) + 2 * basis(0) + 2 * basis(1)
    found = compare(state_of(x[None, :, None]), state_of(y[None, :, None]), paired=paired).layers[0].cone
    u, v = (torch.nn.functional.normalize(one, dim=1) for one in (x, y))
    groups = jackknife_groups(torch.arange(rows))
    block = jackknife_blocks(torch.bincount(groups, minlength=64))[groups]
    other = block[:, None] != block
    assert int(block.max()) >= 5

    def parts(a: Tensor, b: Tensor) -> Tensor:
        """(2,) removed and new, of the rows (n,) that are kept of each."""
        before, after = (product(one, one, other & keep & keep[:, None]) for one, keep in ((u, a), (v, b)))
        both = product(u, v, (other if paired else torch.ones_like(other)) & a[:, None] & b)
        return torch.tensor([before - both**2 / before, after - both**2 / before], dtype=torch.float64)

    everything, square = torch.ones(rows, dtype=torch.bool), torch.zeros(2, dtype=torch.float64)
    torch.testing.assert_close(
        torch.tensor([found.removed.estimate, found.new.estimate]).double(), parts(everything, everything)
    )
    for of_a, of_b in [(True, True)] if paired else [(True, False), (False, True)]:
        left = torch.stack(
            [parts((block != g) | (not of_a), (block != g) | (not of_b)) for g in range(int(block.max()) + 1)]
        )
        square += (len(left) - 1) * left.var(0, unbiased=False)
    assert (found.removed_stderr, found.new_stderr) == pytest.approx(tuple(square.sqrt().tolist()), rel=1e-6)


def test_summary_json_and_report_say_it(result: CompareResult) -> None:
    text = " ".join(result.summary())
    assert "At layer 0 the cone was removed, wholly or in part, and did not turn; of a mean cosine of" in text
    assert "At layer 1 the cone turned: part of it is gone, and another is there in its place" in text
    assert "At layer 2 the cone grew along its old direction; to a mean cosine of" in text
    assert "has come along the old mean" in text
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["layers"][1]["cone"]["verdict"] == "turned"
    assert data["layers"][1]["cone"]["new"]["value"] == cones(result)[1].new.estimate
    assert "Was the cone removed, or did it turn" in fragment(data)


def test_of_few_sentences_on_either_side_nothing_is_known() -> None:
    many, few = (state_of((noise(seed, n) + 3 * basis(0))[None, :, None]) for seed, n in ((1, 400), (2, 20)))
    for two in ((many, few), (few, many)):  # of 20 there are two blocks, which tell no error
        cone = compare(*two, paired=False).layers[0].cone
        assert math.isnan(cone.removed.bound)
        assert math.isnan(cone.new.bound)


def test_other_sentences_of_one_model_changed_nothing() -> None:
    """Null: two samples of one cone. Neither part is called gone or new in 19 of 20 times."""
    false = 0
    for seed in range(24):
        one, other = (noise(2 * seed + at, n) + 3 * basis(0) for at, n in ((1, 400), (2, 390)))
        found = compare(state_of(one[None, :, None]), state_of(other[None, :, None]), paired=False)
        cone = found.layers[0].cone
        false += cone.removed.verdict != "equal" and abs(cone.removed.estimate) > cone.removed.bound
        false += abs(cone.new.estimate) > cone.new.bound
    assert false <= 4


def test_without_a_cone_before_there_is_nothing_to_turn() -> None:
    rows = torch.cat([noise(1), -noise(1)])[torch.randperm(2 * N, generator=torch.Generator().manual_seed(0))]
    cone = compare(*states((rows, rows + 3 * basis(2)))).layers[0].cone
    assert cone.verdict == "undecided"
    assert cone.to_dict()["verdict"] == "undecided"


def test_errors_are_those_of_other_samples() -> None:
    """Over samples drawn anew the parts spread as their standard errors say."""
    found = []
    for seed in range(40):
        x = noise(seed + 100, 300)
        turned = x + noise(seed + 900, 300) * 0.5 + basis(0) + 2 * basis(1)
        found.append(
            compare(state_of((x + 3 * basis(0))[None, :, None]), state_of(turned[None, :, None])).layers[0].cone
        )
    for name in ("removed", "new"):
        spread = torch.tensor([getattr(cone, name).estimate for cone in found]).std()
        stated = torch.tensor([getattr(cone, f"{name}_stderr") for cone in found]).mean()
        assert float(stated / spread) == pytest.approx(1, abs=0.35)
