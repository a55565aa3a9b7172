"""Triton's second moments against the definition; without a GPU the kernels run in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cone_kernels import backends, second_moment
from cone_kernels.kernels.triton import float16_planes, gram_product
from cone_kernels.kernels.triton import second_moment as kernels
from cone_kernels.ops.second_moment import second_moment_
from tests.ops.test_second_moment import RELATIVE, assert_moments_close
from tests.support.moment_cases import normal, views
from tests.support.triton_interpreter import faithful_interpreter, guarded_memory

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Arithmetic with infinities and NaN is meant where they are given.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
WIDTHS = [1, 2, 7, 16, 33, 64, 65, 127, 129]


@pytest.fixture(autouse=True)
def guarded() -> Iterator[None]:
    with guarded_memory():
        yield


@pytest.fixture(autouse=True, scope="module")
def faithful() -> Iterator[None]:
    with faithful_interpreter():
        yield


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes its time for each operation, whatever its size."""
    monkeypatch.setattr(float16_planes, "_STEP_ROWS", 128)


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shapes that compute capability 8.0 gets, and the steps that a GPU takes."""
    monkeypatch.setattr(float16_planes, "_STEP_ROWS", 8)
    monkeypatch.setattr(gram_product, "architecture", lambda: 80)


def rows(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, shift: float = 0.5) -> Tensor:
    return normal(*shape, dtype=dtype, seed=seed, shift=shift).to(DEVICE)


def triton(x: Tensor, **options: object) -> Tensor:
    return second_moment(x, backend="triton", **options)


def reference(x: Tensor, **options: object) -> Tensor:
    return second_moment(x, backend="reference", **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference_at_every_width(dtype: torch.dtype) -> None:
    for d in WIDTHS:
        x = rows(2, 70, d, dtype=dtype, seed=d)
        got = triton(x)
        assert_moments_close(got, reference(x), RELATIVE[dtype])
        assert torch.equal(got, got.mT)
    x = rows(40, 384, dtype=dtype)
    assert_moments_close(triton(x), reference(x), RELATIVE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_shapes_for_ampere(ampere: None, dtype: torch.dtype) -> None:
    for d in (40, 130):
        x = rows(2, 200, d, dtype=dtype)
        assert_moments_close(triton(x), reference(x), RELATIVE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [0.0, 300.0])
def test_covariance_keeps_its_digits_wherever_the_mean_is(dtype: torch.dtype, shift: float) -> None:
    x = rows(600, 70, dtype=dtype, shift=shift)
    assert_moments_close(triton(x, center=True), torch.cov(x.double().mT), RELATIVE[dtype] * 10)


def test_any_pilot_gives_the_same_sums() -> None:
    x = rows(300, 33, shift=2.0)
    for pilot in (torch.full((33,), 2.0), torch.zeros(33), normal(33, seed=5), torch.full((33,), -3.0)):
        assert_moments_close(triton(x, pilot=pilot.to(DEVICE)), reference(x), 2e-6)
        assert_moments_close(triton(x, center=True, pilot=pilot.to(DEVICE)), reference(x, center=True), 2e-5)


def test_pilot_near_the_mean_gains_digits() -> None:
    x = rows(1000, 48, shift=200.0)
    total, covariance = x.double().sum(0), torch.cov(x.double().mT)

    def error(pilot: Tensor | None) -> float:
        centred = (triton(x, pilot=pilot) - total[:, None] * total[None, :] / 1000) / 999
        return float((centred - covariance).abs().max() / covariance.abs().max())

    assert error(x[:100].double().mean(0)) < 1e-6
    assert error(None) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [0, 1, 2, 127, 128, 129, 513])
def test_row_counts(dtype: torch.dtype, n: int) -> None:
    x = rows(2, n, 35, dtype=dtype)
    assert_moments_close(triton(x), reference(x), 1e-6)
    covariance = triton(x, center=True)
    if n < 2:
        assert covariance.isnan().all()
    else:
        assert_moments_close(covariance, reference(x, center=True), 1e-6, floor=1.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_split_over_programs_and_passes(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    x = rows(2, 1100, 20, dtype=dtype)
    use = torch.rand(2, 1100, device=DEVICE) < 0.7
    pilot = torch.full((2, 20), 0.25, dtype=torch.float64, device=DEVICE)
    for given in ({}, {"use": use, "pilot": pilot}):
        wanted = torch.zeros(2, 20, 20, dtype=torch.float64, device=DEVICE)
        second_moment_(wanted, x, backend="reference", **given)
        for sizes in ({}, {"_RAW_ROWS": 640, "_PLANE_ROWS": 384, "_PLANE_ELEMENTS": 49152}):
            for name, size in sizes.items():
                monkeypatch.setattr(kernels, name, size)
            monkeypatch.setattr(gram_product, "_PARTIAL_BYTES", 64 * 64 * 4 if sizes else 64 << 20)
            got = torch.zeros_like(wanted)
            second_moment_(got, x, backend="triton", **given)
            assert_moments_close(got, wanted, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_are_honoured(dtype: torch.dtype) -> None:
    x = rows(2, 130, 37, dtype=dtype)
    wanted, centred = triton(x), triton(x, center=True)
    for layout, view in views(x).items():
        assert torch.equal(triton(view), wanted), layout
        assert torch.equal(triton(view, center=True), centred), layout


def test_expanded_rows() -> None:
    x = rows(1, 1, 19).expand(2, 300, 19)
    assert_moments_close(triton(x), reference(x), 4e-6)
    assert_moments_close(triton(x, pilot=x[0, 0].clone()), reference(x), 1e-13)


def test_scaled_rows() -> None:
    x = rows(2, 200, 66)
    norm = torch.linalg.vector_norm(x.double(), dim=-1)
    u = x.double() / norm[..., None]
    assert_moments_close(triton(x, row_scale=1 / norm), u.mT @ u, 1e-6)
    got = triton(x, row_scale=1 / norm, center=True)
    assert_moments_close(got, torch.stack([torch.cov(layer.mT) for layer in u]), 1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_pilot", [False, True])
def test_rows_not_used_are_not_read(dtype: torch.dtype, with_pilot: bool) -> None:
    x = rows(2, 700, 20, dtype=dtype)
    use = torch.rand(2, 700, generator=torch.Generator().manual_seed(1)).to(DEVICE) < 0.6
    use[1, 5:] = False
    x[~use] = torch.nan
    weights = torch.rand(2, 700, dtype=torch.float64, device=DEVICE) + 0.5
    weights[~use] = torch.nan
    pilot = torch.full((2, 20), 0.5, dtype=torch.float64, device=DEVICE)
    given = {"use": use, "weights": weights, "pilot": pilot} if with_pilot else {"use": use}
    results = []
    for backend in ("triton", "reference"):
        moment = torch.zeros(2, 20, 20, dtype=torch.float64, device=DEVICE)
        second_moment_(moment, x, backend=backend, **given)
        results.append(moment)
    assert_moments_close(*results, 1e-6)
    moment = torch.ones(2, 20, 20, dtype=torch.float64, device=DEVICE)
    second_moment_(moment, x, use=torch.zeros_like(use), backend="triton")
    assert torch.equal(moment, torch.ones_like(moment))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adds_to_the_upper_triangle_alone(dtype: torch.dtype) -> None:
    x, y = rows(2, 90, 140, dtype=dtype), rows(2, 50, 140, dtype=dtype, seed=1)
    start = rows(2, 140, 140, dtype=torch.float64, seed=2)
    moment = start.clone()
    moment[:, torch.ones(140, 140).tril(-1).bool()] = torch.nan
    second_moment_(moment, x, backend="triton")
    second_moment_(moment, y, backend="triton")
    assert moment.isnan().sum() == 2 * 140 * 139 // 2
    wanted = (start + x.double().mT @ x.double() + y.double().mT @ y.double()).triu()
    assert float((moment.triu().nan_to_num() - wanted).abs().max()) <= 1e-6 * float(wanted.max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e15, 1e37])
def test_squares_beyond_float32(dtype: torch.dtype, scale: float) -> None:
    x = normal(150, 40, dtype=torch.float64, shift=0.0)
    x[:, ::3] *= scale
    x = x.to(dtype).to(DEVICE)
    for center in (False, True):
        assert_moments_close(triton(x, center=center), reference(x, center=center), 1e-6)


def test_bfloat16_beyond_float32_in_one_tile_of_many() -> None:
    x = rows(150, 140, dtype=torch.bfloat16, shift=0.0)
    x[:, 3] *= 1e-30
    x[:, 7] = 0
    x[:, 135] *= 1e30
    x[75] *= 1e4
    use = torch.rand(1, 150, generator=torch.Generator().manual_seed(1)).to(DEVICE) < 0.6
    assert_moments_close(triton(x), reference(x), 1e-6)
    got, wanted = torch.zeros(2, 1, 140, 140, dtype=torch.float64, device=DEVICE)
    second_moment_(got, x[None], use=use, backend="triton")
    second_moment_(wanted, x[None], use=use, backend="reference")
    assert_moments_close(got, wanted, 1e-6)


@pytest.mark.parametrize("center", [False, True])
def test_columns_with_an_outlier_keep_their_other_rows(center: bool) -> None:
    x = rows(200, 40, shift=0.0)
    x[77, ::2] *= 1e4
    assert_moments_close(triton(x, center=center), reference(x, center=center), 1e-6)


def test_float16_at_its_largest() -> None:
    x = torch.full((300, 20), 65504.0, dtype=torch.float16, device=DEVICE)
    assert float(triton(x)[3, 7]) == pytest.approx(300 * 65504.0**2, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("with_pilot", [False, True])
def test_a_row_that_is_not_finite_spoils_its_columns_and_no_others(
    dtype: torch.dtype, value: float, with_pilot: bool
) -> None:
    x = rows(200, 20, dtype=dtype)
    x[155, 3] = value
    pilot = torch.full((20,), 0.5, device=DEVICE) if with_pilot else None
    spoilt = ~torch.isfinite(triton(x, pilot=pilot))
    assert spoilt[3].all()
    assert spoilt[:, 3].all()
    assert int(spoilt.sum()) == 39


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bitwise_the_same_again(dtype: torch.dtype) -> None:
    x = rows(2, 1100, 70, dtype=dtype)
    assert torch.equal(triton(x), triton(x))
    assert torch.equal(triton(x, center=True), triton(x, center=True))


def test_leading_dimensions_are_batch_dimensions() -> None:
    x = rows(2, 3, 20, 6)
    ones = torch.ones(6, device=DEVICE)
    got = triton(x, pilot=ones, row_scale=torch.ones(2, 3, 20, device=DEVICE))
    assert got.shape == (2, 3, 6, 6)
    assert_moments_close(got, x.double().mT @ x.double(), 1e-6, floor=20.0)
    assert triton(torch.empty(0, 20, 6, device=DEVICE)).shape == (0, 6, 6)


@pytest.mark.parametrize("center", [False, True])
def test_backend_and_opcheck(center: bool) -> None:
    x = rows(2, 10, 5)
    with backends.record() as runs:
        triton(x, center=center)
    assert runs == [("second_moment", backends.Backend.TRITON)]
    ones, zeros = torch.ones(2, 10, device=DEVICE), torch.zeros(2, 5, 5, dtype=torch.float64, device=DEVICE)
    arguments = (x, center, ones.double(), zeros[0, :2].clone(), "triton")
    torch.library.opcheck(torch.ops.cone_kernels.second_moment.default, arguments)
    arguments = (zeros, x, ones.bool(), None, None, center, "triton")
    torch.library.opcheck(torch.ops.cone_kernels.second_moment_.default, arguments)


def test_float64_is_refused() -> None:
    with pytest.raises(
        TypeError, match="x: got dtype float64; it must be one of float32, bfloat16, float16 for backend triton"
    ):
        triton(rows(3, 2, dtype=torch.float64))
