"""Vectors that are there already: every format against NumPy in float64, axes and ids, honest sentences, bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cone_kernels import Centering, ConeState
from cone_kernels.experiments import center, compare, layers, rotation, vectors
from cone_kernels.experiments.level import Level
from cone_kernels.experiments.rogue_dimensions import RogueDimension, WithoutRogue
from cone_kernels.experiments.solved_axes import SolvedAxes, solved_axes
from cone_kernels.experiments.vectors import vectors_of
from cone_kernels.experiments.vectors_result import (
    VectorAxes,
    VectorAxis,
    VectorProjection,
    _anisotropy,
    _axis,
    _rogue,
)
from cone_kernels.report import fragment
from cone_kernels.runs.measurement import from_state
from cone_kernels.statistics.claims import Claim
from cone_kernels.sums import jackknife_groups
from cone_kernels.vector_files import VectorFileError, Vectors
from tests.support.vector_writers import BYTES, WRITERS, Array

pytestmark = pytest.mark.usefixtures("one_thread")

N, DIM = 1200, 6
CASES = [("npy", "float16"), ("npy", "float64"), ("npy in Fortran order", "float32"), ("parquet", "float32")]
CASES += [("jsonl", "float64"), ("u8bin", "uint8"), ("i8bin", "int8"), ("fvecs", "float32"), ("npz", "float32")]


def cone_of(kind: str, n: int = N, seed: int = 0) -> Array:
    """Vectors in a cone, one dimension of which carries much; of bytes too."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, DIM)) + np.array([0.3, 2, 0.2, 0, 0, 0])
    return (
        (rows * 20 + (100 if kind == "uint8" else 0)).round().clip(*limits(kind)).astype(kind)
        if kind in BYTES
        else rows.astype(kind)
    )


def limits(kind: str) -> tuple[int, int]:
    return (np.iinfo(kind).min, np.iinfo(kind).max)


def plain(array: Array) -> dict[str, Any]:
    """The numbers of `vectors` from an array, in float64 and by definition."""
    rows = array.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    used = np.isfinite(norms) & (norms > 0)
    groups, x = jackknife_groups(torch.arange(len(rows))).numpy()[used], rows[used]
    u = x / norms[used][:, None]

    def anisotropy(unit: Array) -> float:
        cosines = unit @ unit.T
        return float((cosines.sum() - np.trace(cosines)) / (len(unit) * (len(unit) - 1)))

    def unit_of(kept: Array) -> Array:
        return kept / np.linalg.norm(kept, axis=1, keepdims=True)

    total, n = anisotropy(u), len(u)
    cosines = u @ u.T
    np.fill_diagonal(cosines, 0)
    of_pairs = cosines.sum()
    left = np.array([left_out(cosines, of_pairs, groups == group) for group in np.unique(groups)])
    contributions = (u.sum(0) ** 2 - (u**2).sum(0)) / (n * (n - 1))
    largest = np.argsort(-contributions)[:3]
    covariance = np.cov(x.T)
    values, axes = np.linalg.eigh(covariance)
    return {
        "anisotropy": total,
        "stderr": math.sqrt((len(left) - 1) / len(left) * float(((left - left.mean()) ** 2).sum())),
        "mean_norm": float(norms[used].mean()),
        "count": n,
        "rogue": largest.tolist(),
        "without": anisotropy(unit_of(np.delete(x, largest, 1))),
        "participation_ratio": float(values.sum() ** 2 / (values**2).sum()),
        "projections": (x - x.mean(0)) @ axes[:, -1],
        "eigenvalues": values[::-1],
    }


def left_out(cosines: Array, total: float, gone: Array) -> float:
    """The mean over all pairs of the rows that stay: pairs with one or two of the others leave the sum `total`."""
    of_gone = cosines[gone]
    rest = total - 2 * of_gone.sum() + of_gone[:, gone].sum()
    stay = len(gone) - int(gone.sum())
    return float(rest / (stay * (stay - 1)))


