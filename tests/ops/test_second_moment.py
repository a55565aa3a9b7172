from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from cone_kernels import backends, second_moment
from cone_kernels.kernels.cpu import mean_of_rows
from cone_kernels.ops.second_moment import second_moment_
from tests.support.moment_cases import DTYPES, normal, views

WIDTHS = [*range(1, 131), 384]

# Of √(M_ii M_jj): float32 sums over at most 128 rows for the three narrow dtypes.
RELATIVE = {torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6, torch.float64: 2e-14}


def assert_moments_close(got: Tensor, wanted: Tensor, relative: float, floor: float = 0.0) -> None:
    """Each entry to `relative` of the geometric mean of its two diagonal entries (and of `floor`, a diagonal entry)."""
    assert got.shape == wanted.shape
    assert got.dtype == torch.float64
    diagonal = wanted.diagonal(dim1=-2, dim2=-1).clamp_min(max(floor, torch.finfo(torch.float64).tiny)).sqrt()
    error = (got - wanted).abs() / (diagonal[..., :, None] * diagonal[..., None, :])
    assert float(error.max()) <= relative


# pytest runs the tests of one parameter of a module's fixture together: every instruction set finds what the first did.
@pytest.fixture(scope="module", params=DTYPES, ids=str)
def every_width(request: pytest.FixtureRequest) -> list[tuple[Tensor, Tensor]]:
    """Rows (2, 70, d) of every width with what the reference makes of them."""
    drawn = [normal(2, 70, d, dtype=request.param, seed=d) for d in WIDTHS]
    return [(x, second_moment(x, backend="reference")) for x in drawn]


def test_equals_the_reference_at_every_width(isa: str, every_width: list[tuple[Tensor, Tensor]]) -> None:
    for x, wanted in every_width:
        got = second_moment(x, backend="cpu")
        assert_moments_close(got, wanted, RELATIVE[x.dtype])
        assert torch.equal(got, got.mT)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [0.0, 0.5, 300.0])
def test_covariance_keeps_its_digits_wherever_the_mean_is(isa: str, dtype: torch.dtype, shift: float) -> None:
    x = normal(600, 130, dtype=dtype, shift=shift)
    wanted = torch.cov(x.double().mT)
    assert_moments_close(second_moment(x, center=True, backend="cpu"), wanted, RELATIVE[dtype] * 10)
    assert_moments_close(second_moment(x, center=True, backend="reference"), wanted, 1e-13)


def test_covariance_of_a_mean_a_million_times_its_deviation() -> None:
    x = normal(500, 40, dtype=torch.float64, shift=0)
    assert_moments_close(second_moment(x + 1e6, center=True), torch.cov((x + 1e6).mT), 1e-9)
    # the plain product of such rows has lost ten digits
    plain = second_moment(x + 1e6)
    mean = (x + 1e6).mean(0)
    lost = (plain - 500 * mean[:, None] * mean[None, :]) / 499 - torch.cov((x + 1e6).mT)
    assert float(lost.abs().max()) > 1e-9


def test_any_pilot_gives_the_same_sums(isa: str) -> None:
    x = normal(700, 33, shift=2.0)
    wanted = second_moment(x, backend="reference")
    for pilot in (torch.full((33,), 2.0), torch.zeros(33), normal(33, seed=5), torch.full((33,), -3.0)):
        assert_moments_close(second_moment(x, pilot=pilot), wanted, 2e-6)
        assert_moments_close(
            second_moment(x, center=True, pilot=pilot), second_moment(x, center=True, backend="reference"), 2e-5
        )


def test_pilot_near_the_mean_gains_digits(isa: str) -> None:
    """The plain float64 sums of rows far from zero, then the covariance from the sums, as a state keeps them."""
    x = normal(4000, 48, shift=200.0)
    total = x.double().sum(0)
    covariance = torch.cov(x.double().mT)

    def error(pilot: Tensor | None) -> float:
        centred = (second_moment(x, pilot=pilot) - total[:, None] * total[None, :] / 4000) / 3999
        return float((centred - covariance).abs().max() / covariance.abs().max())

    assert error(x[:100].double().mean(0)) < 1e-6
    assert error(None) > 1e-4


