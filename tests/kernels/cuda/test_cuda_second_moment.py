"""The CUDA kernels of second_moment, run on the CPU by tests/kernels/simt."""

from __future__ import annotations

import pytest
import torch

from cone_kernels import backends, second_moment
from cone_kernels.kernels.cuda import matrices as cuda_matrices
from cone_kernels.ops.second_moment import second_moment_
from tests.ops.test_second_moment import RELATIVE, assert_moments_close
from tests.support.moment_cases import normal, views
from tests.support.simt_cuda import order_of_threads, simt_cuda  # noqa: F401 - a fixture
from tests.support.simt_matrices import DTYPES, simt_matrices  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("simt_matrices")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference_at_many_widths(dtype: torch.dtype) -> None:
    for d in [1, 2, 7, 8, 9, 31, 64, 65, 100, 127, 128, 129, 130]:
        x = normal(2, 70, d, dtype=dtype, seed=d)
        got = second_moment(x, backend="cuda")
        assert_moments_close(got, second_moment(x, backend="reference"), RELATIVE[dtype])
        assert torch.equal(got, got.mT)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tiles_off_the_diagonal(dtype: torch.dtype) -> None:
    x = normal(1, 40, 384, dtype=dtype)
    assert_moments_close(second_moment(x, backend="cuda"), second_moment(x, backend="reference"), RELATIVE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [0.0, 300.0])
def test_covariance_keeps_its_digits_wherever_the_mean_is(dtype: torch.dtype, shift: float) -> None:
    x = normal(300, 40, dtype=dtype, shift=shift)
    got = second_moment(x, center=True, backend="cuda")
    assert_moments_close(got, torch.cov(x.double().mT), RELATIVE[dtype])


def test_with_as_little_shared_memory_as_a_gpu_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_matrices, "_most_shared", lambda device: 99 << 10)
    x = normal(2, 203, 140, shift=1.0)
    assert_moments_close(second_moment(x, backend="cuda"), second_moment(x, backend="reference"), 1e-6)


def test_any_pilot_gives_the_same_sums() -> None:
    x = normal(300, 33, shift=2.0)
    wanted = second_moment(x, backend="reference")
    for pilot in (torch.full((33,), 2.0), torch.zeros(33), normal(33, seed=5), torch.full((33,), -3.0)):
        assert_moments_close(second_moment(x, pilot=pilot, backend="cuda"), wanted, 2e-6)


def test_pilot_near_the_mean_gains_digits() -> None:
    """The plain float64 sums of rows far from zero, then the covariance from the sums, as a state keeps them."""
    x = normal(1000, 16, shift=200.0)
    total, covariance = x.double().sum(0), torch.cov(x.double().mT)

    def error(pilot: torch.Tensor | None) -> float:
        moment = second_moment(x, pilot=pilot, backend="cuda")
        centred = (moment - total[:, None] * total[None, :] / 1000) / 999
        return float((centred - covariance).abs().max() / covariance.abs().max())

    assert error(x[:100].double().mean(0)) < 1e-6
    assert error(None) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [0, 1, 2, 31, 32, 33, 63, 65, 127, 129, 257])