@pytest.mark.parametrize(("case", "kind"), CASES)
def test_every_format_gives_the_numbers_of_numpy(tmp_path: Path, case: str, kind: str) -> None:
    array, (name, _, write) = cone_of(kind), WRITERS[case]
    write(tmp_path / name, array)
    field = "vector" if case in ("npz", "parquet") else None
    result = vectors(tmp_path / name, field=field, scale=0.5 if kind in BYTES else None, axis=1)
    wanted = plain(array * 0.5 if kind in BYTES else array)
    exact = 1e-12 if kind == "float64" else 1e-6
    for what in ("anisotropy", "stderr", "mean_norm", "count"):
        assert getattr(result.level, what) == pytest.approx(wanted[what], rel=exact * 10, abs=exact)
    assert [one.dimension for one in result.rogue_dimensions] == wanted["rogue"]
    assert result.without_rogue.value == pytest.approx(wanted["without"], abs=exact)
    assert result.without_rogue.count == wanted["count"]
    assert result.geometry is not None
    assert result.geometry.participation_ratio == pytest.approx(wanted["participation_ratio"], rel=1e-5)
    assert result.axis is not None
    (component,) = result.axis.components
    assert component.eigenvalue == pytest.approx(wanted["eigenvalues"][0], rel=1e-5)
    assert component.eigengap == pytest.approx(-np.diff(wanted["eigenvalues"])[0], rel=1e-4)
    assert (result.vectors["rows"], result.vectors["dim"], result.vectors["dtype"]) == (N, DIM, kind)


def test_bfloat16_is_read_as_it_is(tmp_path: Path) -> None:
    rows = torch.from_numpy(cone_of("float32")).bfloat16()
    save_file({"embeddings": rows}, tmp_path / "v.safetensors")
    result = vectors([tmp_path / "v.safetensors"])
    wanted = plain(rows.double().numpy())
    assert result.level.anisotropy == pytest.approx(wanted["anisotropy"], abs=1e-6)
    assert result.vectors["dtype"] == "bfloat16"
    assert result.geometry is None
    assert result.axis is None


def test_the_ends_of_an_axis_are_named(tmp_path: Path) -> None:
    array = cone_of("float32")
    np.save(tmp_path / "a.npy", array[:500])
    np.save(tmp_path / "b.npy", array[500:])
    (tmp_path / "ids.txt").write_text("".join(f"text {row}\n" for row in range(N)))
    files = [tmp_path / "a.npy", tmp_path / "b.npy"]
    result = vectors(files, ids=tmp_path / "ids.txt", axis=2, top=3)
    assert result.axis is not None
    (first, _), projections = result.axis.components, plain(array)["projections"]
    order = np.argsort(projections)
    ends = {tuple(order[:3].tolist()), tuple(order[::-1][:3].tolist())}
    assert {tuple(one.index for one in first.top), tuple(one.index for one in first.bottom)} == ends
    assert [one.id for one in first.top] == [f"text {one.index}" for one in first.top]
    assert abs(first.top[0].projection) == pytest.approx(abs(projections[first.top[0].index]), rel=1e-5)
    assert f"“text {first.top[0].index}”" in " ".join(result.summary())
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["axis"]["components"][0]["top"][0].keys() == {"id", "index", "projection"}
    assert (data["schema"], data["experiment"]) == ("cone_kernels/vectors/1", "vectors")
    assert data["vectors"].keys() == {"name", "rows", "dim", "dtype", "scale", "fingerprint"}
    assert f"text {first.top[0].index}" in fragment(data)


def test_what_is_given_in_python_has_the_bits_of_a_file(tmp_path: Path) -> None:
    array = cone_of("float32", 20_000)
    np.save(tmp_path / "v.npy", array)
    wanted = vectors(tmp_path / "v.npy").state.fingerprint()
    batches = [array[at : at + 777] for at in range(0, len(array), 777)]
    for source in (array, torch.from_numpy(array), batches, iter(batches), Vectors(tmp_path / "v.npy")):
        assert vectors(source).state.fingerprint() == wanted
    limited = vectors(iter(batches), limit=9000)
    assert limited.level.count == limited.vectors["rows"] == 9000
    assert limited.state.fingerprint() == vectors(array[:9000]).state.fingerprint()
    assert vectors(array, limit=10**6).state.fingerprint() == wanted


def test_rows_without_a_direction_are_counted_and_left_out() -> None:
    array = cone_of("float32")
    array[[3, 700]] = 0
    array[5, 2], array[6, 0], array[900] = np.nan, np.inf, -np.inf
    result = vectors(array, axis=1)
    assert (result.level.n_zero, result.level.n_nonfinite, result.level.count) == (2, 3, N - 5)
    assert result.level.anisotropy == pytest.approx(plain(array)["anisotropy"], abs=1e-6)
    assert result.n_bad == 5
    assert result.summary()[-1] == "Of the vectors 2 are zero and 3 are not finite, and left out."