@pytest.mark.parametrize("n", [0, 1, 2, 7, 127, 128, 129, 511, 512, 513, 1100])
def test_row_counts(isa: str, n: int) -> None:
    x = normal(2, n, 35)
    assert_moments_close(second_moment(x, backend="cpu"), second_moment(x, backend="reference"), 1e-6)
    covariance = second_moment(x, center=True, backend="cpu")
    if n < 2:
        assert covariance.isnan().all()
        assert second_moment(x, center=True, backend="reference").isnan().all()
    else:
        wanted = second_moment(x, center=True, backend="reference")
        assert_moments_close(covariance, wanted, 1e-6, floor=1.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_are_honoured(isa: str, dtype: torch.dtype) -> None:
    x = normal(3, 130, 37, dtype=dtype)
    wanted = second_moment(x, backend="cpu")
    for layout, view in views(x).items():
        assert torch.equal(second_moment(view, backend="cpu"), wanted), layout


def test_expanded_rows(isa: str) -> None:
    x = normal(1, 1, 19).expand(2, 700, 19)
    wanted = second_moment(x.clone(), backend="reference")
    # equal rows round alike, all 128 of a float32 sum; with the row itself as the pilot nothing is left to round
    assert_moments_close(second_moment(x, backend="cpu"), wanted, 4e-6)
    assert_moments_close(second_moment(x, pilot=x[0, 0], backend="cpu"), wanted, 1e-13)


def test_scaled_rows(isa: str) -> None:
    x = normal(2, 300, 66)
    norm = torch.linalg.vector_norm(x.double(), dim=-1)
    u = x.double() / norm[..., None]
    got = second_moment(x, row_scale=1 / norm)
    assert_moments_close(got, u.mT @ u, 1e-6)
    assert torch.allclose(got.diagonal(dim1=-2, dim2=-1).sum(-1), torch.full((2,), 300.0).double(), rtol=1e-6)
    got = second_moment(x, row_scale=1 / norm, center=True)
    assert_moments_close(got, torch.stack([torch.cov(rows.mT) for rows in u]), 1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_mean_of_rows(isa: str, threads: None, dtype: torch.dtype) -> None:
    for n, d in ((1, 1), (7, 33), (50, 128), (1200, 130), (5, 300)):
        x = normal(2, n, d, dtype=dtype, seed=d, shift=3)
        weights = torch.linspace(-1, 2, 2 * n, dtype=torch.float64).reshape(2, n)
        for layout, view in views(x).items():
            for scale in (None, weights):
                rows = view.double() if scale is None else view.double() * scale[:, :, None]
                torch.set_num_threads(2)
                got = mean_of_rows(view, scale)
                torch.testing.assert_close(got, rows.mean(1), rtol=1e-13, atol=1e-13, msg=f"{n}, {d}, {layout}")
                torch.set_num_threads(1)
                assert torch.equal(mean_of_rows(view, scale), got)
    assert bool(mean_of_rows(torch.empty(2, 0, 3, dtype=dtype), None).isnan().all())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_every_row_counts_once_in_the_mean_of_many_scaled_rows(backend: str) -> None:
    x = torch.full((8200, 2), 1.0, dtype=torch.float64)
    x[[0, 4095, 4096, 4097, 8192, 8199], 1] = torch.tensor([3.0, 1e4, -2e4, 5e4, 7e4, -1e4], dtype=torch.float64)
    scale = torch.full((8200,), 0.5, dtype=torch.float64)
    wanted = torch.from_numpy(np.cov(x.numpy().T * 0.5))
    got = second_moment(x, row_scale=scale, center=True, backend=backend)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-9)


def test_rows_not_used_are_not_read(isa: str) -> None:
    x = normal(2, 1300, 20)
    use = torch.rand(2, 1300, generator=torch.Generator().manual_seed(1)) < 0.6
    use[1, 5:] = False
    x[~use] = torch.nan
    weights = torch.rand(2, 1300, dtype=torch.float64) + 0.5
    weights[~use] = torch.nan
    pilot = torch.full((2, 20), 0.5, dtype=torch.float64)
    results = []
    for backend in ("cpu", "reference"):
        moment = torch.zeros(2, 20, 20, dtype=torch.float64)
        second_moment_(moment, x, use=use, weights=weights, pilot=pilot, backend=backend)
        results.append(moment)
    assert_moments_close(*results, 1e-6)
    moment = torch.ones(2, 20, 20, dtype=torch.float64)
    second_moment_(moment, x, use=torch.zeros_like(use))
    assert torch.equal(moment, torch.ones_like(moment))


def test_adds_to_the_upper_triangle_alone(isa: str) -> None:
    x, y = normal(3, 90, 140), normal(3, 650, 140, seed=1)
    start = normal(3, 140, 140, dtype=torch.float64, seed=2)
    moment = start.clone()
    moment += torch.full_like(moment, torch.nan).tril(-1).nan_to_num(0.0, 0.0, 0.0)
    moment[:, torch.ones(140, 140).tril(-1).bool()] = torch.nan
    second_moment_(moment, x)
    second_moment_(moment, y)
    assert moment.isnan().sum() == 3 * 140 * 139 // 2
    wanted = (start + x.double().mT @ x.double() + y.double().mT @ y.double()).triu()
    assert float((moment.triu().nan_to_num() - wanted).abs().max()) <= 1e-6 * float(wanted.max())


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e15, 1e20, 1e30, 1e37])
def test_float32_squares_beyond_float32(isa: str, scale: float) -> None:
    x = normal(300, 40, dtype=torch.float64, shift=0.0)
    x[:, ::3] *= scale
    x = x.float()
    for center in (False, True):
        wanted = second_moment(x, center=center, backend="reference")
        assert_moments_close(second_moment(x, center=center, backend="cpu"), wanted, 1e-6)


