"""The CUDA kernels of top_eigenvectors, run on the CPU by tests/kernels/simt."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cone_kernels import backends, top_eigenvectors
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
from tests.support.simt_cuda import order_of_threads, simt_cuda  # noqa: F401 - a fixture
from tests.support.simt_matrices import DTYPES, simt_matrices  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("simt_matrices")


def float32_covariance(covariance: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    narrow = covariance.to(dtype)
    return narrow.tril() + narrow.tril(-1).mT


def scaled(found: TopEigenvectors, factor: float) -> TopEigenvectors:
    fields = {name: getattr(found, name) * factor for name in ("values", "residuals", "eigengap")}
    return dataclasses.replace(found, **fields)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("center", [True, False])
def test_data_of_many_widths(dtype: torch.dtype, center: bool) -> None:
    for d in [1, 2, 3, 8, 9, 17, 40, 65]:
        x = decaying(2, 70, d, dtype=dtype, seed=d)
        k = 1 + d % 3 if d >= 3 else d
        found = top_eigenvectors(x, k, center=center, backend="cuda")
        assert_eigenpairs(found, covariance_of(x, center), k, TOLERANCE[dtype], ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_covariance_of_many_widths(dtype: torch.dtype) -> None:
    for d in [1, 2, 3, 8, 9, 17, 40, 65, 130]:
        covariance = float32_covariance(covariance_of(decaying(2, 150, d, seed=d), True), dtype)
        k = 1 + d % 3 if d >= 3 else d
        found = top_eigenvectors(covariance=covariance, k=k, backend="cuda")
        assert_eigenpairs(found, covariance.double(), k, 1e-8, 1e-13)


def test_wider_than_what_is_staged_at_once() -> None:
    """Vectors pass through shared memory 256 columns at a time for a covariance, 2048 for data."""
    covariance = float32_covariance(rotated(spectrum("exponential", 300))[0])
    found = top_eigenvectors(covariance=covariance, k=2, backend="cuda")
    assert_eigenpairs(found, covariance.double(), 2, 1e-8, 1e-13)
    x = decaying(5, 2100)
    found = top_eigenvectors(x, 1, backend="cuda")
    exact = torch.linalg.svdvals(x.double() - x.double().mean(0))[0] ** 2 / 4
    assert bool(found.converged)
    assert float(found.values) == pytest.approx(float(exact), rel=1e-6)


@pytest.mark.parametrize("name", ["slow", "power", "exponential", "no gap", "one spike"])
def test_every_kind_of_spectrum(name: str) -> None:
    covariance = float32_covariance(rotated(spectrum(name, 120))[0])
    found = top_eigenvectors(covariance=covariance, k=3, backend="cuda")
    assert_eigenpairs(found, covariance.double(), 3, 1e-8, 1e-13)


@pytest.mark.parametrize(("k", "d"), [(7, 40), (8, 40), (20, 40), (39, 40), (40, 40), (9, 100)])
def test_how_many(k: int, d: int) -> None:
    covariance = float32_covariance(covariance_of(decaying(1, 90, d), False))
    found = top_eigenvectors(covariance=covariance, k=k, backend="cuda")
    assert_eigenpairs(found, covariance.double(), k, 1e-8, 1e-13)


def test_many_from_data() -> None:
    x = decaying(1, 80, 40)
    found = top_eigenvectors(x, 20, tolerance=1e-6, backend="cuda")
    assert_eigenpairs(found, covariance_of(x, True), 20, 1e-6, 1e-6)


def test_clustered_eigenvalues_as_a_subspace() -> None:
    eigenvalues = torch.cat([torch.full((4,), 5.0), torch.linspace(1, 0.1, 76)]).double()
    exact, basis = rotated(eigenvalues)
    covariance = float32_covariance(exact)
    found = top_eigenvectors(covariance=covariance, k=4, backend="cuda")
    assert_eigenpairs(found, covariance.double(), 4, 1e-8, 1e-13)
    inside = torch.linalg.matrix_norm(found.vectors @ basis[:, :4]).square()
    assert float(inside) == pytest.approx(4, abs=1e-10)


def test_multiplicity_beyond_the_block() -> None:
    covariance = torch.diag(torch.cat([torch.full((40,), 2.0), torch.full((40,), 1.0)]))
    found = top_eigenvectors(covariance=covariance, k=12, backend="cuda")
    assert_eigenpairs(found, covariance.double(), 12, 1e-8, 1e-13)


@pytest.mark.parametrize("covariance", [torch.zeros(2, 30, 30), torch.eye(30).expand(2, 30, 30)])
def test_zero_and_identity(covariance: torch.Tensor) -> None:
    found = top_eigenvectors(covariance=covariance, k=3, backend="cuda")
    wanted = covariance.double().diagonal(dim1=1, dim2=2)[:, :3]
    torch.testing.assert_close(found.values, wanted, rtol=2e-15, atol=0)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.vectors @ found.vectors.mT, torch.eye(3).double().expand(2, 3, 3))
    assert float(found.eigengap.abs().max()) <= 2e-15


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rank_deficient_data(dtype: torch.dtype) -> None:
    x = decaying(3, 60, dtype=dtype)
    found = top_eigenvectors(x, 5, backend="cuda")
    assert_eigenpairs(found, covariance_of(x, True), 5, TOLERANCE[dtype], ROUNDING[dtype])
    assert float(found.values[2:].abs().max()) <= 1e-6 * float(found.values[0])
    same = top_eigenvectors(normal(1, 20, dtype=dtype).expand(50, 20), 2, backend="cuda")
    assert bool(same.converged)
    assert float(same.values.abs().max()) <= 1e-12


def test_one_row_without_centering() -> None:
    x = normal(1, 50)
    found = top_eigenvectors(x, center=False, backend="cuda")
    assert float(found.values) == pytest.approx(float(x.double().square().sum()), rel=1e-6)
    torch.testing.assert_close(found.vectors, x.double() / torch.linalg.vector_norm(x.double()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-19, 1e17, 1e30, 1e37])
def test_float32_extremes(scale: float) -> None:
    x = decaying(100, 40) * scale
    found = scaled(top_eigenvectors(x, 2, backend="cuda"), 1 / scale**2)
    assert_eigenpairs(found, covariance_of(x.double() / scale, True), 2, 1e-6, 1e-6)
    covariance = float32_covariance(covariance_of(decaying(100, 40), True))
    found = scaled(top_eigenvectors(covariance=covariance * scale, k=2, backend="cuda"), 1 / scale)
    assert_eigenpairs(found, (covariance * scale).double() / scale, 2, 1e-8, 1e-13)


@pytest.mark.parametrize("shift", [1e3, 1e5])
def test_mean_far_from_zero_costs_nothing(shift: float) -> None:
    """At 1e5 what rounds the centre to float32 is felt, unless it is taken off again."""
    x = decaying(600, 40, shift=shift)
    assert_eigenpairs(top_eigenvectors(x, 2, backend="cuda"), covariance_of(x, True), 2, 1e-6, 1e-6)


def test_one_row_decides() -> None:
    x = decaying(700, 40, shift=0.0)
    x[:, 30] = 0
    x[655] = 0
    x[655, 30] = 200.0
    found = top_eigenvectors(x, backend="cuda")
    assert_eigenpairs(found, covariance_of(x, True), 1, 1e-6, 1e-6)
    assert float(found.vectors[0, 30].abs()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_are_honoured(dtype: torch.dtype) -> None:
    x = decaying(2, 50, 21, dtype=dtype)
    square = float32_covariance(covariance_of(x, True), dtype)
    wanted, wanted_square = (
        top_eigenvectors(x, 2, backend="cuda"),
        top_eigenvectors(covariance=square, k=2, backend="cuda"),
    )
    for (layout, view), (_, square_view) in zip(views(x).items(), views(square).items(), strict=True):
        assert torch.equal(top_eigenvectors(view, 2, backend="cuda").vectors, wanted.vectors), layout
        found = top_eigenvectors(covariance=square_view, k=2, backend="cuda")
        assert torch.equal(found.vectors, wanted_square.vectors), layout


def test_order_of_blocks_and_threads_changes_nothing() -> None:
    x = decaying(2, 150, 50)
    covariance = float32_covariance(covariance_of(x, True))
    results = []
    for seed in (0, 1, 7):
        order_of_threads(seed)
        found = top_eigenvectors(x, 2, backend="cuda"), top_eigenvectors(covariance=covariance, k=9, backend="cuda")
        results.append(found)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            for field in dataclasses.fields(TopEigenvectors):
                assert torch.equal(getattr(first, field.name), getattr(second, field.name)), field.name


def test_not_converged_is_said() -> None:
    covariance = float32_covariance(rotated(spectrum("no gap", 100))[0])
    for most in (1, 2, 17):
        found = top_eigenvectors(covariance=covariance, tolerance=1e-30, max_iterations=most, backend="cuda")
        assert not bool(found.converged)
        assert int(found.iterations) == most
        image = found.vectors @ covariance.double()
        residual = torch.linalg.vector_norm(image - found.values[:, None] * found.vectors, dim=-1)
        assert float(residual) == pytest.approx(float(found.residuals), rel=1e-9)
    # beyond what float64 can give
    stalled = top_eigenvectors(covariance=covariance, tolerance=1e-30, max_iterations=100, backend="cuda")
    assert not bool(stalled.converged)
    assert float(stalled.residuals) <= 1e-13


def test_each_layer_stops_by_itself() -> None:
    spectra = ("one spike", "no gap", "exponential")
    covariance = torch.stack([float32_covariance(rotated(spectrum(name, 90))[0]) for name in spectra])
    found = top_eigenvectors(covariance=covariance, max_iterations=10, backend="cuda")
    assert found.converged.tolist() == [True, False, True]
    assert int(found.iterations[1]) == 10
    for layer in (0, 2):
        alone = top_eigenvectors(covariance=covariance[layer], max_iterations=10, backend="cuda")
        assert int(found.iterations[layer]) == int(alone.iterations) < 10
        assert torch.equal(found.vectors[layer], alone.vectors)


def test_more_layers_than_a_grid_takes() -> None:
    x = decaying(1, 6, 2).expand(260, 6, 2)
    found = top_eigenvectors(x, 1, max_iterations=2, backend="cuda")
    assert bool(found.converged.all())
    assert torch.equal(found.vectors, found.vectors[:1].expand_as(found.vectors))
    covariance = float32_covariance(covariance_of(x[:1], True)).expand(260, 2, 2)
    found = top_eigenvectors(covariance=covariance, max_iterations=2, backend="cuda")
    assert bool(found.converged.all())
    assert torch.equal(found.vectors, found.vectors[:1].expand_as(found.vectors))


def test_as_many_products_as_a_krylov_space_needs() -> None:
    covariance = float32_covariance(rotated(spectrum("power", 200))[0])
    found = top_eigenvectors(covariance=covariance, tolerance=1e-6, backend="cuda")
    assert int(found.iterations) <= 8


def test_leading_dimensions_are_batch_dimensions() -> None:
    x = decaying(2, 3, 20, 6)
    found, flat = top_eigenvectors(x, 2, backend="cuda"), top_eigenvectors(x.reshape(6, 20, 6), 2, backend="cuda")
    assert found.vectors.shape == (2, 3, 2, 6)
    assert torch.equal(found.vectors.reshape(6, 2, 6), flat.vectors)
    assert top_eigenvectors(torch.empty(0, 20, 6), 2, backend="cuda").vectors.shape == (0, 2, 6)


@pytest.mark.parametrize("covariance", [False, True])
def test_record_and_opcheck(covariance: bool) -> None:
    x = decaying(2, 12, 12)
    matrix = float32_covariance(covariance_of(x, True)) if covariance else x
    with backends.record() as runs:
        given = {"covariance": matrix} if covariance else {"x": matrix}
        top_eigenvectors(**given, k=2, backend="cuda")
    assert runs == [("top_eigenvectors", backends.Backend.CUDA)]
    torch.library.opcheck(
        torch.ops.cone_kernels.top_eigenvectors.default, (matrix, covariance, True, 2, 1e-8, 20, "cuda")
    )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_entries_that_are_not_finite_are_refused(bad: float) -> None:
    x = decaying(2, 100, 30)
    x[1, 90, 29] = bad
    for center in (True, False):
        with pytest.raises(ValueError, match="x: got entries that are not finite"):
            top_eigenvectors(x, center=center, backend="cuda")
    covariance = float32_covariance(covariance_of(decaying(1, 50, 30), True))
    covariance[0, 3, 4] = covariance[0, 4, 3] = bad
    with pytest.raises(ValueError, match="covariance: got entries that are not finite"):
        top_eigenvectors(covariance=covariance, backend="cuda")


def test_float64_is_refused() -> None:
    with pytest.raises(
        TypeError, match="x: got dtype float64; it must be one of float32, bfloat16, float16 for backend cuda"
    ):
        top_eigenvectors(torch.zeros(3, 2).double(), backend="cuda")
