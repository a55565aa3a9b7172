from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from cone_kernels import backends, row_moments
from cone_kernels.ops.row_moments import row_moments_
from cone_kernels.sums import COSINE_FIELDS, ROW_FIELDS, jackknife_groups, zero_sums
from tests.support.moment_cases import DTYPES, GROUP_OF, RELATIVE, WIDTHS, assert_sums_close, normal, views


# pytest runs the tests of one parameter of a module's fixture together: every instruction set finds what the first did.
@pytest.fixture(scope="module", params=DTYPES, ids=str)
def every_width(request: pytest.FixtureRequest) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Rows (2, 150, d) of every width with what the reference makes of them."""
    drawn = [normal(2, 150, d, dtype=request.param, seed=d) for d in WIDTHS]
    return [(x, row_moments(x, backend="reference")) for x in drawn]


def test_equals_the_reference_at_every_width(isa: str, every_width: list[tuple[Tensor, dict[str, Tensor]]]) -> None:
    for x, wanted in every_width:
        assert_sums_close(row_moments(x, backend="cpu"), wanted, RELATIVE[x.dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_are_honoured(isa: str, dtype: torch.dtype) -> None:
    x = normal(3, 130, 37, dtype=dtype)
    wanted = row_moments(x, backend="reference")
    for layout, view in views(x).items():
        assert torch.equal(view, x), layout
        assert_sums_close(row_moments(view, backend="cpu"), wanted, RELATIVE[dtype])


def test_expanded_rows(isa: str) -> None:
    x = normal(1, 1, 19).expand(2, 70, 19)
    assert_sums_close(row_moments(x, backend="cpu"), row_moments(x.clone(), backend="reference"), 4e-7)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 63, 64, 65, 511, 512, 513, 2000])
def test_row_counts(isa: str, n: int) -> None:
    x = normal(n, 33)
    sums = row_moments(x, backend="cpu")
    assert int(sums["count"].sum()) == n
    assert_sums_close(sums, row_moments(x, backend="reference"), 4e-7)


def test_no_layer() -> None:
    assert row_moments(torch.empty(0, 5, 4))["unit_sum"].shape == (0, 64, 4)


def test_many_rows_in_many_tasks(isa: str) -> None:
    x = normal(40_000, 24, seed=3)
    ids = torch.randint(0, 10**9, (40_000,), generator=torch.Generator().manual_seed(4))
    for sentence_ids in (None, ids):
        wanted = row_moments(x, sentence_ids=sentence_ids, backend="reference")
        assert_sums_close(row_moments(x, sentence_ids=sentence_ids, backend="cpu"), wanted, 4e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_left_out_are_counted_in_their_group(isa: str, dtype: torch.dtype) -> None:
    x = normal(300, 70, dtype=dtype)
    assert GROUP_OF[3] == GROUP_OF[290] == 3
    x[[3, 290]] = 0
    x[5, 69] = torch.nan
    x[6, 0] = torch.inf
    x[7, 33] = -torch.inf
    sums = row_moments(x, backend="cpu")
    assert sums["n_zero"].nonzero().flatten().tolist() == [3]
    assert sums["n_zero"][3] == 2
    assert sums["n_nonfinite"].nonzero().flatten().tolist() == [5, 6, 7]
    assert int(sums["count"].sum()) == 295
    assert_sums_close(sums, row_moments(x, backend="reference"), RELATIVE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e-12, 1e4, 1e15, 1e18, 1e25, 1e36])
def test_extreme_rows_keep_their_direction(isa: str, dtype: torch.dtype, scale: float) -> None:
    x = (normal(90, 40, dtype=torch.float64) * scale).to(dtype)
    x[::3] = normal(30, 40, dtype=dtype, seed=1)
    sums = row_moments(x, backend="cpu")
    assert int(sums["count"].sum()) == 90
    assert_sums_close(sums, row_moments(x, backend="reference"), RELATIVE[dtype])


def test_float16_at_its_largest(isa: str) -> None:
    x = torch.full((10, 50), 65504.0, dtype=torch.float16)
    sums = row_moments(x, backend="cpu")
    assert float(sums["sq_sum"].sum()) == pytest.approx(500 * 65504.0**2, rel=1e-6)
    assert_sums_close(sums, row_moments(x, backend="reference"), 4e-7)


def test_float64_beyond_its_squares_is_not_finite(isa: str) -> None:
    x = torch.tensor([1e160, 1e-170, 1e-150], dtype=torch.float64)[:, None].expand(3, 9)
    for backend in ("cpu", "reference"):
        sums = row_moments(x, backend=backend)
        assert [int(sums[name].sum()) for name in ("count", "n_zero", "n_nonfinite")] == [1, 1, 1], backend


def test_status_says_what_each_row_was_left_out_for() -> None:
    x = normal(1, 6, 8)
    x[0, 1] = 0
    x[0, 4, 2] = torch.nan
    for backend in ("cpu", "reference"):
        sums = zero_sums(ROW_FIELDS, 1, 8)
        status = row_moments_(x, torch.tensor([0, 1, -1, 3, 4, 5]), list(sums.values()), backend)
        assert status.tolist() == [[0, 1, 0, 0, 2, 0]], backend
        assert sums["count"][0, :6].tolist() == [1, 0, 0, 1, 0, 1], backend


def test_adds_to_what_is_there(isa: str) -> None:
    sums, wanted = zero_sums(ROW_FIELDS, 1, 12), zero_sums(ROW_FIELDS, 1, 12)
    for rows in (normal(50, 12), normal(70, 12, seed=1)):
        for found, backend in ((sums, "cpu"), (wanted, "reference")):
            row_moments_(rows[None], None, list(found.values()), backend)
    assert sums["count"][0].tolist() == [3] * 6 + [2] * 44 + [1] * 14
    assert_sums_close(sums, wanted, 4e-7)


def test_only_the_fields_of_the_cosine(isa: str) -> None:
    x = normal(2, 300, 21)
    sums = zero_sums(COSINE_FIELDS, 2, 21)
    row_moments_(x, jackknife_groups(torch.arange(300)), list(sums.values()), "cpu")
    wanted = row_moments(x, backend="reference")
    assert_sums_close(sums, {name: wanted[name] for name in COSINE_FIELDS}, 4e-7)


@pytest.mark.parametrize(("n", "d"), [(100, 384), (9000, 40)])
def test_bitwise_the_same_with_any_number_of_threads(isa: str, threads: None, n: int, d: int) -> None:
    x = normal(3, n, d, dtype=torch.bfloat16)
    results = []
    for count in (1, 2, 3, 1):
        torch.set_num_threads(count)
        results.append(row_moments(x, backend="cpu"))
    for one, other in itertools.pairwise(results):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_group_of_a_row_is_that_of_its_id() -> None:
    x = normal(3, 4)
    sums = row_moments(x, sentence_ids=torch.tensor([0, 256, 270]))
    assert sums["count"][:3].tolist() == [1, 2, 0]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_no_rows_may_have_no_ids(dtype: torch.dtype) -> None:
    sums = row_moments(torch.ones(0, 4), sentence_ids=torch.zeros(0, dtype=dtype))
    assert sums["unit_sum"].shape == (64, 4)
    assert not any(bool(total.any()) for total in sums.values())


def test_numpy_in_numpy_out() -> None:
    x = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    sums = row_moments(x)
    assert isinstance(sums["sum"], np.ndarray)
    np.testing.assert_allclose(sums["sum"], x.sum(1), rtol=1e-15)
    reversed_sums = row_moments(x[:, ::-1, ::-1])
    np.testing.assert_allclose(reversed_sums["sum"], x.sum(1)[:, ::-1], rtol=1e-15)


def test_the_backend_asked_for_runs() -> None:
    for backend in ("cpu", "reference"):
        with backends.record() as runs:
            row_moments(normal(3, 4), backend=backend)
        assert runs == [("row_moments", backends.Backend(backend))]


# All fields without groups are a case of test_ops_in_training.py.
@pytest.mark.parametrize(("fields", "with_groups"), [(ROW_FIELDS, True), (COSINE_FIELDS, True), (COSINE_FIELDS, False)])
def test_opcheck(fields: tuple[str, ...], with_groups: bool) -> None:
    groups = torch.arange(9) % 64 if with_groups else None
    sums = list(zero_sums(fields, 2, 5).values())
    torch.library.opcheck(torch.ops.cone_kernels.row_moments_.default, (normal(2, 9, 5), groups, sums, "cpu"))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"x": [1.0]}, TypeError, "x: got list"),
        ({"x": torch.zeros(3)}, ValueError, r"x: got shape \(3,\)"),
        ({"x": torch.zeros(3, 0)}, ValueError, "last dimension must not be empty"),
        ({"x": torch.zeros(3, 2, dtype=torch.int64)}, TypeError, "x: got dtype int64"),
        ({"x": torch.zeros(3, 2).to_sparse()}, TypeError, "x: got layout"),
        ({"x": torch.zeros(3, 2), "sentence_ids": torch.zeros(2, dtype=torch.int64)}, ValueError, r"must be \(3,\)"),
        ({"x": torch.zeros(3, 2), "sentence_ids": torch.zeros(3)}, TypeError, "sentence_ids: got dtype"),
        ({"x": torch.zeros(3, 2), "sentence_ids": torch.tensor([0, -1, 2])}, ValueError, "sentence_ids: got -1"),
        ({"x": torch.zeros(3, 2), "backend": "gpu"}, ValueError, "backend: got 'gpu'"),
    ],
)
def test_errors_name_the_argument(arguments: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        row_moments(**arguments)  # type: ignore[arg-type]


def test_the_state_form_checks_devices() -> None:
    x, sums = torch.ones(1, 3, 2), list(zero_sums(ROW_FIELDS, 1, 2).values())
    with pytest.raises(ValueError, match="groups: got device meta; it must be on cpu, as x"):
        row_moments_(x, torch.zeros(3, dtype=torch.int64, device="meta"), sums)
    sums[4] = sums[4].to("meta")
    with pytest.raises(ValueError, match=r"sums\[4\]: got device meta; it must be on cpu, as x"):
        row_moments_(x, None, sums)


@pytest.mark.slow
def test_twenty_million_rows_and_more_than_2_to_the_31_elements() -> None:
    n, d = 20_000_000, 112
    x = torch.empty(n, d, dtype=torch.bfloat16)
    assert x.numel() > 2**31
    wanted = zero_sums(ROW_FIELDS, 1, d)
    for i in range(0, n, 500_000):
        x[i : i + 500_000] = normal(500_000, d, seed=i, dtype=torch.bfloat16, shift=0.1)
        groups = jackknife_groups(torch.arange(i, i + 500_000))
        row_moments_(x[None, i : i + 500_000], groups, list(wanted.values()), "reference")
    sums = row_moments(x, backend="cpu")
    assert_sums_close({name: value[None] for name, value in sums.items()}, wanted, 4e-7)