@pytest.mark.parametrize(("rows", "why"), [(1, "1 vectors used"), (2, "the jackknife has 2 groups")])
def test_what_too_few_vectors_do_not_define_has_a_reason(rows: int, why: str) -> None:
    result = vectors(cone_of("float64", rows))
    assert math.isnan(result.level.stderr)
    assert why in str(result.level.reason)
    assert why in result.summary()[0]
    assert result.to_dict()["sentence"]["stderr"] is None


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_what_rounding_leaves_of_equal_vectors_is_no_axis(scale: float) -> None:
    noise = np.random.default_rng(0).standard_normal((100, 3))

    def solved(share: float) -> SolvedAxes:
        state = ConeState.of_vectors(3, second_moment=True)
        state.add_output(torch.from_numpy(scale * (1 + share * noise)), torch.arange(100))
        assert state.output is not None
        return solved_axes(state.output, 1, "vectors", "vectors")

    wanted = np.linalg.eigvalsh(np.cov(noise.T))[-1]
    for share in (1.0, 1e-4):
        assert solved(share).eigenvalues == pytest.approx([wanted * (share * scale) ** 2], rel=1e-6)
    with pytest.raises(ValueError, match=r"^vectors: got equal vectors; they must vary to have an axis$"):
        solved(1e-8)


def test_sentences_say_no_more_than_the_data_do() -> None:
    isotropic = np.random.default_rng(1).standard_normal((4000, 32)).astype(np.float32)
    (said, *others) = vectors(isotropic).summary()
    assert said.endswith(": these data do not tell it from 0.")
    assert others == []
    tight = vectors(cone_of("float64"))
    level = tight.level
    assert tight.summary()[0].endswith(f"a mean cosine of {level.anisotropy:.3f} ± {level.stderr:.3f}.")
    assert "carry" in tight.summary()[1]
    few = vectors(isotropic + 0.5, rogue=0)
    assert len(few.summary()) == 1


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        (0.0, "0.123 ± 0.000."),
        (0.02, "0.123 ± 0.020."),
        (0.00042, "0.1235 ± 0.0004."),
        (0.00004, "0.12346 ± 0.00004."),
        (3e-11, "0.123456789 ± 0.000000000."),
    ],
)
def test_as_many_decimals_as_show_the_error(stderr: float, said: str) -> None:
    assert _anisotropy(Level(0.123456789, stderr, 9, 0, 0, 1.0), Claim(0.1, 0.0, 0.01)).endswith(f"cosine of {said}")


ENDS = {
    "top": (VectorProjection(3, 2.5), VectorProjection(4, 2.25)),
    "bottom": (VectorProjection(7, -1.25, "a text"), VectorProjection(8, -1.0, "another")),
}


@pytest.mark.parametrize(
    ("shares", "gap", "cosine", "said"),
    [
        (
            (0.5, 0.25),
            0.3,
            0.5,
            (
                "The first axis carries 50.0% of the variance, the first 2 together 75.0%.",
                "The second axis carries nearly as much, so other vectors of the kind could turn the first towards it.",
                "At its upper end lies row 3 (+2.5), at its lower end “a text” (-1.25).",
                "It stands at 60° to the mean direction.",
            ),
        ),
        # A gap of a tenth of the eigenvalue is none to warn of, and a mean of zero has no direction.
        (
            (0.5,),
            0.4,
            math.nan,
            (
                "The first axis carries 50.0% of the variance.",
                "At its upper end lies row 3 (+2.5), at its lower end “a text” (-1.25).",
            ),
        ),
    ],
)
def test_sentences_of_axes(shares: tuple[float, ...], gap: float, cosine: float, said: tuple[str, ...]) -> None:
    components = tuple(VectorAxis(4.0, share, 0.0, gap, **ENDS) for share in shares)
    assert tuple(_axis(VectorAxes(components, cosine, ()))) == said


