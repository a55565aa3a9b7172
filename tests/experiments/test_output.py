"""The model's own output in every experiment: what is said of it is computed from the vectors that `encode` gives."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console
from safetensors.torch import load_file, save_file

from cone_kernels import ConeState, experiments, metrics
from cone_kernels.centering import Centering
from cone_kernels.cli import main
from cone_kernels.experiments.layers_result import LayersResult
from cone_kernels.models import load_model
from cone_kernels.report import fragment
from cone_kernels.runs.runner import run
from cone_kernels.state.file import StateFileError
from cone_kernels.state.poolings import pool
from cone_kernels.terminal.layers import print_layers
from tests.support.encoding_folders import dense, save_tiny_encoder
from tests.support.of_sums import of_sums
from tests.support.tiny_checkpoints import THREE_LENGTHS, WORDS, save_checkpoint

TEXTS = [" ".join(WORDS[(i * 7 + i // 9 + j * 3) % 90] for j in range(THREE_LENGTHS[i % 3])) for i in range(90)]
PROMPT = "w80 w81 "
DENSE = [dense(32, 16), ("Normalize", {})]
OPTIONS: dict[str, Any] = {"threads": 1, "shard_size": 40}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pools by cls, maps to 16 dimensions, normalizes, and has a default prompt."""
    settings = {"prompts": {"say": PROMPT}, "default_prompt_name": "say"}
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny", then=DENSE, settings=settings)


