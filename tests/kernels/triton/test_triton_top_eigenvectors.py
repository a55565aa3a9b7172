"""Triton's top eigenvectors by definition; without a GPU the kernels run in Triton's interpreter."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cone_kernels import backends
from cone_kernels import top_eigenvectors as solve
from cone_kernels.kernels.triton import top_eigenvectors as kernels
from cone_kernels.ops.top_eigenvectors import TopEigenvectors
from tests.ops.test_top_eigenvectors import (
    ROUNDING,
    TOLERANCE,
    assert_eigenpairs,
    covariance_of,
    decaying,
    rotated,
    spectrum,
)
from tests.support.moment_cases import normal, views
from tests.support.triton_interpreter import faithful_interpreter, guarded_memory

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# The interpreter needs seconds for them.
slow = pytest.mark.slow
# Arithmetic with infinities and NaN is meant where they are given.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


@pytest.fixture(autouse=True, scope="module")
def faithful() -> Iterator[None]:
    with faithful_interpreter():
        yield


@pytest.fixture(autouse=True)
def guarded() -> Iterator[None]:
    with guarded_memory():
        yield


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes its time for each operation, whatever its size."""
    monkeypatch.setattr(kernels, "_ROTATED", 1 << 20)
    monkeypatch.setattr(kernels, "_STEP_WIDTH", 64)


@pytest.fixture
def steps_of_a_gpu(monkeypatch: pytest.MonkeyPatch, few_steps: None) -> None:
    monkeypatch.setattr(kernels, "_ROTATED", 1024)
    monkeypatch.setattr(kernels, "_STEP_WIDTH", 32)


def triton(x: Tensor | None = None, k: int = 1, covariance: Tensor | None = None, **options: object) -> TopEigenvectors:
    def moved(given: Tensor | None) -> Tensor | None:
        return None if given is None else given.to(DEVICE)

    found = solve(moved(x), k, covariance=moved(covariance), backend="triton", **options)
    fields = dataclasses.fields(TopEigenvectors)
    return TopEigenvectors(*(getattr(found, field.name).cpu() for field in fields))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("center", [True, False])