def test_float16_at_its_largest(isa: str) -> None:
    x = torch.full((600, 20), 65504.0, dtype=torch.float16)
    assert float(second_moment(x)[3, 7]) == pytest.approx(600 * 65504.0**2, rel=1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_spoils_its_columns_and_no_others(isa: str, value: float) -> None:
    x = normal(600, 20)
    x[555, 3] = value
    got = second_moment(x, backend="cpu")
    spoilt = ~torch.isfinite(got)
    assert spoilt[3].all()
    assert spoilt[:, 3].all()
    assert int(spoilt.sum()) == 39


def test_float64_to_the_last_digits_of_a_fifty_digit_computation(isa: str) -> None:
    x = normal(40, 3, dtype=torch.float64)
    with mpmath.workdps(50):
        exact = [
            [float(mpmath.fsum(mpmath.mpf(a) * mpmath.mpf(b) for a, b in zip(p, q, strict=True))) for q in x.T.tolist()]
            for p in x.T.tolist()
        ]
    torch.testing.assert_close(second_moment(x), torch.tensor(exact, dtype=torch.float64), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_threads_change_nothing(threads: None, isa: str, dtype: torch.dtype) -> None:
    x = normal(3, 1100, 260, dtype=dtype)
    pilot = x.double().mean(-2)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(second_moment(x, pilot=pilot))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_leading_dimensions_are_batch_dimensions() -> None:
    x = normal(2, 3, 20, 6)
    got = second_moment(x, pilot=torch.ones(6), row_scale=torch.ones(2, 3, 20))
    assert got.shape == (2, 3, 6, 6)
    assert_moments_close(got, x.double().mT @ x.double(), 1e-6, floor=20.0)
    assert second_moment(torch.empty(0, 20, 6)).shape == (0, 6, 6)


def test_numpy() -> None:
    x = normal(10, 5)
    got = second_moment(x.numpy()[::-1])
    assert isinstance(got, np.ndarray)
    np.testing.assert_allclose(got, x.double().numpy().T @ x.double().numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("center", [False, True])
def test_backends_and_opcheck(center: bool) -> None:
    x = normal(2, 10, 5)
    for backend in ("cpu", "reference"):
        with backends.record() as runs:
            second_moment(x, center=center, backend=backend)
        assert runs == [("second_moment", backends.Backend(backend))]
        arguments = (x, center, torch.ones(2, 10).double(), torch.zeros(2, 5).double(), backend)
        torch.library.opcheck(torch.ops.cone_kernels.second_moment.default, arguments)
        arguments = (torch.zeros(2, 5, 5).double(), x, torch.ones(2, 10).bool(), None, None, center, backend)
        torch.library.opcheck(torch.ops.cone_kernels.second_moment_.default, arguments)


def test_compiles_whole() -> None:
    x = normal(50, 9)
    compiled = torch.compile(lambda rows: second_moment(rows * 2, center=True) + 1, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), second_moment(x * 2, center=True) + 1)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"x": torch.zeros(3)}, ValueError, r"x: got shape \(3,\)"),
        ({"x": torch.zeros(3, 2).long()}, TypeError, "x: got dtype int64"),
        ({"x": torch.zeros(3, 2), "pilot": torch.zeros(3)}, ValueError, r"pilot: got shape \(3,\); it must be \(2,\)"),
        ({"x": torch.zeros(3, 2), "pilot": torch.zeros(2).int()}, TypeError, "pilot: got dtype int32"),
        ({"x": torch.zeros(3, 2), "pilot": [0, 0]}, TypeError, "pilot: got list"),
        ({"x": torch.zeros(3, 2), "row_scale": torch.zeros(2)}, ValueError, r"row_scale: got shape \(2,\)"),
        (
            {"x": torch.zeros(3, 2), "row_scale": torch.zeros(3, device="meta")},
            ValueError,
            "row_scale: got device meta",
        ),
        ({"x": torch.zeros(3, 2), "backend": "gpu"}, ValueError, "backend: got 'gpu'"),
    ],
)
def test_errors_name_the_argument(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        second_moment(**arguments)


def test_the_state_form_checks_its_moment() -> None:
    x = torch.zeros(1, 3, 2)
    with pytest.raises(ValueError, match=r"moment: got float32 with strides"):
        second_moment_(torch.zeros(1, 2, 2), x)
    moment = torch.zeros(1, 2, 2).double()
    with pytest.raises(ValueError, match="moment: got device meta; it must be on cpu, as x"):
        second_moment_(moment.to("meta"), x)
    with pytest.raises(ValueError, match="use: got device meta; it must be on cpu, as x"):
        second_moment_(moment, x, use=torch.ones(1, 3, dtype=torch.bool, device="meta"))
    with pytest.raises(ValueError, match="must be contiguous"):
        second_moment_(torch.zeros(1, 2, 4).double()[..., ::2], x)
    with pytest.raises(ValueError, match=r"moment: got shape \(1, 3, 3\)"):
        second_moment_(torch.zeros(1, 3, 3).double(), x)
    for use in (torch.ones(1, 3).long(), torch.ones(1, 2).bool(), torch.ones(3).bool()):
        with pytest.raises(ValueError, match=r"use: got dtype \w+ of shape \(.*\); it must be bool \(1, 3\)"):
            second_moment_(moment, x, use=use)
