"""Centerings against scikit-learn, scipy and plain float64, and their files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import oas
from sklearn.decomposition import PCA
from torch import Tensor

from cone_kernels import ConeState, Moments
from cone_kernels.centering import Centering
from cone_kernels.experiments.level import level_after
from cone_kernels.names import METHODS
from cone_kernels.runs.sentence_vectors import SentenceVectors
from cone_kernels.state.file import StateFileError
from tests.state.test_cone_state import rewritten
from tests.support.moment_cases import normal
from tests.support.recording_probe import plain_anisotropy

DIM = 12


def moments_of(rows: Tensor, **kept: bool) -> Moments:
    moments = Moments.empty("sentence", [4], rows.shape[1], **({"second_moment": True} | kept))
    moments.update(rows)
    return moments


def cone(n: int = 400, dim: int = DIM, seed: int = 0) -> Tensor:
    """Rows around a mean, spread unevenly, float64."""
    scales = torch.linspace(3, 0.1, dim, dtype=torch.float64)
    turn = torch.linalg.qr(normal(dim, dim, dtype=torch.float64, seed=seed + 1)).Q
    return normal(n, dim, dtype=torch.float64, seed=seed, shift=0) * scales @ turn + 2


def plain(rows: Tensor, method: str, components: int = 1, shrinkage: float = 0.0) -> np.ndarray:
    """What a method makes of the rows it is fitted on."""
    x = rows.numpy()
    centered = x - x.mean(0)
    if method == "mean":
        return centered
    if method == "all-but-the-top":
        top = PCA(components, svd_solver="full").fit(x).components_
        return centered - centered @ top.T @ top
    covariance = np.cov(x.T)
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    return centered @ scipy.linalg.fractional_matrix_power(shrunk, -0.5).real


@pytest.mark.parametrize(
    "options",
    [
        {"method": "mean"},
        {"method": "all-but-the-top", "components": 1},
        {"method": "all-but-the-top", "components": 5},
        {"method": "all-but-the-top", "components": DIM},
        {"method": "whitening", "shrinkage": 0.0},
        {"method": "whitening", "shrinkage": 0.3},
        {"method": "whitening", "shrinkage": 1.0},
    ],
)
def test_methods_are_what_the_papers_say(options: dict[str, Any]) -> None:
    rows = cone()
    centering = Centering.fit(moments_of(rows), **options)
    np.testing.assert_allclose(centering(rows).numpy(), plain(rows, **options), atol=1e-7)
    assert (centering.dim, centering.layer, centering.count, centering.level) == (DIM, 4, 400, "sentence")


def test_whitening_gives_the_identity() -> None:
    rows = cone()
    whitened = Centering.fit(moments_of(rows), method="whitening", shrinkage=0)(rows).numpy()
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(DIM), atol=1e-8)


@pytest.mark.parametrize("n", [5, 30, 4000])
def test_default_shrinkage_is_scikit_learns(n: int) -> None:
    rows = cone(n)
    assert Centering.fit(moments_of(rows), method="whitening").shrinkage == pytest.approx(
        oas(rows.numpy())[1], rel=1e-9
    )


def test_default_components_are_a_hundredth_of_the_width() -> None:
    for dim, components in ((7, 1), (199, 1), (200, 2), (300, 3)):
        moments = moments_of(normal(500, dim, dtype=torch.float64))
        assert Centering.fit(moments, method="all-but-the-top").components == components


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("unit", [1e-5, 1e5])
def test_what_vectors_are_measured_in_changes_nothing_but_the_scale(unit: float, method: Any) -> None:
    rows = cone()
    plain, scaled = (Centering.fit(moments_of(x), method=method) for x in (rows, rows * unit))
    assert scaled.shrinkage == (None if plain.shrinkage is None else pytest.approx(plain.shrinkage, rel=1e-9))
    wanted = plain(rows) * (1 if method == "whitening" else unit)
    torch.testing.assert_close(scaled(rows * unit), wanted, rtol=0, atol=1e-8 * float(wanted.abs().max()))


@pytest.mark.parametrize("stretch", [1.0, 1.01])
def test_what_is_nearly_a_sphere_is_shrunk_to_one(stretch: float) -> None:
    rows = torch.cat([torch.eye(4), -torch.eye(4)]).double() * torch.tensor([1, 1, 1, stretch], dtype=torch.float64)
    centering = Centering.fit(moments_of(rows), method="whitening")
    assert centering.shrinkage == 1.0
    variance = 2 / 7 * (3 + stretch**2) / 4
    torch.testing.assert_close(centering(rows), rows / math.sqrt(variance), rtol=1e-12, atol=1e-12)


quick = settings(max_examples=25, deadline=None)


@quick
@given(seed=st.integers(0, 1000), method=st.sampled_from(list(METHODS)), n=st.integers(DIM + 1, 200))
def test_laws(seed: int, method: Any, n: int) -> None:
    rows = cone(n, seed=seed)
    centering = Centering.fit(moments_of(rows), method=method)
    opened = centering(rows)
    # The mean is gone.
    assert float(opened.mean(0).abs().max()) < 1e-9
    # Fitted again on what comes out, mean removal and all-but-the-top of the same directions have nothing left to do.
    if method != "whitening":
        again = centering(opened + centering.mean)
        torch.testing.assert_close(again, opened, rtol=0, atol=1e-9)
    # Halves merge to the whole.
    halves = Moments.empty("sentence", [4], DIM, second_moment=True)
    other = Moments.empty("sentence", [4], DIM, second_moment=True)
    halves.update(rows[: n // 2])
    other.update(rows[n // 2 :])
    merged = Centering.fit(halves.merge(other), method=method)
    torch.testing.assert_close(merged(rows), opened, rtol=0, atol=1e-5)
    # A rotated space is opened alike: the map turns with it.
    turn = torch.linalg.qr(normal(DIM, DIM, dtype=torch.float64, seed=seed + 7)).Q
    turned = Centering.fit(moments_of(rows @ turn), method=method)(rows @ turn)
    torch.testing.assert_close(turned, opened @ turn, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(DIM,), (0, DIM), (7, DIM), (2, 3, 5, DIM)])
def test_shape_type_and_dtype_are_kept(method: Any, shape: tuple[int, ...]) -> None:
    centering = Centering.fit(moments_of(cone()), method=method)
    wide = normal(*shape, dtype=torch.float64)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        x = wide.to(dtype)
        wanted = centering(x.double())
        found = centering(x)
        assert (found.dtype, found.shape, found.device) == (dtype, x.shape, x.device)
        # Computed in float32 at least, and rounded once.
        bound = {torch.float64: 0.0, torch.float32: 2e-5}.get(dtype, torch.finfo(dtype).eps)
        scale = float(wanted.abs().max()) if wanted.numel() else 0.0
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=bound * scale)
        assert torch.equal(centering.apply(x), found)
    for kind in (np.float64, np.float32, np.float16):
        array = wide.numpy().astype(kind)
        found = centering(array)
        assert (type(found), found.dtype, found.shape) == (np.ndarray, array.dtype, array.shape)
        assert np.array_equal(found, centering(torch.from_numpy(array)).numpy())


def test_strides_and_read_only_arrays() -> None:
    centering = Centering.fit(moments_of(cone()), method="whitening")
    x = normal(20, DIM, dtype=torch.float64)
    torch.testing.assert_close(centering(x.mT.contiguous().mT), centering(x), rtol=1e-13, atol=1e-13)
    array = x.numpy()[::-1]
    array.flags.writeable = False
    np.testing.assert_allclose(centering(array), centering(x).numpy()[::-1], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_gradients(method: Any) -> None:
    centering = Centering.fit(moments_of(cone()), method=method)
    # First used under inference mode, as `encode` does, then in training.
    with torch.inference_mode():
        centering(torch.zeros(2, DIM, dtype=torch.float64))
    x = normal(3, DIM, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(centering, (x,))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda c, m: c(torch.zeros(3, DIM + 1)),
            f"x: got width {DIM + 1}; it must be {DIM}, as the centering was fitted on",
        ),
        (lambda c, m: c(torch.tensor(1.0)), r"x: got shape \(\)"),
        (lambda c, m: Centering.fit(m, method="median"), "method: got 'median'; it must be one of mean, all-but"),
        (lambda c, m: Centering.fit(m, components=2), "components: got 2; it must be None for method 'mean'"),
        (lambda c, m: Centering.fit(m, shrinkage=0.5), "shrinkage: got 0.5; it must be None for method 'mean'"),
        (lambda c, m: Centering.fit(m, method="all-but-the-top", components=0), "components: got 0; .* at least 1"),
        (lambda c, m: Centering.fit(m, method="all-but-the-top", components=13), "components: got 13; .* to the width"),
        (lambda c, m: Centering.fit(m, method="whitening", shrinkage=1.1), "shrinkage: got 1.1"),
        (lambda c, m: Centering.fit(m, method="whitening", shrinkage=math.nan), "shrinkage: got nan"),
        (lambda c, m: Centering.fit(m, layer=3), r"layer: got 3; it must be one of the state's layers \(4,\)"),
        (lambda c, m: Centering.fit(m, layer=0), "layer: got 0"),
        (lambda c, m: Centering.fit(m, layer=-2), "layer: got -2"),
        (lambda c, m: Centering.fit(m, layer="output"), "layer: got 'output'; it must be a number, for the state has"),
        (
            lambda c, m: Centering.fit(ConeState.empty([0], 3), layer="output"),
            "layer: got 'output'; it must be a number, for the state has no output",
        ),
        (
            lambda c, m: Centering.fit(moments_of(cone(), second_moment=False), method="whitening"),
            "state: got one without second moments; it must have them \\(second_moment=True\\) for method 'whitening'",
        ),
        (lambda c, m: Centering.fit(Moments.empty("sentence", [0], 3)), "state: got 0 vectors at layer 0"),
        (
            lambda c, m: Centering.fit(moments_of(cone(1)), method="all-but-the-top"),
            "state: got 1 vectors at layer 4; it must be at least 2 for method 'all-but-the-top'",
        ),
        (
            lambda c, m: Centering.fit(moments_of(torch.ones(5, DIM)), method="whitening"),
            "state: all its vectors are alike",
        ),
        (
            lambda c, m: Centering.fit(moments_of(torch.ones(5, DIM)), method="all-but-the-top"),
            "state: all its vectors are alike",
        ),
        (
            lambda c, m: Centering.fit(moments_of(cone(DIM)), method="whitening", shrinkage=0),
            "shrinkage: got 0; the smallest eigenvalue .* blow up rounding; it must be 1e-08 or more, so shrink more",
        ),
    ],
)
def test_errors_name_the_argument(call: Callable[[Centering, Moments], object], words: str) -> None:
    moments = moments_of(cone())
    with pytest.raises(ValueError, match=words):
        call(Centering.fit(moments), moments)


def test_types_that_are_not_taken() -> None:
    centering = Centering.fit(moments_of(cone()))
    for x in (torch.zeros(2, DIM, dtype=torch.int64), [[0.0] * DIM], np.zeros((2, DIM), dtype=complex)):
        with pytest.raises(TypeError, match="x: got"):
            centering(x)  # type: ignore[arg-type]


def test_a_singular_covariance_needs_shrinkage_and_no_more() -> None:
    # As after a final LayerNorm: the rows lie in a hyperplane, however many there are.
    rows = cone(4000)
    rows = rows - rows.mean(1, keepdim=True)
    with pytest.raises(ValueError, match="shrinkage: got 0; the smallest eigenvalue"):
        Centering.fit(moments_of(rows), method="whitening", shrinkage=0)
    opened = Centering.fit(moments_of(rows), method="whitening")(rows.float())
    assert bool(opened.isfinite().all())
    assert float(opened.abs().max()) < 10


def test_the_layer_of_a_state(tmp_path: Path) -> None:
    state = ConeState.empty([0, 2, 5], 3, second_moment=True, info={"model": {"architecture": "BertModel"}})
    hidden = [normal(4, 6, 3, seed=seed) for seed in range(3)]
    state.update(hidden, torch.ones(4, 6))
    for layer, at in ((0, 0), (2, 1), (5, 2), (-1, 2), (-3, 0)):
        found = Centering.fit(state, layer=layer)
        torch.testing.assert_close(found.mean, hidden[at].double().mean((0, 1)), rtol=1e-6, atol=1e-7)
        assert (found.layer, found.model) == (state.layers[at], {"architecture": "BertModel"})
    with pytest.raises(ValueError, match="layer: got 1"):
        Centering.fit(state, layer=1)
    assert Centering.fit(state).layer == Centering.fit(state.token).layer == 5
    assert Centering.fit(state.token).level == "token"
    # What the model itself gives comes before its layers, of whatever width.
    state.add_output(torch.ones(3, 7), torch.arange(3))
    for layer, found in ((None, "output"), ("output", "output"), (-1, 5), (0, 0)):
        centering = Centering.fit(state, layer=layer)  # type: ignore[arg-type]
        assert (centering.layer, centering.dim) == (found, 7 if found == "output" else 3)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_saved_is_what_is_loaded(method: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    centering = Centering.fit(moments_of(cone()), method=method)
    assert centering.save(path) == centering.fingerprint()
    loaded = Centering.load(path)
    assert loaded == centering
    assert hash(loaded) == hash(centering)
    assert repr(loaded) == repr(centering)
    x = normal(5, DIM)
    assert torch.equal(loaded(x), centering(x))
    assert loaded != Centering.fit(moments_of(cone(seed=1)), method=method)
    assert loaded != "centering"
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize(
    ("options", "n", "dim"),
    [
        ({}, 1, 1),
        ({"method": "all-but-the-top", "components": 1}, 40, DIM),
        ({"method": "all-but-the-top", "components": DIM}, 40, DIM),
        ({"method": "whitening", "shrinkage": 0}, 40, DIM),
        ({"method": "whitening", "shrinkage": 1}, 40, DIM),
    ],
)
def test_what_is_just_within_the_bounds_is_loaded(options: dict[str, Any], n: int, dim: int, tmp_path: Path) -> None:
    centering = Centering.fit(cone(n, dim), **options)
    assert (centering.count, centering.dim) == (n, dim)
    centering.save(tmp_path / "c")
    assert Centering.load(tmp_path / "c") == centering


def test_repr_tells_what_it_does() -> None:
    moments = moments_of(cone(1200))
    assert repr(Centering.fit(moments)) == f"Centering(mean, {DIM} wide, layer 4, from 1,200 sentences)"
    for components, words in ((1, "1 component"), (2, "2 components")):
        top = Centering.fit(moments, method="all-but-the-top", components=components)
        assert repr(top).startswith(f"Centering(all-but-the-top of {words}, {DIM} wide, ")
    assert "whitening with shrinkage 0.25," in repr(Centering.fit(moments, method="whitening", shrinkage=0.25))


def test_any_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    Centering.fit(moments_of(cone()), method="whitening").save(path)
    content = path.read_bytes()
    for at in range(0, len(content), max(1, len(content) // 61)):
        damaged = bytearray(content)
        damaged[at] ^= 0x40
        path.write_bytes(damaged)
        with pytest.raises(StateFileError):
            Centering.load(path)


def header(**changes: Any) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    return lambda tensors, info: info["centering"].update(changes)


@pytest.mark.parametrize(
    ("method", "change", "words"),
    [
        ("mean", lambda t, i: t.update(mean=t["mean"] * torch.nan), "mean has values that are not finite"),
        ("mean", lambda t, i: t.update(mean=t["mean"].float()), "mean has shape"),
        ("mean", lambda t, i: t.update(mean=t["mean"][:-1].clone()), "mean has shape"),
        ("mean", lambda t, i: t.update(more=t["mean"].clone()), "has tensors"),
        ("mean", lambda t, i: t.pop("mean"), "has tensors"),
        ("mean", lambda t, i: i["centering"].pop("dim"), "header: got"),
        ("mean", header(more=1), "header: got"),
        ("mean", lambda t, i: i.update(centering=[1]), "header: got"),
        ("mean", lambda t, i: i.pop("centering"), "got a header of"),
        ("mean", header(method="median"), "method"),
        ("mean", header(method=["mean"]), "method"),
        ("mean", header(level="word"), "level"),
        ("mean", header(layer=True), "layer"),
        ("mean", header(layer="last"), "layer"),
        ("mean", header(layer=None), "layer"),
        ("mean", header(dim=0), "dim"),
        ("mean", header(dim=-DIM), "dim"),
        ("mean", header(count=0), "count"),
        ("mean", header(count=1.5), "count"),
        ("mean", header(components=1), "components"),
        ("mean", header(components="all"), "components"),
        ("mean", header(shrinkage=0.5), "shrinkage"),
        ("mean", header(shrinkage="x"), "shrinkage"),
        ("mean", header(shrinkage={"a": 1}), "shrinkage"),
        ("mean", header(model=[1]), "model"),
        ("mean", header(method="whitening", shrinkage=0.5), "has tensors"),
        ("all-but-the-top", header(components=0), "components"),
        ("all-but-the-top", header(components=DIM + 1), "components"),
        ("all-but-the-top", header(components=None), "components"),
        ("all-but-the-top", header(components=2), "directions has shape"),
        ("all-but-the-top", header(dim="12"), "dim"),
        ("all-but-the-top", lambda t, i: t.update(directions=t["directions"] * 2), "directions are not orthonormal"),
        ("all-but-the-top", lambda t, i: t["directions"].mul_(1 + 1e-6), "directions are not orthonormal"),
        ("whitening", header(shrinkage=1.5), "shrinkage"),
        ("whitening", header(shrinkage=-0.1), "shrinkage"),
        ("whitening", header(shrinkage=True), "shrinkage"),
        ("whitening", header(shrinkage=None), "shrinkage"),
        ("whitening", header(shrinkage="0"), "shrinkage"),
        ("whitening", lambda t, i: t["matrix"].triu_(), "matrix is not symmetric"),
    ],
)
def test_a_hostile_file_is_refused(
    tmp_path: Path, method: Any, change: Callable[[dict[str, Tensor], dict[str, Any]], None], words: str
) -> None:
    path = tmp_path / "c.safetensors"
    Centering.fit(moments_of(cone()), method=method).save(path)
    rewritten(path, lambda tensors, info: None)
    Centering.load(path)
    rewritten(path, change)
    with pytest.raises(StateFileError, match=words):
        Centering.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError):
        Centering.load(path)
    moments_of(cone()).save(path)
    with pytest.raises(StateFileError, match="got a header of"):
        Centering.load(path)
    Centering.fit(moments_of(cone())).save(path)
    with pytest.raises(StateFileError, match="got a header of"):
        Moments.load(path)


def test_vectors_left_out_before_are_left_out_after() -> None:
    rows = cone(100)
    rows[3], rows[50, 2], rows[51] = 0, math.nan, math.inf
    centering = Centering.fit(moments_of(rows))
    used = torch.cat([rows[:3], rows[4:50], rows[52:]])
    assert centering.count == 97
    found = level_after(SentenceVectors.from_rows(rows), centering)
    assert (found.count, found.anisotropy) == (97, pytest.approx(plain_anisotropy(used - used.mean(0)), abs=1e-12))
    assert level_after(SentenceVectors.from_rows(rows)).anisotropy == pytest.approx(plain_anisotropy(used), abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_fitted_as_their_state(method: Any, dtype: torch.dtype) -> None:
    rows = cone(100).to(dtype)
    rows[7] = 0  # has no direction
    centering = Centering.fit(rows, method=method)
    moments = Moments.empty("sentence", [4], rows.shape[1], second_moment=method != "mean")
    moments.update(rows)
    state = Centering.fit(moments, method=method)
    assert (centering.count, centering.layer, centering.level, centering.model) == (99, "output", "sentence", None)
    torch.testing.assert_close(centering(rows), state(rows), rtol=0, atol=0)
    if dtype not in (torch.bfloat16,):  # which NumPy has not
        assert Centering.fit(rows.numpy(), method=method) == centering


@pytest.mark.parametrize("method", METHODS)
def test_inverse_is_what_was_mapped_but_for_what_was_projected_out(method: Any) -> None:
    rows = cone()
    centering = Centering.fit(rows, method=method)
    wanted = rows
    if method == "all-but-the-top":
        off = rows - rows.mean(0)
        wanted = rows - off @ centering.directions.mT @ centering.directions  # type: ignore[union-attr]
    for dtype, bound in ((torch.float64, 1e-9), (torch.float32, 1e-4), (torch.bfloat16, 0.2)):
        found = centering.inverse(centering(rows).to(dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=bound)
    x = rows[:3].clone().requires_grad_()
    centering.inverse(centering(x)).sum().backward()
    assert x.grad is not None
    found = centering.inverse(centering(rows.numpy()))
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-9)
    with pytest.raises(ValueError, match=f"x: got width 3; it must be {DIM}"):
        centering.inverse(rows[:, :3])


def test_rows_that_cannot_be_fitted_are_refused() -> None:
    bad = cone(20)
    bad[3, 1], bad[9] = math.nan, math.inf
    with pytest.raises(
        ValueError, match="state: got 2 rows that are not finite, the first is row 3; it must have none"
    ):
        Centering.fit(bad)
    with pytest.raises(ValueError, match="layer: got 1 with rows; it must be None"):
        Centering.fit(cone(20), layer=1)
    with pytest.raises(ValueError, match=r"state: got rows of shape \(2, 10, 12\); it must be \(n, d\)"):
        Centering.fit(cone(20).reshape(2, 10, DIM))
    with pytest.raises(ValueError, match="state: got 0 vectors at the output; it must be at least 1 for method 'mean'"):
        Centering.fit(torch.zeros(5, 4))
    with pytest.raises(TypeError, match="state: got dtype int64"):
        Centering.fit(torch.ones(5, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match="state: got list; it must be a ConeState, Moments, or rows as"):
        Centering.fit([[1.0, 2.0]])  # type: ignore[arg-type]