def test_data(dtype: torch.dtype, center: bool) -> None:
    for d in (1, 3, 9):
        k = 1 + d % 3 if d >= 3 else d
        x = decaying(150, d, dtype=dtype, seed=d)
        assert_eigenpairs(triton(x, k, center=center), covariance_of(x, center), k, TOLERANCE[dtype], ROUNDING[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=str)
def test_covariance(dtype: torch.dtype) -> None:
    for d in (1, 2, 9):
        covariance = covariance_of(decaying(150, d, seed=d), True).to(dtype)
        covariance = covariance.tril() + covariance.tril(-1).mT
        k = 1 + d % 3 if d >= 3 else d
        assert_eigenpairs(triton(covariance=covariance, k=k), covariance.double(), k, 1e-8, 1e-13)


@pytest.mark.parametrize(
    ("name", "d", "blocks"),
    [
        ("power", 28, 3),
        *(pytest.param(n, 44, 4, marks=slow) for n in ("power", "slow", "exponential", "no gap", "one spike")),
    ],
)
def test_every_kind_of_spectrum(name: str, d: int, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide enough for the basis to be restarted."""
    monkeypatch.setattr(kernels, "_BASIS_BLOCKS", blocks)
    covariance, basis = rotated(spectrum(name, d))
    found = triton(covariance=covariance, k=2)
    assert int(found.iterations) > blocks
    assert_eigenpairs(found, covariance, 2, 1e-8, 1e-13)
    cosine = (found.vectors * basis[:, :2].T).sum(-1).abs()
    assert float((1 - cosine).max()) <= 1e-10


def test_with_the_steps_of_a_gpu(steps_of_a_gpu: None) -> None:
    covariance, _ = rotated(spectrum("one spike", 18))
    assert_eigenpairs(triton(covariance=covariance), covariance, 1, 1e-8, 1e-13)


@pytest.mark.parametrize(("k", "d"), [(7, 18), (8, 18), (17, 17)])
def test_how_many(k: int, d: int) -> None:
    covariance = covariance_of(decaying(100, d, dtype=torch.float64), False)
    assert_eigenpairs(triton(covariance=covariance, k=k), covariance, k, 1e-8, 1e-13)


def test_vector_parts_fewer_than_a_power_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """66 vectors in parts of 32; what their products must not write is beyond the ends of their memory."""
    x, products = decaying(3, 66), []

    def instead_of_a_step(basis: Tensor, image: Tensor, *_: object, **__: object) -> None:
        products.append((basis[0, :66, :66], image[0, :66, :66]))

    monkeypatch.setattr(kernels, "krylov_step", {(1,): instead_of_a_step})
    kernels.top_eigenvectors(x[None].to(DEVICE), False, False, 64, 1e-6, 1)
    for basis, image in products:
        torch.testing.assert_close(image.cpu(), basis.cpu() @ covariance_of(x, False), rtol=1e-6, atol=1e-6)
    assert len(products) == 1


@pytest.mark.parametrize("rotated", [1, 1 << 20])
def test_any_number_of_rows_rotated_at_once(rotated: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the widest bases a single row is more than should be."""
    monkeypatch.setattr(kernels, "_ROTATED", rotated)
    covariance = covariance_of(decaying(30, 5, dtype=torch.float64), False)
    assert_eigenpairs(triton(covariance=covariance, k=2), covariance, 2, 1e-8, 1e-13)


@slow
def test_a_basis_of_many_tiles() -> None:
    """A block of 40 in parts of 32, and 60 rows of the basis in tiles of 32."""
    covariance, _ = rotated(torch.cat([torch.full((45,), 2.0), torch.full((15,), 1.0)]).double())
    assert_eigenpairs(triton(covariance=covariance, k=35), covariance, 35, 1e-8, 1e-13)


@slow
def test_data_of_many_parts_and_vector_parts() -> None:
    x = decaying(1, 1100, 36)
    found = triton(x, 33)
    assert_eigenpairs(found, covariance_of(x, True), 33, 1e-6, 1e-6)


def test_clustered_eigenvalues_as_a_subspace() -> None:
    eigenvalues = torch.cat([torch.tensor([5.0, 5.0, 5.0, 5.0 - 1e-12]), torch.linspace(1, 0.1, 12)]).double()
    covariance, basis = rotated(eigenvalues)
    found = triton(covariance=covariance, k=4)
    assert_eigenpairs(found, covariance, 4, 1e-8, 1e-13)
    inside = torch.linalg.matrix_norm(found.vectors @ basis[:, :4]).square()
    assert float(inside) == pytest.approx(4, abs=1e-12)


@pytest.mark.parametrize("covariance", [torch.zeros(2, 30, 30), torch.eye(30).expand(2, 30, 30)])
def test_zero_and_identity(covariance: Tensor) -> None:
    found = triton(covariance=covariance, k=3)
    torch.testing.assert_close(found.values, covariance.double().diagonal(dim1=1, dim2=2)[:, :3], rtol=1e-15, atol=0)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.vectors @ found.vectors.mT, torch.eye(3).double().expand(2, 3, 3))
    assert float(found.eigengap.abs().max()) <= 1e-15


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rank_deficient_data(dtype: torch.dtype) -> None:
    x = decaying(3, 12, dtype=dtype)
    found = triton(x, 5)
    assert_eigenpairs(found, covariance_of(x, True), 5, TOLERANCE[dtype], ROUNDING[dtype])
    assert float(found.values[2:].abs().max()) <= 1e-6 * float(found.values[0])
    same = triton(normal(1, 12, dtype=dtype).expand(50, 12), 2)
    assert bool(same.converged)
    assert float(same.values.abs().max()) <= 1e-12


def test_one_row_without_centering() -> None:
    x = normal(1, 12)
    found = triton(x, center=False)
    assert float(found.values) == pytest.approx(float(x.double().square().sum()), rel=1e-13)


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e150])
def test_float64_extremes(scale: float) -> None:
    covariance = covariance_of(decaying(60, 10, dtype=torch.float64), True)
    found = triton(covariance=covariance * scale, k=2)
    found = dataclasses.replace(
        found, values=found.values / scale, residuals=found.residuals / scale, eigengap=found.eigengap / scale
    )
    assert_eigenpairs(found, covariance, 2, 1e-8, 1e-13)


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e17, 1e37])
def test_float32_extremes(scale: float) -> None:
    x = decaying(100, 10) * scale
    found, square = triton(x, 2), scale**2
    found = dataclasses.replace(
        found, values=found.values / square, residuals=found.residuals / square, eigengap=found.eigengap / square
    )
    assert_eigenpairs(found, covariance_of(x.double() / scale, True), 2, 1e-6, 1e-6)


def test_mean_far_from_zero_costs_nothing() -> None:
    x = decaying(300, 12, shift=1000.0)
    assert_eigenpairs(triton(x, 2), covariance_of(x, True), 2, 1e-6, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, *(pytest.param(t, marks=slow) for t in DTYPES[1:])], ids=str)