def test_sentences_of_the_dimensions_that_carry_much() -> None:
    told, not_told = Claim(0.5, 0.0, 0.1), Claim(0.05, 0.0, 0.1)
    rogue = [RogueDimension(4, 0.3, 0.6), RogueDimension(1, 0.1, 0.2)]

    def said(dimensions: int, cone: Claim = told, share: Claim | None = told) -> list[str]:
        without = WithoutRogue(0.125, 0.01, 8)
        result: Any = SimpleNamespace(cone=cone, share=share, without_rogue=without, level=SimpleNamespace(count=9))
        result.rogue_dimensions = rogue[:dimensions]
        return list(_rogue(result))

    drawn = "(8 of the vectors, spread evenly over all)"
    assert said(1) == [
        "One dimension does much of it: dimension 4 carries 60% of the mean cosine, which is 0.125 ± 0.010 without it "
        f"{drawn}."
    ]
    assert said(2) == [
        "A few dimensions do much of it: dimensions 4 and 1 carry 80% of the mean cosine, which is 0.125 ± 0.010 "
        f"without them {drawn}."
    ]
    assert said(2, cone=not_told) == said(2, share=not_told) == said(0, share=None) == []


def test_states_of_vectors_are_taken_by_the_other_experiments(tmp_path: Path) -> None:
    array = cone_of("float64")
    files = {}
    for name, rows in (("before", array), ("after", array - [0, 1, 0, 0, 0, 0]), ("other", cone_of("float64", 900, 5))):
        files[name] = tmp_path / f"{name}.safetensors"
        result = vectors(rows, second_moment=True, save_state=files[name])
        assert ConeState.load(files[name]).fingerprint() == result.manifest["state_fingerprint"]
    again = vectors(state=files["before"])
    assert again.level == vectors(array).level
    assert again.vectors["name"] == "before"
    # The axis that was asked for needs the vectors themselves.
    assert vectors_of(from_state(files["before"]), axis=2).axis is None
    changed = compare(files["before"], files["after"])
    (row,) = changed.layers
    assert (row.layer, row.token, changed.paired) == ("output", None, True)
    assert row.sentence.significant
    assert row.sentence.a == pytest.approx(plain(array)["anisotropy"], abs=1e-12)
    assert changed.summary()[0].startswith("From before to after the cone opened: the mean cosine of two vectors fell")
    assert changed.to_dict()["layers"][0]["token"] is None
    assert compare(files["before"], files["other"]).paired is False
    found = rotation(state=[files["before"], files["after"]])
    assert found.axis_cosine[0][1] == pytest.approx(1, abs=1e-6)
    assert center(state=files["before"], method="whitening").before.anisotropy == pytest.approx(row.sentence.a)
    assert vectors(array, save_state=tmp_path / "s").state.merge(vectors(array).state).output is not None
    with pytest.raises(ValueError, match="got one of vectors, before, which has no layers"):
        layers(state=files["before"])
    model = tmp_path / "model.safetensors"
    ConeState.empty(range(2), DIM).save(model)
    with pytest.raises(ValueError, match="got one of a model, model; it must be one of vectors"):
        vectors(state=model)
    with pytest.raises(ValueError, match=r"differ in layers \(\[\] and \[0, 1\]\)"):
        compare(files["before"], model)


def test_what_cannot_be_measured_is_refused_with_the_reason(tmp_path: Path) -> None:
    array = cone_of("float32", 40)
    np.save(tmp_path / "v.npy", array)
    np.save(tmp_path / "wide.npy", np.ones((3, DIM + 1), np.float32))
    np.save(tmp_path / "none.npy", np.ones((0, DIM), np.float32))
    cases: list[tuple[type[Exception], str, Any, dict[str, Any]]] = [
        (FileNotFoundError, "there is no file", tmp_path / "nothing.npy", {}),
        (VectorFileError, "is empty; it must have a vector", tmp_path / "none.npy", {}),
        (VectorFileError, "has the width 7, and", [tmp_path / "v.npy", tmp_path / "wide.npy"], {}),
        (VectorFileError, "row 1 has width 2", [[1.0], [1.0, 2.0]], {}),
        (TypeError, "rows: got int", 3, {}),
        (ValueError, "source: got none", None, {}),
        (ValueError, "axis: got 0; it must be at least 1", array, {"axis": 0}),
        (ValueError, "k: got 7; it must be at most 6 for 40 vectors of width 6", array, {"axis": 7}),
        (ValueError, "vectors: got equal vectors; they must vary", np.ones((5, 3), np.float32), {"axis": 1}),
        (ValueError, "limit: got 0", array, {"limit": 0}),
        (ValueError, "threads: got 0", array, {"threads": 0}),
        (ValueError, "field: got a value for vectors given in Python", array, {"field": "x"}),
        (ValueError, "ids, scale: got a value for a Vectors", Vectors.from_rows(array), {"ids": ["a"], "scale": 2.0}),
        (TypeError, "got an iterator with axis 1", iter([array]), {"axis": 1}),
        (TypeError, "they must be in files, as each process", array, {"workers": 2}),
        (ValueError, "shard: got '0/2' without save_state", array, {"shard": "0/2"}),
        (ValueError, "nothing shows whether an iterable gives the same rows", [array], {"checkpoint": tmp_path / "c"}),
        (TypeError, "options: got chunk", array, {"chunk": 3}),
        (ValueError, "state: got one together with source, limit", array, {"state": "x", "limit": 3}),
    ]
    for kind, words, source, options in cases:
        with pytest.raises(kind, match=words.replace("[", r"\[").replace("(", r"\(")):
            vectors(source, **options)


