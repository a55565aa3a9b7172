from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import sklearn.decomposition
import torch
from torch import Tensor

from cone_kernels import backends, top_eigenvectors
from cone_kernels.kernels.cpu import asymmetry
from cone_kernels.ops.top_eigenvectors import TopEigenvectors, signed_along
from tests.support.moment_cases import DTYPES, normal, views

WIDTHS = [*range(1, 131), 384]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6, torch.float64: 1e-8}

# What float32 products within a block of rows may add to a residual, of λ1; float64 data adds nothing visible.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6, torch.float64: 1e-13}


def spectrum(name: str, d: int) -> Tensor:
    i = torch.arange(1, d + 1, dtype=torch.float64)
    return {
        "slow": i**-0.25,
        "power": 1 / i,
        "exponential": torch.exp(-i / 7),
        "no gap": 1 - (i - 1) / (2 * d),
        "one spike": torch.where(i == 1, 10.0, 1 - i / (2 * d)),
    }[name]


def rotated(eigenvalues: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A covariance with these eigenvalues, and its eigenvectors in columns."""
    d = len(eigenvalues)
    basis = torch.linalg.qr(normal(d, d, dtype=torch.float64, seed=seed, shift=0.0)).Q
    covariance = (basis * eigenvalues) @ basis.T
    return (covariance + covariance.T) / 2, basis


def decaying(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, shift: float = 0.5) -> Tensor:
    """Data (..., n, d) whose columns' deviations fall as 1/√j."""
    falling = torch.arange(1, shape[-1] + 1, dtype=torch.float64) ** -0.5
    return (normal(*shape, dtype=torch.float64, seed=seed, shift=0.0) * falling + shift).to(dtype)


def covariance_of(x: Tensor, center: bool) -> Tensor:
    rows = x.double()
    if center:
        rows = rows - rows.mean(-2, keepdim=True)
    return rows.mT @ rows / (x.shape[-2] - center)


def assert_eigenpairs(
    found: TopEigenvectors, covariance: Tensor, k: int, tolerance: float, rounding: float, exact: Tensor | None = None
) -> None:
    """By definition: residuals, values against eigvalsh, orthonormal vectors; all measured in float64.

    `exact` are the eigenvalues, descending, where several tests look at one covariance.
    """
    exact = eigenvalues_of(covariance) if exact is None else exact
    scale = exact.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    residual = torch.linalg.vector_norm(found.vectors @ covariance - found.values[..., None] * found.vectors, dim=-1)
    assert bool(found.converged.all())
    assert float((found.residuals / scale).max()) <= tolerance
    assert float((residual / scale).max()) <= tolerance + rounding
    assert float(((found.residuals - residual).abs() / scale).max()) <= rounding
    assert float(((found.values - exact[..., :k]).abs() / scale).max()) <= max(rounding, tolerance**2 * 1e3)
    identity = torch.eye(k, dtype=torch.float64)
    assert float((found.vectors @ found.vectors.mT - identity).abs().max()) <= 1e-13
    if k < covariance.shape[-1]:
        gap = exact[..., k - 1] - exact[..., k]
        assert float(((found.eigengap - gap).abs() / scale[..., 0]).max()) <= 2e-3
    else:
        assert bool(found.eigengap.isnan().all())


def eigenvalues_of(covariance: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(covariance).flip(-1)


@dataclasses.dataclass
class Width:
    """What the op is given at a width, how many eigenvectors are asked for, and the float64 eigenvalues."""

    given: Tensor
    k: int
    covariance: Tensor
    exact: Tensor


def at_width(given: Tensor, covariance: Tensor) -> Width:
    d = given.shape[-1]
    return Width(given, 1 + d % 3 if d >= 3 else d, covariance, eigenvalues_of(covariance))


@pytest.fixture(scope="module")
def drawn() -> list[Tensor]:
    """Data (2, 150, d) of every width, which all dtypes round."""
    return [decaying(2, 150, d, dtype=torch.float64, seed=d) for d in WIDTHS]


# pytest runs the tests of one parameter of a module's fixture together: every instruction set finds what the first did.
@pytest.fixture(scope="module", params=itertools.product([True, False], DTYPES), ids=lambda p: f"{p[0]}-{p[1]}")
def data(request: pytest.FixtureRequest, drawn: list[Tensor]) -> tuple[bool, torch.dtype, list[Width]]:
    center, dtype = request.param
    given = [x.to(dtype) for x in drawn]
    return center, dtype, [at_width(x, covariance_of(x, center)) for x in given]


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def covariances(request: pytest.FixtureRequest, drawn: list[Tensor]) -> list[Width]:
    given = [covariance_of(x.float(), True).to(request.param) for x in drawn]
    given = [covariance.tril() + covariance.tril(-1).mT for covariance in given]
    return [at_width(covariance, covariance.double()) for covariance in given]


def test_data_of_every_width(isa: str, data: tuple[bool, torch.dtype, list[Width]]) -> None:
    center, dtype, widths = data
    for at in widths:
        found = top_eigenvectors(at.given, at.k, center=center, backend="cpu")
        assert_eigenpairs(found, at.covariance, at.k, TOLERANCE[dtype], ROUNDING[dtype], at.exact)


def test_covariance_of_every_width(isa: str, covariances: list[Width]) -> None:
    for at in covariances:
        found = top_eigenvectors(covariance=at.given, k=at.k, backend="cpu")
        assert_eigenpairs(found, at.covariance, at.k, 1e-8, 1e-13, at.exact)


@pytest.mark.parametrize("name", ["slow", "power", "exponential", "no gap", "one spike"])
def test_vectors_against_numpy_for_every_kind_of_spectrum(name: str) -> None:
    covariance, _ = rotated(spectrum(name, 300))
    vectors = np.linalg.eigh(covariance.numpy())[1][:, ::-1]
    found = top_eigenvectors(covariance=covariance, k=3)
    assert_eigenpairs(found, covariance, 3, 1e-8, 1e-13)
    cosine = np.abs((found.vectors.numpy() * vectors[:, :3].T).sum(-1))
    assert float((1 - cosine).max()) <= 1e-10


def test_against_scipy_and_sklearn() -> None:
    x = decaying(900, 200, dtype=torch.float64)
    found = top_eigenvectors(x, 4)
    values, vectors = scipy.sparse.linalg.eigsh(covariance_of(x, True).numpy(), k=4)
    np.testing.assert_allclose(found.values.numpy(), values[::-1], rtol=1e-12)
    cosine = np.abs((found.vectors.numpy() * vectors[:, ::-1].T).sum(-1))
    assert float((1 - cosine).max()) <= 1e-10
    pca = sklearn.decomposition.PCA(4, svd_solver="full").fit(x.numpy())
    np.testing.assert_allclose(found.values.numpy(), pca.explained_variance_, rtol=1e-12)
    assert float((1 - np.abs((found.vectors.numpy() * pca.components_).sum(-1))).max()) <= 1e-10


@pytest.mark.parametrize("k", [1, 2, 7, 8, 9, 20, 39, 40])
@pytest.mark.parametrize("d", [40, 200])
def test_how_many(k: int, d: int) -> None:
    x = decaying(2, 300, d, dtype=torch.float64)
    assert_eigenpairs(top_eigenvectors(x, k), covariance_of(x, True), k, 1e-8, 1e-13)
    covariance = covariance_of(x, False)
    assert_eigenpairs(top_eigenvectors(covariance=covariance, k=k), covariance, k, 1e-8, 1e-13)


def test_clustered_eigenvalues_as_a_subspace() -> None:
    eigenvalues = torch.cat([torch.tensor([5.0, 5.0, 5.0, 5.0 - 1e-12]), torch.linspace(1, 0.1, 96)]).double()
    covariance, basis = rotated(eigenvalues)
    found = top_eigenvectors(covariance=covariance, k=4)
    assert_eigenpairs(found, covariance, 4, 1e-8, 1e-13)
    inside = torch.linalg.matrix_norm(found.vectors @ basis[:, :4]).square()
    assert float(inside) == pytest.approx(4, abs=1e-12)
    # of two such vectors the values are right, the vectors some two of that space
    found = top_eigenvectors(covariance=covariance, k=2)
    assert float((found.values - 5).abs().max()) <= 1e-11
    assert float(found.eigengap.abs()) <= 1e-3


def test_multiplicity_beyond_the_block() -> None:
    covariance, _ = rotated(torch.cat([torch.full((60,), 2.0), torch.full((60,), 1.0)]).double())
    assert_eigenpairs(top_eigenvectors(covariance=covariance, k=30), covariance, 30, 1e-8, 1e-13)


@pytest.mark.parametrize("covariance", [torch.zeros(2, 30, 30), torch.eye(30).expand(2, 30, 30)])
def test_zero_and_identity(isa: str, covariance: Tensor) -> None:
    found = top_eigenvectors(covariance=covariance, k=3)
    torch.testing.assert_close(found.values, covariance.double().diagonal(dim1=1, dim2=2)[:, :3], rtol=1e-15, atol=0)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.vectors @ found.vectors.mT, torch.eye(3).double().expand(2, 3, 3))
    assert float(found.eigengap.abs().max()) <= 1e-15


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rank_deficient_data(isa: str, dtype: torch.dtype) -> None:
    x = decaying(3, 100, dtype=dtype)
    found = top_eigenvectors(x, 5)
    assert_eigenpairs(found, covariance_of(x, True), 5, TOLERANCE[dtype], ROUNDING[dtype])
    assert float(found.values[2:].abs().max()) <= 1e-6 * float(found.values[0])
    same = top_eigenvectors(normal(1, 20, dtype=dtype).expand(50, 20), 2)
    assert bool(same.converged)
    assert float(same.values.abs().max()) <= 1e-12


def test_one_row_without_centering(isa: str) -> None:
    x = normal(1, 50, dtype=torch.float64)
    found = top_eigenvectors(x, center=False)
    assert float(found.values) == pytest.approx(float(x.square().sum()), rel=1e-13)
    torch.testing.assert_close(found.vectors, x / torch.linalg.vector_norm(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e150])
def test_float64_extremes(isa: str, scale: float) -> None:
    covariance = covariance_of(decaying(200, 60, dtype=torch.float64), True)
    found = top_eigenvectors(covariance=covariance * scale, k=2)
    found = dataclasses.replace(
        found, values=found.values / scale, residuals=found.residuals / scale, eigengap=found.eigengap / scale
    )
    assert_eigenpairs(found, covariance, 2, 1e-8, 1e-13)


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-19, 1e19, 1e30, 1e37])
def test_float32_extremes(isa: str, scale: float) -> None:
    x = decaying(200, 60) * scale
    found = top_eigenvectors(x, 2)
    square = scale**2
    found = dataclasses.replace(
        found, values=found.values / square, residuals=found.residuals / square, eigengap=found.eigengap / square
    )
    assert_eigenpairs(found, covariance_of(x.double() / scale, True), 2, 1e-6, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_mean_far_from_zero_costs_nothing(isa: str, dtype: torch.dtype) -> None:
    x = decaying(2000, 64, dtype=dtype, shift=1000.0)
    assert_eigenpairs(top_eigenvectors(x, 2), covariance_of(x, True), 2, TOLERANCE[dtype], ROUNDING[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_row_that_a_sample_would_miss_decides(isa: str, dtype: torch.dtype) -> None:
    x = decaying(5000, 64, dtype=dtype, shift=0.0)
    x[:, 40] = 0
    x[4321] = 0
    x[4321, 40] = 200.0
    found = top_eigenvectors(x)
    assert_eigenpairs(found, covariance_of(x, True), 1, TOLERANCE[dtype], ROUNDING[dtype])
    assert float(found.vectors[0, 40].abs()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_are_honoured(isa: str, dtype: torch.dtype) -> None:
    x = decaying(3, 130, 37, dtype=dtype)
    wanted = top_eigenvectors(x, 2)
    square = covariance_of(x, True).to(dtype)
    square = square.tril() + square.tril(-1).mT
    wanted_square = top_eigenvectors(covariance=square, k=2)
    for (layout, view), (_, square_view) in zip(views(x).items(), views(square).items(), strict=True):
        assert torch.equal(top_eigenvectors(view, 2).vectors, wanted.vectors), layout
        assert torch.equal(top_eigenvectors(covariance=square_view, k=2).vectors, wanted_square.vectors), layout


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layers", [1, 5])
def test_threads_change_nothing(threads: None, isa: str, dtype: torch.dtype, layers: int) -> None:
    x = decaying(layers, 2100, 150, dtype=dtype)
    covariance = covariance_of(x, True)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append((top_eigenvectors(x, 2), top_eigenvectors(covariance=covariance, k=2)))
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            for field in dataclasses.fields(TopEigenvectors):
                assert torch.equal(getattr(first, field.name), getattr(second, field.name)), field.name


def test_not_converged_is_said() -> None:
    covariance, _ = rotated(spectrum("no gap", 300))
    found = top_eigenvectors(covariance=covariance, max_iterations=2)
    assert not bool(found.converged)
    assert int(found.iterations) == 2
    residual = torch.linalg.vector_norm(found.vectors @ covariance - found.values[:, None] * found.vectors, dim=-1)
    assert float(residual) == pytest.approx(float(found.residuals), rel=1e-9)
    assert float(found.residuals / found.values) > 1e-3
    # beyond what float64 can give
    stalled = top_eigenvectors(covariance=covariance, tolerance=1e-30, max_iterations=400)
    assert not bool(stalled.converged)
    assert float(stalled.residuals) <= 1e-13


def test_each_layer_stops_by_itself() -> None:
    easy, hard = rotated(spectrum("one spike", 200))[0], rotated(spectrum("no gap", 200))[0]
    found = top_eigenvectors(covariance=torch.stack([easy, hard]), max_iterations=12)
    assert found.converged.tolist() == [True, False]
    assert int(found.iterations[0]) < 12


def test_as_many_reads_as_a_krylov_space_needs() -> None:
    covariance, _ = rotated(spectrum("power", 500))
    assert int(top_eigenvectors(covariance=covariance, tolerance=1e-6).iterations) <= 8


def test_sign_from_data_is_along_the_mean() -> None:
    x = decaying(4, 400, 30, shift=0.0)
    x = x + torch.tensor([1.0, -1.0, 0.3, -0.3])[:, None, None]
    found = top_eigenvectors(x, 3)
    mean = x.double().mean(-2)
    cosine = torch.einsum("lkd,ld->lk", found.vectors, mean) / torch.linalg.vector_norm(mean, dim=-1)[:, None]
    decided = cosine.abs() >= 1e-3
    assert bool(decided.any())
    assert bool((cosine[decided] > 0).all())


def test_sign_without_a_mean_is_the_largest_component() -> None:
    half = decaying(200, 30, dtype=torch.float64, shift=0.0)
    for found in (
        top_eigenvectors(torch.cat([half, -half]), 4),
        top_eigenvectors(covariance=covariance_of(half, False), k=4),
    ):
        largest = found.vectors.gather(-1, found.vectors.abs().argmax(-1, keepdim=True))
        assert bool((largest > 0).all())


def test_leading_dimensions_are_batch_dimensions() -> None:
    x = decaying(2, 3, 50, 12, dtype=torch.float64)
    found, flat = top_eigenvectors(x, 2), top_eigenvectors(x.reshape(6, 50, 12), 2)
    shapes = {"values": (2,), "vectors": (2, 12), "residuals": (2,), "iterations": (), "eigengap": (), "converged": ()}
    for name, shape in shapes.items():
        assert getattr(found, name).shape == (2, 3, *shape)
        assert torch.equal(getattr(found, name).reshape(6, *shape), getattr(flat, name))
    assert top_eigenvectors(torch.empty(0, 50, 12), 2).vectors.shape == (0, 2, 12)


def test_numpy() -> None:
    x = decaying(40, 6)
    found, wanted = top_eigenvectors(x.numpy(), 2), top_eigenvectors(x, 2)
    for field in dataclasses.fields(TopEigenvectors):
        value = getattr(found, field.name)
        assert isinstance(value, np.ndarray)
        np.testing.assert_array_equal(value, getattr(wanted, field.name).numpy())


@pytest.mark.parametrize("covariance", [False, True])
def test_backends_and_opcheck(covariance: bool) -> None:
    x = decaying(2, 12, 12, dtype=torch.float64)
    matrix = covariance_of(x, True) if covariance else x
    results = []
    for backend in ("cpu", "reference"):
        with backends.record() as runs:
            given = {"covariance": matrix} if covariance else {"x": matrix}
            results.append(top_eigenvectors(**given, k=2, backend=backend))
        assert runs == [("top_eigenvectors", backends.Backend(backend))]
        arguments = (matrix, covariance, True, 2, 1e-8, 100, backend)
        torch.library.opcheck(torch.ops.cone_kernels.top_eigenvectors.default, arguments)
    torch.testing.assert_close(results[0].vectors, results[1].vectors, rtol=0, atol=1e-7)
    torch.testing.assert_close(results[0].values, results[1].values, rtol=1e-12, atol=0)


def test_compiles_whole() -> None:
    x = decaying(50, 9)
    compiled = torch.compile(lambda rows: top_eigenvectors(rows * 2, 2).vectors * 3, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), top_eigenvectors(x * 2, 2).vectors * 3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_entries_that_are_not_finite_are_refused(isa: str, backend: str, bad: float) -> None:
    x = decaying(2, 700, 30)
    x[1, 600, 29] = bad
    for center in (True, False):
        with pytest.raises(ValueError, match="x: got entries that are not finite"):
            top_eigenvectors(x, center=center, backend=backend)
    covariance = covariance_of(x[:1], True)
    covariance[0, 3, 4] = covariance[0, 4, 3] = bad
    with pytest.raises(ValueError, match="covariance: got entries that are not finite"):
        top_eigenvectors(covariance=covariance, backend=backend)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, ValueError, "x, covariance: got neither"),
        ({"x": torch.zeros(3, 2), "covariance": torch.zeros(2, 2)}, ValueError, "x, covariance: got both"),
        ({"x": torch.zeros(3)}, ValueError, r"x: got shape \(3,\)"),
        ({"x": torch.zeros(3, 2).long()}, TypeError, "x: got dtype int64"),
        ({"x": torch.zeros(1, 2)}, ValueError, "x: got 1 rows; it must have at least 2"),
        ({"x": torch.zeros(0, 2), "center": False}, ValueError, "x: got 0 rows; it must have at least 1"),
        ({"x": torch.zeros(3, 2), "k": 3}, ValueError, "k: got 3; it must be from 1 to d = 2"),
        ({"x": torch.zeros(3, 2), "k": 0}, ValueError, "k: got 0"),
        ({"x": torch.zeros(3, 2), "tolerance": 0.0}, ValueError, "tolerance: got 0.0"),
        ({"x": torch.zeros(3, 2), "tolerance": float("nan")}, ValueError, "tolerance: got nan"),
        ({"x": torch.zeros(3, 2), "max_iterations": 0}, ValueError, "max_iterations: got 0"),
        ({"covariance": torch.zeros(3, 2)}, ValueError, r"covariance: got shape \(3, 2\)"),
        ({"x": torch.zeros(3, 2), "backend": "gpu"}, ValueError, "backend: got 'gpu'"),
    ],
)
def test_errors_name_the_argument(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        top_eigenvectors(**arguments)


def test_a_matrix_of_which_one_triangle_is_filled_is_refused() -> None:
    x = torch.randn(20, 4, dtype=torch.float64)
    half = (x.mT @ x).tril()
    with pytest.raises(ValueError, match=r"covariance: got one whose entries \(i, j\) and \(j, i\) differ by up to"):
        top_eigenvectors(covariance=half)
    for scale in (1e60, 1e-60):  # which float32 cannot hold
        with pytest.raises(ValueError, match="differ by up to"):
            top_eigenvectors(covariance=half * scale)
    rounded = (x.mT @ x).bfloat16()
    rounded[0, 1] = torch.nextafter(rounded[0, 1], torch.tensor(torch.inf, dtype=torch.bfloat16))
    wanted = torch.linalg.eigvalsh(rounded.double())[-1:]
    torch.testing.assert_close(top_eigenvectors(covariance=rounded).values, wanted, rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_triangles_are_compared_wherever_they_differ(isa: str, dtype: torch.dtype) -> None:
    for d in (1, 2, 31, 32, 33, 70, 97):
        x = normal(2, d, d, dtype=dtype, seed=d)
        x = x.triu() + x.triu(1).mT
        places = {(0, d - 1), (d // 2, d - 1), (d - 1, 0), (d - 1, max(0, d - 2)), (d // 3, d // 2)}
        for (i, j), change in itertools.product(places, (5, -5)):
            given = x.clone()
            given[1, i, j] += change
            given[0, j, i] += 3
            wide = given.double()
            wanted = (float((wide - wide.mT).abs().max()), float(wide.abs().max()))
            for layout, view in views(given).items():
                assert asymmetry(view) == pytest.approx(wanted, rel=1e-6), (d, i, j, change, layout)


@pytest.mark.parametrize("k", [2.0, "2", None])
def test_how_many_is_an_integer(k: Any) -> None:
    with pytest.raises(TypeError, match=f"k: got {k!r}; it must be an integer"):
        top_eigenvectors(torch.randn(20, 4), k)
    assert top_eigenvectors(torch.randn(20, 4), np.int64(2)).values.shape == (2,)


@pytest.mark.parametrize("length", [1e-3, 1e9])
@pytest.mark.parametrize(("cosine", "sign"), [(1.5e-3, 1.0), (-1.5e-3, -1.0), (0.5e-3, 1.0), (-0.5e-3, 1.0)])
def test_the_mean_decides_the_sign_from_a_cosine_of_a_thousandth_on(cosine: float, sign: float, length: float) -> None:
    vectors, values = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    mean = length * torch.tensor([[cosine, (1 - cosine**2) ** 0.5]], dtype=torch.float64)
    assert signed_along(vectors, values, mean).tolist() == [[[sign, 0.0]]]


@pytest.mark.parametrize("deviation", [1e-10, 1.0, 1e10])
@pytest.mark.parametrize(("times", "sign"), [(1.5e-12, -1.0), (0.5e-12, 1.0)])
def test_what_rounding_leaves_of_a_mean_decides_no_sign(times: float, sign: float, deviation: float) -> None:
    vectors = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    values = torch.tensor([[deviation**2]], dtype=torch.float64)
    mean = torch.tensor([[-times * deviation, 0.0]], dtype=torch.float64)
    assert signed_along(vectors, values, mean).tolist() == [[[sign, 0.0]]]


def test_the_triangles_of_a_covariance_may_differ_by_a_hundredth() -> None:
    matrix = torch.tensor([[1.0, 0.5], [0.509, 1.0]], dtype=torch.float64)
    # Both are read: the largest eigenvalue is that of their mean.
    assert float(top_eigenvectors(covariance=matrix).values) == pytest.approx(1.5045, rel=1e-6)
    matrix[1, 0] = 0.511
    with pytest.raises(ValueError, match=r"differ by up to 0\.011; it must be symmetric"):
        top_eigenvectors(covariance=matrix)
    assert top_eigenvectors(covariance=torch.empty(0, 4, 4), k=2).values.shape == (0, 2)


def test_the_fewest_rows_and_reads() -> None:
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    assert float(top_eigenvectors(x).values) == pytest.approx(2, rel=1e-12)
    assert float(top_eigenvectors(x[1:], center=False).values) == pytest.approx(9, rel=1e-12)
    assert top_eigenvectors(covariance=torch.eye(40), max_iterations=1).values.shape == (1,)


@pytest.mark.parametrize("given", ["x", "covariance"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_options_that_are_not_given(dtype: torch.dtype, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    fields = (torch.zeros(()),) * len(dataclasses.fields(TopEigenvectors))
    op = "cone_kernels.ops.top_eigenvectors._eigenvectors"
    monkeypatch.setattr(op, lambda matrix, *options: asked.append(options) or fields)
    top_eigenvectors(**{given: torch.ones(3, 3, dtype=dtype)})
    tolerance = 1e-8 if given == "covariance" or dtype == torch.float64 else 1e-6
    assert asked == [(given == "covariance", True, 1, tolerance, 500, "cpu")]
