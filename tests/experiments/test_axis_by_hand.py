"""What `axis` refuses before a model is loaded, and its parts on vectors that are known."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cone_kernels import ConeState
from cone_kernels.experiments.axis import _mapped, _reasons, _vectors, axis, axis_of
from cone_kernels.experiments.axis_vectors import AxisVectors
from cone_kernels.experiments.solved_axes import solved_axes
from cone_kernels.runs.measurement import from_state
from cone_kernels.state import file as state_file
from cone_kernels.state.file import StateFileError
from tests.experiments.test_axis_result import NOTHING, component
from tests.support.moment_cases import normal
from tests.test_centering import moments_of


@pytest.mark.parametrize("name", ["k", "top", "tokens"])
def test_counts_are_whole_numbers_from_one(name: str) -> None:
    """Of `axis` before it looks for the model, and of `axis_of` before it looks at the measurement."""
    nothing: Any = from_state(ConeState.empty([0], 6))
    for refused in (lambda given: axis("no such model", ["w5"], **given), lambda given: axis_of(nothing, **given)):
        with pytest.raises(ValueError, match=f"^{name}: got 0; it must be at least 1$"):
            refused({name: 0})
        with pytest.raises(TypeError, match=f"^{name}: "):
            refused({name: 1.5})


def test_what_axis_does_not_take_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match="corpus: got images; it must be texts for what lies along an axis"):
        axis("no such model", image)
    with pytest.raises(ValueError, match="save_vectors: got 's3://a/b'; it must be a path of this machine"):
        axis("no such model", ["w5"], save_vectors="s3://a/b")
    with pytest.raises(
        TypeError, match="corpus: got a list_iterator, which can be read once; it must be one that axis"
    ):
        axis("no such model", iter(["w5"]))
    state: Any = ConeState.empty([0], 6)
    with pytest.raises(TypeError, match="model: got a ConeState; it must be a model, for a state has neither sentence"):
        axis(state, ["w5"])


@pytest.mark.parametrize("missing", ["load", "sentences"])
def test_a_measurement_of_a_model_has_a_model_and_its_sentences(missing: str) -> None:
    found: Any = SimpleNamespace(load=1, sentences=1, layer=lambda layer: 0, kept_vectors=lambda layer: None)
    setattr(found, missing, None)
    with pytest.raises(ValueError, match="measurement: got one of a saved state; it must be of a model and a corpus"):
        axis_of(found)


@pytest.mark.parametrize("name", list(NOTHING))
def test_the_first_axis_tells_which_correlations_are_not_defined(name: str) -> None:
    defined = dict.fromkeys(NOTHING, 0.5)
    (said,) = _reasons([component(correlations={**defined, name: math.nan}), component()])
    assert said.startswith(f"the correlation with {name} is not defined: the ")
    assert said.endswith(" does not vary")
    assert list(_reasons([component(correlations=defined), component()])) == []


def test_only_the_output_passes_modules_that_embeddings_do_not() -> None:
    modules = ("Transformer", "Pooling", "Dense", "Normalize", "LayerNorm")
    loaded: Any = SimpleNamespace(output=SimpleNamespace(modules=modules))
    assert _mapped(loaded, "output") == ["Dense", "LayerNorm"]
    assert _mapped(loaded, 3) == []
    none: Any = SimpleNamespace(output=None)
    assert _mapped(none, "output") == []


def test_a_mean_of_zero_has_a_direction_of_zeros() -> None:
    half = torch.round(4 * normal(20, 4, dtype=torch.float64, shift=0))
    about: Any = SimpleNamespace(
        model={"name": "m", "architecture": "A", "weights_sha256": "0f", "other": 1},
        corpus={"sentences": 40, "fingerprint": "ab"},
    )
    solved = solved_axes(moments_of(torch.cat([half, -half])), 2, "corpus", "vectors")
    found = _vectors(about, solved, {"layer": 3})
    assert found.mean_direction.tolist() == [0.0] * 4
    assert found.info == {
        "model": {"name": "m", "architecture": "A", "weights_sha256": "0f"},
        "layer": 3,
        "sentences": 40,
        "corpus_fingerprint": "ab",
    }


def test_a_file_of_axes_has_each_tensor_in_its_shape(tmp_path: Path) -> None:
    d, file = torch.zeros(6, dtype=torch.float64), tmp_path / "axis.safetensors"
    whole = {"centered": torch.zeros(2, 6).double(), "eigenvalues": torch.zeros(2).double(), "mean": d}
    whole |= {"mean_direction": d + 1, "uncentered": d + 2}
    info: Any = {"layer": 1}
    assert AxisVectors(**whole, info=info).save(file)
    found = AxisVectors.load(file)
    assert (found.info, found.uncentered.tolist()) == (info, [2.0] * 6)
    without = {name: tensor for name, tensor in whole.items() if name != "mean"}
    for tensors, header, words in (
        (without, info, r"has tensors \['centered', 'eigenvalues', 'mean_direction', 'uncentered'\]; it must have"),
        (whole, [1], "has tensors"),
        ({**whole, "centered": d + 3}, info, r"centered has shape \(6,\); it must be \(k, d\)"),
        ({**whole, "eigenvalues": d + 3}, info, r"eigenvalues has shape \(6,\)"),
        ({**whole, "uncentered": d[:2] + 3}, info, r"uncentered has shape \(2,\)"),
        ({**whole, "mean": d.float()}, info, "mean"),
    ):
        state_file.write(file, tensors, {"axis": header})
        with pytest.raises(StateFileError, match=words):
            AxisVectors.load(file)