def test_strides_are_honoured(dtype: torch.dtype) -> None:
    x = decaying(1, 40, 5, dtype=dtype)
    square = covariance_of(x, True).to(dtype)
    square = square.tril() + square.tril(-1).mT
    wanted, wanted_square = triton(x, 2), triton(covariance=square, k=2)
    for (layout, view), (_, square_view) in zip(views(x).items(), views(square).items(), strict=True):
        assert torch.equal(triton(view, 2).vectors, wanted.vectors), layout
        assert torch.equal(triton(covariance=square_view, k=2).vectors, wanted_square.vectors), layout


def test_not_converged_is_said() -> None:
    covariance, _ = rotated(spectrum("no gap", 60))
    for steps in (1, 2):
        found = triton(covariance=covariance, max_iterations=steps)
        assert not bool(found.converged)
        assert int(found.iterations) == steps
        residual = torch.linalg.vector_norm(found.vectors @ covariance - found.values[:, None] * found.vectors, dim=-1)
        assert float(residual) == pytest.approx(float(found.residuals), rel=1e-9)
        assert float(found.residuals / found.values) > 1e-3


def test_beyond_what_float64_can_give() -> None:
    covariance, _ = rotated(spectrum("power", 12))
    stalled = triton(covariance=covariance, tolerance=1e-30, max_iterations=20)
    assert not bool(stalled.converged)
    assert float(stalled.residuals) <= 1e-13


def test_each_layer_stops_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_ROUND", 2)
    easy, hard = rotated(spectrum("one spike", 18))[0], torch.eye(18, dtype=torch.float64)
    found = triton(covariance=torch.stack([easy, hard]), max_iterations=12)
    assert found.converged.tolist() == [True, True]
    assert int(found.iterations[1]) == 1
    assert 1 < int(found.iterations[0]) < 12


@slow
def test_as_many_reads_as_a_krylov_space_needs() -> None:
    covariance, _ = rotated(spectrum("power", 300))
    assert int(triton(covariance=covariance, tolerance=1e-6).iterations) <= 8


def test_bitwise_the_same_again() -> None:
    x = decaying(1, 600, 9)
    first, second = triton(x, 2), triton(x, 2)
    for field in dataclasses.fields(TopEigenvectors):
        assert torch.equal(getattr(first, field.name), getattr(second, field.name)), field.name


def test_sign_from_data_is_along_the_mean() -> None:
    x = decaying(2, 100, 10, shift=0.0) + torch.tensor([1.0, -1.0])[:, None, None]
    found, mean = triton(x), x.double().mean(-2)
    assert bool((torch.einsum("lkd,ld->lk", found.vectors, mean) > 0).all())


def test_leading_dimensions_are_batch_dimensions() -> None:
    x = decaying(2, 2, 50, 4)
    found, flat = triton(x, 2), triton(x.reshape(4, 50, 4), 2)
    shapes = {"values": (2,), "vectors": (2, 4), "residuals": (2,), "iterations": (), "eigengap": (), "converged": ()}
    for name, shape in shapes.items():
        assert getattr(found, name).shape == (2, 2, *shape)
        assert torch.equal(getattr(found, name).reshape(4, *shape), getattr(flat, name))
    assert triton(torch.empty(0, 50, 12), 2).vectors.shape == (0, 2, 12)


@pytest.mark.parametrize("covariance", [False, True])
def test_backend_and_opcheck(covariance: bool) -> None:
    x = decaying(2, 6, 3)
    matrix = (covariance_of(x, True) if covariance else x).to(DEVICE)
    with backends.record() as runs:
        solve(**{"covariance" if covariance else "x": matrix}, k=2, backend="triton")
    assert runs == [("top_eigenvectors", backends.Backend.TRITON)]
    arguments = (matrix, covariance, True, 2, 1e-8, 100, "triton")
    torch.library.opcheck(torch.ops.cone_kernels.top_eigenvectors.default, arguments)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_entries_that_are_not_finite_are_refused(bad: float) -> None:
    x = decaying(2, 100, 8)
    x[1, 60, 7] = bad
    for center in (True, False):
        with pytest.raises(ValueError, match="x: got entries that are not finite"):
            triton(x, center=center)
    covariance = covariance_of(x[:1], True)
    covariance[0, 3, 4] = covariance[0, 4, 3] = bad
    with pytest.raises(ValueError, match="covariance: got entries that are not finite"):
        triton(covariance=covariance)


def test_float64_data_is_refused() -> None:
    with pytest.raises(TypeError, match="x: got dtype float64; it must be one of float32, bfloat16, float16"):
        triton(decaying(20, 4, dtype=torch.float64))