@pytest.fixture(scope="module")
def encoded(folder: Path) -> np.ndarray:
    """(n, 16) float64: what `encode` gives."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(TEXTS, show_progress_bar=False).astype(np.float64)


@pytest.fixture(scope="module")
def layers(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LayersResult:
    state = tmp_path_factory.mktemp("state") / "s"
    return experiments.layers(folder, TEXTS, second_moment=True, save_state=state, **OPTIONS)


def anisotropy(rows: np.ndarray) -> float:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    n = len(rows)
    return float((unit.sum(0) @ unit.sum(0) - n) / (n * (n - 1)))


def test_layers_have_one_more_row(layers: LayersResult, encoded: np.ndarray) -> None:
    data = json.loads(json.dumps(layers.to_dict(), allow_nan=False))
    output = data["output"]
    modules = ["Transformer", "Pooling", "Dense", "Normalize"]
    about = {key: output[key] for key in ("modules", "pooling", "dim", "prompt")}
    assert about == {"modules": modules, "pooling": "cls", "dim": 16, "prompt": PROMPT}
    assert output["sentence"]["anisotropy"] == pytest.approx(anisotropy(encoded), abs=1e-6)
    assert output["sentence"]["count"] == len(TEXTS)
    assert output["sentence"]["mean_norm"] == pytest.approx(1, abs=1e-6)
    assert output["sentence"]["stderr"] > 0
    covariance = np.cov(encoded.T)
    ratio = np.trace(covariance) ** 2 / (covariance**2).sum()
    assert output["geometry"]["participation_ratio"] == pytest.approx(ratio, rel=1e-4)
    contributions = [row["contribution"] for row in output["rogue_dimensions"]]
    unit = encoded / np.linalg.norm(encoded, axis=1, keepdims=True)
    n = len(unit)
    wanted = np.sort((unit.sum(0) ** 2 - (unit**2).sum(0)) / (n * (n - 1)))[::-1][:3]
    np.testing.assert_allclose(contributions, wanted, atol=1e-6)
    assert [row["layer"] for row in data["layers"]] == [0, 1, 2, 3]


def test_it_is_said_first_and_shown_in_the_tables(layers: LayersResult) -> None:
    prompt, first, *_ = layers.summary()
    assert prompt == f"Every sentence was given after the prompt “{PROMPT}”, whose tokens are in all numbers."
    assert first.startswith("What the model itself gives for a sentence (Transformer, Pooling, Dense, Normalize) has")
    assert first.endswith("it pools by the first token, and the layers are pooled by the mean.")
    stream = io.StringIO()
    print_layers(Console(file=stream, width=100), layers)
    shown = [line for line in stream.getvalue().splitlines() if line.startswith("output")]
    assert len(shown) == 2  # levels, geometry
    assert layers.output is not None
    assert layers.output.sentence is not None
    output = layers.output.sentence
    assert f"{output.anisotropy:.4f}" in shown[0]
    assert repr(layers).splitlines()[-1].split() == ["output", f"{output.anisotropy:.4f}", f"{output.stderr:.4f}"]
    words = re.sub("<[^>]*>", "", fragment(layers.to_dict()))
    assert "Transformer, Pooling, Dense and Normalize" in words


def test_a_model_that_embeds_by_the_mean_says_so_shortly(tmp_path: Path) -> None:
    found = experiments.layers(save_tiny_encoder(tmp_path / "mean", "mean"), TEXTS[:20])
    assert found.output is not None
    assert found.output.sentence is not None
    assert found.output.sentence.anisotropy == pytest.approx(found.layers[-1].sentence.anisotropy, abs=1e-6)
    assert "pools by" not in found.summary()[0]


def test_axis_rotation_and_center_take_the_output(folder: Path, encoded: np.ndarray, tmp_path: Path) -> None:
    axis = experiments.axis(folder, TEXTS, **OPTIONS)
    top = np.linalg.eigh(np.cov(encoded.T))[1][:, -1]
    assert (axis.layer, axis.layer_name) == ("output", "Transformer, Pooling, Dense, Normalize")
    assert abs(axis.vectors.centered[0].numpy() @ top) == pytest.approx(1, abs=1e-6)
    assert "the output passes a Dense, which token embeddings do not" in axis.vocabulary["reason"]
    # The vectors have length 1: rounding is no variation that anything goes with.
    assert np.isnan(axis.components[0].correlations["norm"])
    assert axis.summary()[0].startswith("The first axis of the output carries")

    center = experiments.center(folder, TEXTS, output=tmp_path / "c", **OPTIONS)
    assert center.layer == "output"
    assert center.before.anisotropy == pytest.approx(anisotropy(encoded), abs=1e-6)
    assert center.after is not None
    assert center.after.anisotropy == pytest.approx(anisotropy(encoded - encoded.mean(0)), abs=1e-6)
    loaded = Centering.load(tmp_path / "c")
    assert (loaded.layer, loaded.dim) == ("output", 16)
    np.testing.assert_allclose(loaded.mean.numpy(), encoded.mean(0), atol=1e-6)

    rotation = experiments.rotation([folder, folder], TEXTS, layer=["output", -1], **OPTIONS)
    assert [model.layer for model in rotation.models] == ["output", 3]
    assert [model.hidden_size for model in rotation.models] == [16, 32]
    assert experiments.axis(folder, TEXTS, layer=-1, **OPTIONS).layer == 3


def test_lengths_that_rounding_alone_makes_differ_go_with_nothing(folder: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from torch import nn

    # In 16 bits the rounding is too large to be told from a small spread; that the last module normalizes tells it.
    assert np.isnan(experiments.axis(folder, TEXTS, dtype="bfloat16").components[0].correlations["norm"])

    class OnTheSphere(nn.Module):
        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {**features, "sentence_embedding": nn.functional.normalize(features["sentence_embedding"], dim=-1)}

    *modules, _ = SentenceTransformer(str(folder), device="cpu")
    sphere = SentenceTransformer(modules=[*modules, OnTheSphere()], device="cpu")
    assert np.isnan(experiments.axis(sphere, TEXTS).components[0].correlations["norm"])
    flat = SentenceTransformer(modules=modules, device="cpu")
    assert np.isfinite(experiments.axis(flat, TEXTS).components[0].correlations["norm"])


@pytest.mark.usefixtures("undrawn")
def test_all_of_it_in_one_run(folder: Path, tmp_path: Path) -> None:
    found = experiments.run([folder], TEXTS, tmp_path / "out", pooling=["mean", "model"], **OPTIONS)
    data = json.loads((tmp_path / "out" / "results.json").read_text())
    assert data["models"][0]["axis"]["layer"] == "output"
    assert [one["layer"] for one in data["centering"]] == ["output"] * 3
    assert data["models"][0]["layers"]["output"]["sentence"]["count"] == len(TEXTS)
    assert list(found.models[0].pooling.layers[0].poolings) == ["mean", "cls"]
    assert "The axes of the output" in (tmp_path / "out" / "report.html").read_text()


def test_a_state_keeps_the_output(layers: LayersResult, tmp_path: Path) -> None:
    layers.state.save(tmp_path / "s")
    again = ConeState.load(tmp_path / "s")
    assert again.fingerprint() == layers.state.fingerprint()
    assert "output: 16 wide" in repr(again)
    shown = experiments.layers(state=tmp_path / "s")
    assert shown.output is not None
    assert layers.output is not None
    assert of_sums(shown.output.to_dict()) == of_sums(layers.output.to_dict())
    fitted = experiments.center(state=tmp_path / "s", method="whitening", shrinkage=0.2)
    assert (fitted.layer, fitted.centering.dim) == ("output", 16)
    twice = again.merge(again)
    assert twice.output is not None
    assert int(twice.output.count.sum()) == 2 * len(TEXTS)
    assert torch.equal(again.merge(again.emptied()).output.unit_sum, again.output.unit_sum)  # type: ignore[union-attr]


def test_states_of_other_prompts_or_without_the_output_do_not_merge(folder: Path) -> None:
    with_prompt, without = (run(load_model(folder, "cpu", prompt=prompt), TEXTS).state for prompt in (None, ""))
    with pytest.raises(ValueError, match=r"info differ in model"):
        with_prompt.merge(without)
    bare = run(load_model(folder, "cpu"), TEXTS).state
    bare.output = None
    with pytest.raises(ValueError, match="ConeState differ in output"):
        with_prompt.merge(bare)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda header: header["output"].update(level="token"), "output|fields"),
        (lambda header: header["output"].update(layers=[1]), "output has level sentence and layers"),
        (lambda header: header["output"].update(dim=17), "has shape"),
        (lambda header: header.update(pooling="mean"), "pooling is 'mean'; it must be one of"),
        (lambda header: header.update(pooling="median"), "pooling is 'median'; it must be one of"),
    ],
)
def test_a_damaged_output_is_refused(layers: LayersResult, change: Any, words: str) -> None:
    tensors, header = layers.state.file_content()
    header = json.loads(json.dumps(header))
    change(header)
    with pytest.raises(StateFileError, match=words):
        ConeState.restore("s", dict(tensors), header)


@pytest.mark.parametrize(("asked", "pooling"), [("cls", "cls"), ("model", "cls"), ("max", "max"), ("mean", "mean")])
def test_layers_are_pooled_as_asked(folder: Path, asked: str, pooling: str) -> None:
    loaded = load_model(folder, "cpu")
    found = experiments.layers(loaded, TEXTS[:30], pooling=asked)
    vectors: list[list[torch.Tensor]] = [[] for _ in found.layers]
    with torch.inference_mode():
        for text in TEXTS[:30]:
            inputs = loaded.tokenizer(PROMPT + text, return_tensors="pt")
            hidden = loaded.model(**inputs, output_hidden_states=True).hidden_states
            for rows, layer in zip(vectors, hidden, strict=True):
                rows.append(pool(layer, pooling, inputs["attention_mask"]))
    for row, rows in zip(found.layers, vectors, strict=True):
        wanted = anisotropy(torch.cat(rows).double().numpy())
        assert row.sentence.anisotropy == pytest.approx(wanted, abs=1e-6)
    assert found.to_dict()["pooling"] == pooling
    assert found.manifest["options"]["pooling"] == pooling
    assert metrics.anisotropy(found.state.token).isfinite().all()
    again = ConeState.restore("s", *found.state.file_content())
    assert (again.pooling, again.fingerprint()) == (pooling, found.state.fingerprint())


def test_other_poolings_say_nothing_of_averaging(folder: Path) -> None:
    found = experiments.layers(folder, TEXTS, pooling="cls")
    assert not [line for line in found.summary() if "veraging" in line]
    assert found.summary()[1].endswith("± 0.000.")
    with pytest.raises(ValueError, match="state: got one of the pooling 'cls'; it must be of the mean"):
        experiments.pooling(state=found.state)


def test_axis_and_center_by_a_pooling(folder: Path, layers: LayersResult) -> None:
    loaded = load_model(folder)
    centered = experiments.center(loaded, TEXTS, layer=2, pooling="cls")
    of_cls = experiments.layers(loaded, TEXTS, pooling="cls")
    assert centered.before.anisotropy == pytest.approx(of_cls.layers[2].sentence.anisotropy, abs=1e-6)
    assert experiments.axis(loaded, TEXTS, layer=2, pooling="cls").sentences == len(TEXTS)
    with pytest.raises(ValueError, match="state: got one of the pooling 'mean'; it must be 'cls', as what it"):
        experiments.center(loaded, TEXTS, state=layers.state, layer=2, pooling="cls")


def test_a_pooling_of_layers_asks_for_a_layer(folder: Path) -> None:
    assert experiments.axis(folder, TEXTS, pooling="last").layer == 3
    assert experiments.center(folder, TEXTS, pooling="model").layer == 3
    with pytest.raises(ValueError, match="pooling: got 'last' with the layer 'output'; it must be left out"):
        experiments.axis(folder, TEXTS, pooling="last", layer="output")


def test_the_own_pooling_of_a_model_that_pools_by_the_mean_is_the_mean(tmp_path: Path) -> None:
    mean = save_tiny_encoder(tmp_path / "mean", "mean")
    for own, plain in ((experiments.axis, {}), (experiments.center, {"method": "mean"})):
        found, wanted = own(mean, TEXTS, pooling="model", **plain), own(mean, TEXTS, **plain)
        assert (found.layer, found.summary()) == ("output", wanted.summary())


def test_what_is_measured_and_fitted_otherwise_is_refused_or_said(folder: Path, tmp_path: Path) -> None:
    mean = save_tiny_encoder(tmp_path / "mean", "mean", then=DENSE)
    fitted = experiments.layers(folder, TEXTS[:40]).state
    with pytest.raises(ValueError, match=r"state: got one of the output .*pooling cls.*; it must be .*pooling mean"):
        experiments.center(mean, TEXTS, state=fitted)
    without = experiments.center(folder, TEXTS, state=fitted, prompt="")
    assert f"It was fitted with the prompt “{PROMPT}”, and measured without a prompt." in without.summary()
    other = experiments.layers(folder, TEXTS[:40], prompt="").state
    first = experiments.compare(fitted, other).summary()[0]
    assert first.endswith(f"was measured with the prompt “{PROMPT}”, state (2) without a prompt.")


def test_outputs_that_are_left_out_count_as_bad(tmp_path: Path) -> None:
    folder = save_tiny_encoder(tmp_path / "nan", then=[dense(32, 4)])
    weights = load_file(folder / "2_Dense" / "model.safetensors")
    save_file({**weights, "linear.bias": torch.full((4,), torch.nan)}, folder / "2_Dense" / "model.safetensors")
    found = experiments.layers(folder, TEXTS[:9])
    assert (found.corpus["left_out"], found.n_bad) == (9, 9)


def cone(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_flags_of_the_command_line(folder: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(TEXTS))
    shared = ("--model", folder, "--corpus", corpus, "--limit", "20", "--json", "-")
    prompts = {}
    for flags in ((), ("--no-prompt",), ("--prompt", "w9 "), ("--prompt-name", "query")):
        found = json.loads(cone("layers", *shared, *flags).stdout)
        prompts[flags] = found["output"]["prompt"]
    assert list(prompts.values()) == [PROMPT, None, "w9 ", None]
    assert json.loads(cone("layers", *shared, "--truncate-dim", "5").stdout)["output"]["dim"] == 5
    assert json.loads(cone("center", *shared, "--layer", "output").stdout)["layer"] == "output"
    assert json.loads(cone("center", *shared, "--layer", "-1").stdout)["layer"] == 3
    refused = cone("layers", *shared, "--prompt", "a", "--no-prompt")
    assert (refused.exit_code, "--prompt and --no-prompt: give one of them" in refused.output) == (2, True)
    refused = cone("axis", *shared, "--layer", "last")
    assert refused.exit_code == 2
    plain = tmp_path / "plain"
    save_checkpoint(plain)
    refused = cone("axis", "--model", plain, "--corpus", corpus, "--layer", "output")
    assert refused.exit_code == 1
    assert "it must be a number, because it is no folder of sentence-transformers" in refused.output
    refused = cone("layers", "--model", plain, "--corpus", corpus, "--pooling", "model")
    assert refused.exit_code == 1
    assert "because it is no folder of sentence-transformers" in refused.output
