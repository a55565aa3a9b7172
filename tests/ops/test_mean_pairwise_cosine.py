from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch

from cone_kernels import backends, mean_pairwise_cosine
from cone_kernels.ops.mean_pairwise_cosine import cosine_and_sums, cosine_gradient, cosine_of_normalized
from tests.support.moment_cases import DTYPES, WIDTHS, normal, views

# Of the anisotropy itself; the data's own dtype is taken as exact.
RELATIVE = {torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6, torch.float64: 1e-12}


def all_pairs(x: torch.Tensor) -> float:
    """The definition, O(n²): the mean of cos(x_i, x_j) over i ≠ j, in float64."""
    u = x.double() / torch.linalg.vector_norm(x.double(), dim=-1, keepdim=True)
    cosines = u @ u.T
    return float((cosines.sum() - cosines.trace()) / (len(x) * (len(x) - 1)))


# pytest runs the tests of one parameter of a module's fixture together: every instruction set finds what the first did.
@pytest.fixture(scope="module", params=DTYPES, ids=str)
def every_width(request: pytest.FixtureRequest) -> list[tuple[torch.Tensor, float]]:
    """Rows (60, d) of every width with their mean over all pairs."""
    drawn = [normal(60, d, dtype=request.param, seed=d, shift=0.8) for d in WIDTHS]
    return [(x, all_pairs(x)) for x in drawn]


def test_is_the_mean_over_all_pairs(isa: str, every_width: list[tuple[torch.Tensor, float]]) -> None:
    for x, wanted in every_width:
        got = float(mean_pairwise_cosine(x, backend="cpu"))
        assert got == pytest.approx(wanted, rel=RELATIVE[x.dtype]), x.shape[1]


def test_float64_to_the_last_digits_of_a_fifty_digit_computation(isa: str) -> None:
    x = normal(40, 7, dtype=torch.float64)
    with mpmath.workdps(50):
        rows = [[mpmath.mpf(value) for value in row] for row in x.tolist()]
        units = [[value / mpmath.sqrt(mpmath.fsum(v * v for v in row)) for value in row] for row in rows]
        total = [mpmath.fsum(column) for column in zip(*units, strict=True)]
        exact = float((mpmath.fsum(v * v for v in total) - 40) / (40 * 39))
    assert float(mean_pairwise_cosine(x)) == pytest.approx(exact, rel=1e-14)


def test_centred_data_is_not_clamped() -> None:
    x = torch.cat([torch.eye(5), -torch.eye(5)]).double()
    assert float(mean_pairwise_cosine(x)) == pytest.approx(-1 / 9, rel=1e-14)


def test_same_rows_have_cosine_one() -> None:
    assert float(mean_pairwise_cosine(normal(1, 64).expand(100, 64))) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("n", [0, 1])
def test_no_pair_is_nan(n: int) -> None:
    assert math.isnan(float(mean_pairwise_cosine(normal(n, 8))))


def test_rows_left_out_leave_the_mean_of_the_others() -> None:
    x = normal(50, 9)
    x[3], x[8, 2] = 0, torch.nan
    kept = torch.cat([x[:3], x[4:8], x[9:]])
    assert float(mean_pairwise_cosine(x)) == pytest.approx(all_pairs(kept), rel=1e-6)
    with pytest.raises(ValueError, match="x: got 2 rows that are zero or not finite"):
        mean_pairwise_cosine(x, strict=True)


def test_leading_dimensions_are_batch_dimensions() -> None:
    x = normal(2, 3, 20, 6)
    got = mean_pairwise_cosine(x)
    assert got.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            assert float(got[i, j]) == pytest.approx(all_pairs(x[i, j]), rel=1e-6)


def test_layouts_agree() -> None:
    x = normal(3, 130, 37)
    wanted = mean_pairwise_cosine(x, backend="reference")
    for layout, view in views(x).items():
        torch.testing.assert_close(mean_pairwise_cosine(view), wanted, rtol=1e-6, atol=0, msg=layout)


@pytest.fixture(scope="module")
def a_million_rows() -> tuple[torch.Tensor, float]:
    """Rows (1 000 000, 4) with their cosine in float64."""
    x = normal(1_000_000, 4, shift=0.3)
    return x, float(mean_pairwise_cosine(x.double(), backend="reference"))


def test_a_million_rows_against_float64(isa: str, a_million_rows: tuple[torch.Tensor, float]) -> None:
    x, wanted = a_million_rows
    assert float(mean_pairwise_cosine(x, backend="cpu")) == pytest.approx(wanted, rel=1e-6)