def test_row_counts(dtype: torch.dtype, n: int) -> None:
    x = normal(2, n, 19, dtype=dtype)
    wanted = second_moment(x, backend="reference")
    assert_moments_close(second_moment(x, backend="cuda"), wanted, RELATIVE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rows_split_over_blocks_are_added_in_order(dtype: torch.dtype) -> None:
    x = normal(1, 1700, 12, dtype=dtype, shift=1.0)
    wanted = second_moment(x, backend="reference")
    results = []
    for seed in (0, 1, 7):
        order_of_threads(seed)
        results.append(second_moment(x, backend="cuda"))
    assert_moments_close(results[0], wanted, RELATIVE[dtype])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_chunks_of_rows() -> None:
    """More rows than one chunk takes: the planes, the pilot's correction and the counts start anew in each."""
    x = normal(1, 8200, 3, shift=1.0)
    use = torch.rand(1, 8200, generator=torch.Generator().manual_seed(0)) < 0.5
    results = []
    for backend in ("cuda", "reference"):
        moment = torch.zeros(1, 3, 3, dtype=torch.float64)
        second_moment_(moment, x, use=use, pilot=torch.full((1, 3), 1.5).double(), backend=backend)
        results.append(moment)
    assert_moments_close(*results, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_are_honoured(dtype: torch.dtype) -> None:
    x = normal(3, 45, 37, dtype=dtype)
    wanted = second_moment(x, backend="cuda")
    for layout, view in views(x).items():
        assert torch.equal(second_moment(view, backend="cuda"), wanted), layout


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_aligned_rows_inside_wider_ones(dtype: torch.dtype) -> None:
    """Copied 16 bytes at a time, up to the last of the columns and no further."""
    padded = torch.full((2, 45, 48), torch.nan, dtype=dtype)
    padded[:, :, 8:45] = normal(2, 45, 37, dtype=dtype)
    view = padded[:, :, 8:45]
    assert torch.equal(second_moment(view, backend="cuda"), second_moment(view.contiguous(), backend="cuda"))


def test_expanded_rows() -> None:
    x = normal(1, 1, 19).expand(2, 300, 19)
    wanted = second_moment(x.clone(), backend="reference")
    assert_moments_close(second_moment(x, backend="cuda"), wanted, 1e-6)
    assert_moments_close(second_moment(x, pilot=x[0, 0], backend="cuda"), wanted, 1e-13)


def test_scaled_rows() -> None:
    x = normal(2, 100, 66)
    norm = torch.linalg.vector_norm(x.double(), dim=-1)
    u = x.double() / norm[..., None]
    assert_moments_close(second_moment(x, row_scale=1 / norm, backend="cuda"), u.mT @ u, 1e-6)
    got = second_moment(x, row_scale=1 / norm, center=True, backend="cuda")
    assert_moments_close(got, torch.stack([torch.cov(rows.mT) for rows in u]), 1e-6)


@pytest.mark.parametrize("case", ["float32", "float32 plain", "bfloat16", "bfloat16 plain", "bfloat16 plain, strided"])
def test_rows_not_used_are_not_read(case: str) -> None:
    dtype = torch.float32 if case.startswith("float32") else torch.bfloat16
    x = normal(2, 300, 24 if "strided" not in case else 23, dtype=dtype)
    d = x.shape[-1]
    use = torch.rand(2, 300, generator=torch.Generator().manual_seed(1)) < 0.6
    use[1, 5:] = False
    x[~use] = torch.nan
    weights = torch.rand(2, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 0.5
    weights[~use] = torch.nan
    pilot = torch.full((2, d), 0.5, dtype=torch.float64)
    given = {"use": use} if "plain" in case else {"use": use, "weights": weights, "pilot": pilot}
    results = []
    for backend in ("cuda", "reference"):
        moment = torch.zeros(2, d, d, dtype=torch.float64)
        second_moment_(moment, x, **given, backend=backend)
        results.append(moment)
    assert_moments_close(*results, 1e-6)
    moment = torch.ones(2, d, d, dtype=torch.float64)
    second_moment_(moment, x, **{**given, "use": torch.zeros_like(use)}, backend="cuda")
    assert torch.equal(moment, torch.ones_like(moment))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adds_to_the_upper_triangle_alone(dtype: torch.dtype) -> None:
    x, y = normal(2, 40, 140, dtype=dtype), normal(2, 33, 140, dtype=dtype, seed=1)
    start = normal(2, 140, 140, dtype=torch.float64, seed=2)
    moment = start.clone()
    moment[:, torch.ones(140, 140).tril(-1).bool()] = torch.nan
    second_moment_(moment, x, backend="cuda")
    second_moment_(moment, y, backend="cuda")
    assert moment.isnan().sum() == 2 * 140 * 139 // 2
    wanted = (start + x.double().mT @ x.double() + y.double().mT @ y.double()).triu()
    assert float((moment.triu().nan_to_num() - wanted).abs().max()) <= 1e-6 * float(wanted.max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e15, 1e17, 1e30, 1e37])
def test_squares_beyond_float32(dtype: torch.dtype, scale: float) -> None:
    x = normal(100, 40, dtype=torch.float64, shift=0.0)
    x[:, ::3] *= scale
    x[:, 1] = 0
    x = x.to(dtype)
    for center in (False, True):
        wanted = second_moment(x, center=center, backend="reference")
        assert_moments_close(second_moment(x, center=center, backend="cuda"), wanted, 1e-6)


def test_one_value_far_beyond_the_rest() -> None:
    """A column's scale follows its largest value; 22 bits of the others are left down to 2^-24 of it."""
    x = normal(200, 20, shift=0.0)
    x[17, ::4] *= 1e3
    x[50, 1] = 1e-30
    wanted = second_moment(x, backend="reference")
    assert_moments_close(second_moment(x, backend="cuda"), wanted, 1e-6)


def test_float16_at_its_largest() -> None:
    x = torch.full((300, 20), 65504.0, dtype=torch.float16)
    assert float(second_moment(x, backend="cuda")[3, 7]) == pytest.approx(300 * 65504.0**2, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_spoils_its_columns_and_no_others(dtype: torch.dtype, value: float) -> None:
    x = normal(200, 20, dtype=dtype)
    x[155, 3] = value
    spoilt = ~torch.isfinite(second_moment(x, backend="cuda"))
    assert spoilt[3].all()
    assert spoilt[:, 3].all()
    assert int(spoilt.sum()) == 39


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_tensor_cores_cut_off_stays_small(dtype: torch.dtype) -> None:
    """Of equal rows they cut off the same at every step, always towards zero."""
    columns = (1 + torch.arange(100) / 100) * (-1) ** torch.arange(100)
    x = columns.to(dtype).expand(200, 100).contiguous()
    assert_moments_close(second_moment(x, backend="cuda"), second_moment(x, backend="reference"), 8e-7)
    x = normal(3000, 5, dtype=dtype, shift=3.0)
    assert_moments_close(second_moment(x, backend="cuda"), second_moment(x, backend="reference"), 4e-7)


def test_leading_dimensions_are_batch_dimensions() -> None:
    x = normal(2, 3, 20, 6)
    got = second_moment(x, pilot=torch.ones(6), row_scale=torch.ones(2, 3, 20), backend="cuda")
    assert_moments_close(got, x.double().mT @ x.double(), 1e-6, floor=20.0)
    assert second_moment(torch.empty(0, 20, 6), backend="cuda").shape == (0, 6, 6)


@pytest.mark.parametrize("center", [False, True])
def test_record_and_opcheck(center: bool) -> None:
    x = normal(2, 10, 5)
    with backends.record() as runs:
        second_moment(x, center=center, backend="cuda")
    assert runs == [("second_moment", backends.Backend.CUDA)]
    arguments = (x, center, torch.ones(2, 10).double(), torch.zeros(2, 5).double(), "cuda")
    torch.library.opcheck(torch.ops.cone_kernels.second_moment.default, arguments)
    arguments = (torch.zeros(2, 5, 5).double(), x, torch.ones(2, 10).bool(), None, None, center, "cuda")
    torch.library.opcheck(torch.ops.cone_kernels.second_moment_.default, arguments)


def test_float64_is_refused() -> None:
    with pytest.raises(
        TypeError, match="x: got dtype float64; it must be one of float32, bfloat16, float16 for backend cuda"
    ):
        second_moment(torch.zeros(3, 2).double(), backend="cuda")
