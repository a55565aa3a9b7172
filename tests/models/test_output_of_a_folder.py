"""A model's own output, of folders written by hand around no transformer, in numbers small enough to work out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cone_kernels import Centering
from cone_kernels.models.output import Output, output_of_folder
from cone_kernels.models.source import ModelError, NoOutputError, Source

ST = "sentence_transformers.models."
CENTERED = "cone_kernels.integrations.sentence_transformers.CenteringModule"
MAP = {"linear.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "linear.bias": torch.tensor([0.5, -0.5])}
ROW = torch.tensor([[0.25, -0.5]], dtype=torch.float64)
# Sentences of four tokens and of two, of which nothing is padding's.
HIDDEN = torch.tensor(
    [[[1.0, 9.0], [2.0, 20.0], [4.0, 5.0], [8.0, 1.0]], [[6.0, 1.0], [7.0, 3.0], [99.0, 99.0], [99.0, 99.0]]],
    dtype=torch.float64,
)
MASK = torch.tensor([[True] * 4, [True, True, False, False]])


def write_module(
    folder: Path, name: str, config: Any = None, weights: Mapping[str, Tensor] | None = None, **more: Any
) -> None:
    """A subfolder with a configuration and weights, where they are given; `more` goes into the configuration."""
    inner = folder / name
    inner.mkdir()
    if config is not None or more:
        (inner / "config.json").write_text(json.dumps({**config, **more} if more else config))
    if weights is not None:
        save_file(dict(weights), inner / "model.safetensors")


def no_prompt() -> int:
    raise AssertionError("the prompt is pooled, so its length does not matter")


def output_of(
    folder: Path,
    *modules: tuple[str, str],
    prompt_length: Callable[[], int] = no_prompt,
    like: Tensor = ROW,
    hidden_size: int = 2,
    truncate_dim: int | None = None,
) -> Output:
    """The output of a folder with a Pooling and these modules after it: class and subfolder of each."""
    if not (folder / "1_Pooling").exists():
        write_module(folder, "1_Pooling", {})
    listed = [(f"{ST}Transformer", ""), (f"{ST}Pooling", "1_Pooling"), *modules]
    source = Source(str(folder))
    return output_of_folder(source, listed, like, hidden_size, prompt_length=prompt_length, truncate_dim=truncate_dim)


def made(modes: tuple[str, ...] = ("mean",), **attributes: Any) -> Output:
    return Output(("Transformer", "Pooling"), modes, (), 2 * len(modes), **attributes)


@pytest.mark.parametrize(
    ("mode", "skipped", "wanted"),
    [
        ("mean", 0, [[15 / 4, 35 / 4], [13 / 2, 2]]),
        ("mean", 1, [[14 / 3, 26 / 3], [7, 3]]),
        ("cls", 0, [[1, 9], [6, 1]]),
        ("cls", 1, [[2, 20], [7, 3]]),
        ("lasttoken", 1, [[8, 1], [7, 3]]),
        ("max", 0, [[8, 20], [7, 3]]),
        ("max", 1, [[8, 20], [7, 3]]),
        ("mean_sqrt_len_tokens", 0, [[15 / 2, 35 / 2], [13 / math.sqrt(2), 4 / math.sqrt(2)]]),
        ("mean_sqrt_len_tokens", 1, [[14 / math.sqrt(3), 26 / math.sqrt(3)], [7, 3]]),
        # Weights 1, 2, 3, 4 by place, those of the prompt left out.
        ("weightedmean", 0, [[(1 + 4 + 12 + 32) / 10, (9 + 40 + 15 + 4) / 10], [20 / 3, 7 / 3]]),
        ("weightedmean", 1, [[(4 + 12 + 32) / 9, (40 + 15 + 4) / 9], [7, 3]]),
        ("weightedmean", 2, [[(12 + 32) / 7, (15 + 4) / 7], [math.nan, math.nan]]),
    ],
)
def test_the_pooled_tokens(mode: str, skipped: int, wanted: list[list[float]]) -> None:
    mask = MASK.clone()
    found = made((mode,), skipped=skipped).vectors(HIDDEN, mask)
    np.testing.assert_allclose(found.numpy(), np.array(wanted), rtol=1e-14)
    assert torch.equal(mask, MASK)  # the caller's


def test_several_poolings_stand_side_by_side_and_the_first_dimensions_are_kept() -> None:
    wanted = [[1.0, 9.0, 8.0, 20.0], [6.0, 1.0, 7.0, 3.0]]
    assert made(("cls", "max")).vectors(HIDDEN, MASK).tolist() == wanted
    assert made(("cls", "max"), truncate_dim=3).vectors(HIDDEN, MASK).tolist() == [row[:3] for row in wanted]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_vectors_are_rounded_to_the_type_of_the_model_and_given_in_float32_or_float64(dtype: torch.dtype) -> None:
    """As `encode` rounds them; float16 and the wider ones have the mean as it is."""
    hidden = torch.tensor([[[1.0], [1 + 2**-7]]], dtype=dtype)
    found = Output((), ("mean",), (), 1).vectors(hidden, torch.ones(1, 2, dtype=torch.bool))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.item() == (1 if dtype == torch.bfloat16 else 1 + 2**-8)


@pytest.mark.parametrize(
    ("last", "truncate_dim", "normalized"),
    [
        ("Normalize", None, True),
        ("Normalize", 2, True),
        ("Normalize", 9, True),
        ("Normalize", 1, False),
        ("Dense", None, False),
        ("Dense", 1, False),
    ],
)
def test_vectors_have_length_1_where_normalize_comes_last_and_all_of_them_is_kept(
    last: str, truncate_dim: int | None, normalized: bool
) -> None:
    modules = ("Transformer", "Normalize" if last == "Dense" else "Pooling", last)
    assert Output(modules, ("mean",), (), 2, truncate_dim=truncate_dim).normalized is normalized


@pytest.mark.parametrize(
    ("change", "plain"),
    [
        ({}, True),
        ({"truncate_dim": 2}, True),
        ({"truncate_dim": 1}, False),
        ({"modes": ("max",)}, False),
        ({"modes": ("mean", "max")}, False),
        ({"steps": (nn.Identity(),)}, False),
        ({"skipped": 1}, False),
    ],
)
def test_a_plain_mean_has_nothing_more_to_it(change: dict[str, Any], plain: bool) -> None:
    attributes = {"modules": (), "modes": ("mean",), "steps": (), "full_dim": 2, **change}
    assert Output(**attributes).is_plain_mean is plain


def test_an_output_as_json_data() -> None:
    named = {"modules": ["Transformer", "Pooling"], "pooling": "mean", "dim": 2}
    assert made().to_dict() == named
    assert made(truncate_dim=1).to_dict() == {**named, "dim": 1}
    assert made(truncate_dim=3).to_dict() == named
    assert made(skipped=3).to_dict() == {**named, "include_prompt": False}
    assert made(weights_sha256="ab").to_dict() == {**named, "weights_sha256": "ab"}


def test_as_many_dimensions_as_there_are_can_be_kept() -> None:
    output = made(truncate_dim=9)
    assert [output.truncated(n).dim for n in (1, 2)] == [1, 2]
    for n in (-1, 0, 3):
        with pytest.raises(ModelError) as refused:
            output.truncated(n)
        assert str(refused.value) == f"truncate_dim: got {n}; it must be from 1 to 2, the whole width"


OLD = ["cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]


@pytest.mark.parametrize(
    ("config", "modes", "pooling"),
    [
        ({}, ("mean",), "mean"),
        ({"pooling_mode": "lasttoken", "pooling_mode_cls_token": True}, ("lasttoken",), "last"),
        ({"pooling_mode": ["max", "weightedmean"]}, ("max", "weightedmean"), "max+weighted_mean"),
        (
            {f"pooling_mode_{key}": True for key in reversed(OLD)},
            ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"),
            "cls+max+mean+mean_sqrt_len_tokens+weighted_mean+last",
        ),
        *(
            ({f"pooling_mode_{other}": other == key for other in OLD}, (mode,), pooling)
            for key, mode, pooling in zip(
                OLD,
                ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"],
                ["cls", "max", "mean", "mean_sqrt_len_tokens", "weighted_mean", "last"],
                strict=True,
            )
        ),
    ],
)
def test_how_a_folder_pools(tmp_path: Path, config: dict[str, Any], modes: tuple[str, ...], pooling: str) -> None:
    write_module(tmp_path, "1_Pooling", config)
    output = output_of(tmp_path, truncate_dim=1)
    assert (output.modules, output.modes, output.pooling) == (("Transformer", "Pooling"), modes, pooling)
    assert (output.full_dim, output.dim, output.skipped, output.weights_sha256) == (2 * len(modes), 1, 0, None)


@pytest.mark.parametrize(("include_prompt", "skipped"), [(None, 0), (True, 0), (False, 3)])
def test_the_length_of_the_prompt_is_asked_for_where_it_is_not_pooled(
    tmp_path: Path, include_prompt: bool | None, skipped: int
) -> None:
    write_module(tmp_path, "1_Pooling", {} if include_prompt is None else {"include_prompt": include_prompt})
    assert output_of(tmp_path, prompt_length=no_prompt if skipped == 0 else lambda: 3).skipped == skipped


@pytest.mark.parametrize(
    ("config", "weights", "wanted"),
    [
        # tanh(W x + b), where the configuration says no more than the widths.
        ({}, MAP, [[math.tanh(0.25 - 1 + 0.5), math.tanh(0.75 - 2 - 0.5)]]),
        ({"activation_function": "torch.nn.modules.linear.Identity"}, MAP, [[-0.25, -1.75]]),
        (
            {"activation_function": "torch.nn.modules.linear.Identity", "bias": False},
            {"linear.weight": MAP["linear.weight"]},
            [[-0.75, -1.25]],
        ),
        ({"activation_function": "torch.nn.ReLU", "use_residual": True}, MAP, [[0.25, -0.5]]),
        (
            {"out_features": 1},
            {"linear.weight": torch.tensor([[4.0, 1.0]]), "linear.bias": torch.tensor([1.0])},
            [[math.tanh(1.5)]],
        ),
        (
            {"activation_function": "torch.nn.ReLU", "use_residual": True, "out_features": 1},
            {
                "linear.weight": torch.tensor([[4.0, 0.0]]),
                "linear.bias": torch.tensor([1.0]),
                "residual.weight": torch.tensor([[8.0, 2.0]]),
            },
            [[2.0 + 2.0 - 1.0]],
        ),
    ],
)
def test_a_dense_is_an_activation_of_a_linear_map(
    tmp_path: Path, config: dict[str, Any], weights: dict[str, Tensor], wanted: list[list[float]]
) -> None:
    write_module(tmp_path, "2_Dense", {"in_features": 2, "out_features": 2, **config}, weights)
    output = output_of(tmp_path, (f"{ST}Dense", "2_Dense"))
    (step,) = output.steps
    assert not step.training
    np.testing.assert_allclose(step(ROW).detach().numpy(), wanted, rtol=1e-6)
    assert output.full_dim == len(wanted[0])


def test_modules_follow_one_another_in_the_type_of_the_model(tmp_path: Path) -> None:
    norm = {"norm.weight": torch.tensor([2.0, 4.0]), "norm.bias": torch.tensor([1.0, 0.0])}
    write_module(tmp_path, "2_Dense", {"in_features": 2, "out_features": 2}, MAP, activation_function="torch.nn.ReLU")
    write_module(tmp_path, "3_Dropout")
    write_module(tmp_path, "4_LayerNorm", {"dimension": 2}, norm)
    write_module(tmp_path, "5_Normalize")
    kinds = ("Dense", "Dropout", "LayerNorm", "Normalize")
    output = output_of(tmp_path, *((f"{ST}{kind}", f"{at}_{kind}") for at, kind in enumerate(kinds, 2)))
    assert output.modules == ("Transformer", "Pooling", *kinds)
    files = [tmp_path / name / "model.safetensors" for name in ("2_Dense", "4_LayerNorm")]
    assert output.weights_sha256 == hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    assert {weight.dtype for step in output.steps for weight in step.parameters()} == {torch.float64}
    # W (1, 1) + b = (3.5, 6.5), of which LayerNorm makes (-1, 1) but for its 1e-5 beside the variance of 2.25.
    side = 1.5 / math.sqrt(2.25 + 1e-5)
    normed = np.array([1 - 2 * side, 4 * side])
    found = output.vectors(torch.ones(1, 1, 2, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool))
    np.testing.assert_allclose(found.detach().numpy(), [normed / np.linalg.norm(normed)], rtol=1e-7)


def test_a_centering_is_applied(tmp_path: Path) -> None:
    write_module(tmp_path, "2_Centering")
    centering = Centering.fit(torch.tensor([[3.0, 1.0], [5.0, 2.0]]))
    centering.save(tmp_path / "2_Centering" / "centering.safetensors")
    output = output_of(tmp_path, (CENTERED, "2_Centering"))
    assert output.steps[0](ROW).tolist() == [[0.25 - 4, -0.5 - 1.5]]
    assert (output.modules[-1], output.full_dim) == ("CenteringModule", 2)
    with pytest.raises(ModelError, match=r"^model: 2_Centering of .* does not take vectors 3 wide$") as refused:
        output_of(tmp_path, (CENTERED, "2_Centering"), hidden_size=3)
    assert type(refused.value) is ModelError
    (tmp_path / "2_Centering" / "centering.safetensors").unlink()
    with pytest.raises(ModelError) as refused:
        output_of(tmp_path, (CENTERED, "2_Centering"))
    assert str(refused.value) == f"model: 2_Centering of {tmp_path} has no centering.safetensors"


def test_a_table_of_tokens_has_no_pooling_of_its_own(tmp_path: Path) -> None:
    listed = [(f"{ST}StaticEmbedding", ""), (f"{ST}Normalize", "1_Normalize")]
    output = output_of_folder(
        Source(str(tmp_path)), listed, ROW, 2, static=True, prompt_length=no_prompt, truncate_dim=None
    )
    assert (output.modes, output.skipped, output.full_dim, len(output.steps)) == (("mean",), 0, 2, 1)


@pytest.mark.parametrize("after", [[], [f"{ST}Normalize"], [f"{ST}Normalize", f"{ST}Pooling"], ["custom.Pooling"]])
def test_what_follows_the_transformer_must_be_a_pooling(tmp_path: Path, after: list[str]) -> None:
    listed = [(kind, "") for kind in (f"{ST}Transformer", *after)]
    with pytest.raises(NoOutputError) as unknown:
        output_of_folder(Source(str(tmp_path)), listed, ROW, 2, prompt_length=no_prompt, truncate_dim=None)
    followed = f"its {after[0].rpartition('.')[2]}" if after else "nothing"
    assert str(unknown.value) == f"{followed} follows the transformer, where this tool knows a Pooling alone"


def test_weights_in_a_bin_are_tensors_alone(tmp_path: Path) -> None:
    """What pickle could run is not run."""
    write_module(tmp_path, "2", {"in_features": 2, "out_features": 2})
    torch.save(MAP, tmp_path / "2" / "pytorch_model.bin")
    (step,) = output_of(tmp_path, (f"{ST}Dense", "2")).steps
    assert torch.equal(step.linear.weight.double(), MAP["linear.weight"].double())
    torch.save({**MAP, "more": Path("any object")}, tmp_path / "2" / "pytorch_model.bin")
    with pytest.raises(NoOutputError, match=r"^its module 2 cannot be made: UnpicklingError: "):
        output_of(tmp_path, (f"{ST}Dense", "2"))


@pytest.mark.parametrize(
    ("kind", "config", "weights", "why"),
    [
        ("Dense", None, None, "model: 2/config.json of FOLDER is missing, or no object"),
        ("Dense", [1], None, "model: 2/config.json of FOLDER is missing, or no object"),
        (
            "Dense",
            {"in_features": 2, "out_features": 2},
            {"linear.weight": MAP["linear.weight"], "more": torch.ones(1)},
            'model: the weights of 2 in FOLDER do not fit: Unexpected key(s) in state_dict: "more".',
        ),
        (
            "Dense",
            {"in_features": 3, "out_features": 2},
            {"linear.weight": torch.ones(2, 3), "linear.bias": torch.ones(2)},
            "model: 2 of FOLDER does not take vectors 2 wide",
        ),
        (
            "LayerNorm",
            {"dimension": 3},
            {"norm.weight": torch.ones(3), "norm.bias": torch.ones(3)},
            "model: 2 of FOLDER does not take vectors 2 wide",
        ),
    ],
)
def test_modules_that_are_damaged_are_refused(
    tmp_path: Path, kind: str, config: Any, weights: dict[str, Tensor] | None, why: str
) -> None:
    write_module(tmp_path, "2", config, weights)
    with pytest.raises(ModelError) as refused:
        output_of(tmp_path, (f"{ST}{kind}", "2"))
    assert type(refused.value) is ModelError
    assert str(refused.value) == why.replace("FOLDER", str(tmp_path))


NO_MODULE = "its Dense has the activation {}, which is no module of torch.nn"


@pytest.mark.parametrize(
    ("kind", "config", "why"),
    [
        ("custom.Normalize", None, "this tool does not know its module custom.Normalize"),
        (f"{ST}CNN", None, f"this tool does not know its module {ST}CNN"),
        (f"{ST}Dense", {"in_features": 2}, "its module 2 cannot be made: KeyError: 'out_features'"),
        (f"{ST}LayerNorm", {}, "its module 2 cannot be made: KeyError: 'dimension'"),
        *(
            (f"{ST}Dense", {"in_features": 2, "out_features": 2, "activation_function": name}, NO_MODULE.format(name))
            for name in ("torch.nn.functional.relu", "torch.nn.Parameter", "torch.nn.Tahn", "torch.relu", "math.inf")
        ),
        *(
            (
                f"{ST}{kind}",
                {key: "token_embeddings"},
                f"its module 2 has {key} 'token_embeddings', where this tool knows sentence_embedding",
            )
            for kind in ("Dense", "Normalize")
            for key in ("module_input_name", "module_output_name")
        ),
    ],
)
def test_modules_that_are_not_known_leave_the_model_without_an_output(
    tmp_path: Path, kind: str, config: Any, why: str
) -> None:
    write_module(tmp_path, "2", config)
    with pytest.raises(NoOutputError) as unknown:
        output_of(tmp_path, (kind, "2"))
    assert str(unknown.value) == why


@pytest.mark.parametrize("name", ["sentence_embedding", None])
def test_modules_of_the_sentence_vectors_may_say_so(tmp_path: Path, name: str | None) -> None:
    write_module(tmp_path, "2", {"module_input_name": name, "module_output_name": name})
    output = output_of(tmp_path, (f"{ST}Normalize", "2"))
    np.testing.assert_allclose(output.steps[0](8 * ROW).numpy(), ROW / math.hypot(0.25, 0.5), rtol=1e-12)


@pytest.mark.parametrize(
    ("config", "kind", "why"),
    [
        ("missing", NoOutputError, "its 1_Pooling/config.json, which says how it pools, is missing"),
        ([1], ModelError, "model: 1_Pooling/config.json of FOLDER is missing, or no object"),
        (
            {"pooling_mode": ["median", "mean", "mode"]},
            NoOutputError,
            "this tool does not know its pooling median, mode",
        ),
    ],
)
def test_a_pooling_that_is_not_known(tmp_path: Path, config: Any, kind: type[ModelError], why: str) -> None:
    write_module(tmp_path, "1_Pooling", None if config == "missing" else config)
    with pytest.raises(ModelError) as raised:
        output_of(tmp_path)
    assert type(raised.value) is kind
    assert str(raised.value) == why.replace("FOLDER", str(tmp_path))