def test_numpy() -> None:
    x = normal(10, 5)
    got = mean_pairwise_cosine(x.numpy())
    assert isinstance(got, np.ndarray)
    assert float(got) == float(mean_pairwise_cosine(x))


def test_input_is_not_changed() -> None:
    x = normal(10, 5)
    before = x.clone()
    mean_pairwise_cosine(x)
    assert torch.equal(x, before)


def test_the_backend_asked_for_runs() -> None:
    x = normal(2, 10, 5)
    for backend in ("cpu", "reference"):
        with backends.record() as runs:
            mean_pairwise_cosine(x, backend=backend)
        assert runs == [("mean_pairwise_cosine", backends.Backend(backend))]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_twenty_million_rows(dtype: torch.dtype) -> None:
    n, d = 20_000_000, 24
    x = torch.empty(n, d, dtype=dtype)
    unit_sum, unit_sq = torch.zeros(d, dtype=torch.float64), 0.0
    for i in range(0, n, 1_000_000):
        x[i : i + 1_000_000] = normal(1_000_000, d, seed=i, dtype=dtype, shift=0.2)
        rows = x[i : i + 1_000_000].double()
        u = rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        unit_sum += u.sum(0)
        unit_sq += float(u.square().sum())
    wanted = (float(unit_sum.square().sum()) - unit_sq) / (n * (n - 1))
    assert float(mean_pairwise_cosine(x)) == pytest.approx(wanted, rel=RELATIVE[dtype])


def test_compiles_whole() -> None:
    compiled = torch.compile(lambda x: mean_pairwise_cosine(x) * 2, fullgraph=True, backend="aot_eager")
    x = normal(2, 10, 5)
    assert torch.equal(compiled(x), mean_pairwise_cosine(x) * 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bitwise_the_same_with_any_number_of_threads(isa: str, threads: None, dtype: torch.dtype) -> None:
    x = normal(3, 2000, 384, dtype=dtype)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append((mean_pairwise_cosine(x), mean_pairwise_cosine(x[1])))
    for layers, layer in results:
        assert torch.equal(layers, results[0][0])
        assert torch.equal(layer, layers[1])


@pytest.mark.parametrize("shape", [(9, 5), (3, 9, 5), (2, 3, 9, 5), (0, 9, 5), (2, 0, 5), (0, 5)], ids=str)
def test_the_cosine_alone_is_the_one_that_has_a_gradient(shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    alone = mean_pairwise_cosine(x)
    for other in (mean_pairwise_cosine(x, strict=True), mean_pairwise_cosine(x.clone().requires_grad_()).detach()):
        assert alone.shape == x.shape[:-2]
        torch.testing.assert_close(alone, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_rows_near_zero_count_and_rows_of_zeros_do_not(backend: str) -> None:
    x = torch.tensor([[0.0, 0.0], [1e-13, 0.0], [0.0, 2.0], [3.0, 0.0]], dtype=torch.float64)
    # Divided by 1e-12 at least they are (0.1, 0), (0, 1) and (1, 0): ‖(1.1, 1)‖² = 2.21, less 0.01 + 1 + 1.
    cosine, left_out, unit_sum, count = cosine_and_sums(x, backend, 1e-12)
    assert float(cosine) == pytest.approx((2.21 - 2.01) / 6, rel=1e-12)
    assert (int(left_out), int(count)) == (1, 3)
    torch.testing.assert_close(unit_sum, torch.tensor([1.1, 1.0], dtype=torch.float64), rtol=1e-14, atol=0)


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (2, 0, 4), (0, 5, 4)])
def test_of_no_pair_of_rows_near_zero_or_not_there_is_no_cosine(shape: tuple[int, ...]) -> None:
    cosine = cosine_of_normalized(torch.ones(shape), 1e-12)
    assert cosine.shape == shape[:-2]
    assert bool(cosine.isnan().all())


def test_the_gradient_is_the_same_where_the_host_cannot_look_at_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    x, unit_sum = normal(5, 3, 4), normal(5, 4, dtype=torch.float64, seed=1)
    arguments = (x, unit_sum, torch.tensor([0, 1, 2, 3, 70]), torch.tensor([3.0, 3.0, -2.0, 0.5, 1e3]), "cpu")
    wanted = cosine_gradient(*arguments)
    assert [bool(layer.any()) for layer in wanted] == [False, False, True, True, True]
    monkeypatch.setattr("cone_kernels.ops.mean_pairwise_cosine.read_is_free", lambda tensor: False)
    assert torch.equal(cosine_gradient(*arguments), wanted)