@pytest.mark.parametrize(
    ("name", "kind", "method"),
    [
        ("v.npy", "float32", "mean"),
        ("v.safetensors", "float64", "whitening"),
        ("v.parquet", "float16", "all-but-the-top"),
    ],
)
def test_opened_vectors_are_written_as_the_centering_maps_them(
    tmp_path: Path, name: str, kind: str, method: Any
) -> None:
    array = cone_of(kind, 9000)
    array[5] = np.nan
    np.save(tmp_path / "in.npy", array)
    result = center(vectors=tmp_path / "in.npy", method=method, write=tmp_path / name, output=tmp_path / "c")
    assert result.before.anisotropy == pytest.approx(vectors(array).level.anisotropy)
    assert result.after is not None
    assert (result.after.count, result.before.count) == (8999, 8999)
    opened = Vectors(tmp_path / name)
    assert (opened.rows, opened.kind) == (9000, kind)
    wanted = Centering.load(tmp_path / "c")(torch.from_numpy(array).double()).to(opened.dtype)
    torch.testing.assert_close(opened.read(0, 9000), wanted, rtol=0, atol=0, equal_nan=True)
    level = vectors(opened).level
    assert level.anisotropy == pytest.approx(result.after.anisotropy, abs=1e-5)
    # The row that is left out has its place in the groups, so that rows after it stay in theirs.
    assert level.stderr == pytest.approx(result.after.stderr, rel=1e-3)
    assert abs(result.after.anisotropy) < 0.01 < result.before.anisotropy
    assert "the mean cosine of two vectors from " in result.summary()[0]
    assert result.manifest["written"] == str(tmp_path / name)


def test_bytes_are_opened_as_floats_by_a_state_of_others(tmp_path: Path) -> None:
    vectors(cone_of("uint8", seed=3), scale=0.1, save_state=tmp_path / "s")
    result = center(state=tmp_path / "s", vectors=cone_of("uint8"), scale=0.1, write=tmp_path / "v.npy")
    assert Vectors(tmp_path / "v.npy").kind == "float32"
    assert "fitted on the 1,200 vectors of s" in result.summary()[0]


def test_a_centering_of_vectors_refuses_what_it_does_not_take(tmp_path: Path) -> None:
    array = cone_of("float32", 50)
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, "model, device: got a value together with vectors", {"model": "m", "device": "cpu"}),
        (ValueError, "it must be one, which holds the vectors", {"field": ["a", "b"]}),
        (TypeError, "it must be one that can be read twice", {"vectors": iter([array])}),
        (VectorFileError, "are not written", {"write": tmp_path / "v.jsonl"}),
        (ValueError, "write: got 'v.npy' without vectors", {"vectors": None, "write": "v.npy"}),
        (ValueError, "components: got 9; it must be from 1 to", {"method": "all-but-the-top", "components": 9}),
    ]
    for kind, words, options in cases:
        with pytest.raises(kind, match=words):
            center(**{"vectors": array, **options})
    vectors(np.ones((9, 3), np.float32), save_state=tmp_path / "s")
    with pytest.raises(ValueError, match="state: got width 3; it must be 6, the width of the vectors"):
        center(vectors=array, state=tmp_path / "s")
