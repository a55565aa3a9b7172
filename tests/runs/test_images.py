"""A folder of images as a corpus: what a model of images makes of it, against NumPy in float64, and what is refused."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import peft
import pytest
import torch
import transformers
from click.testing import CliRunner
from PIL import Image
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from cone_kernels import experiments
from cone_kernels.cli import main
from cone_kernels.corpora import Corpus, CorpusError
from cone_kernels.experiments.without_rogue import of_sentences
from cone_kernels.models import ModelError, load_model
from cone_kernels.models.images import ImageError
from cone_kernels.models.loading import load_image_model
from cone_kernels.runs.measure import measure
from cone_kernels.runs.runner import SHARD_IMAGES, run
from tests.support.tiny_checkpoints import save_checkpoint, word_tokenizer
from tests.support.tiny_encoders import LAYERS, SIDE, tiny_encoder

COUNT = 23

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of models with their processor, and `photos`, with pictures in a folder below and one that is hidden."""
    found = tmp_path_factory.mktemp("images")
    sizes: dict[str, Any] = {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": False}
    for name in ("dinov2-registers", "clip"):
        tiny_encoder(name).save_pretrained(found / name)
        transformers.CLIPImageProcessorPil(**sizes).save_pretrained(found / name)
    (found / "photos" / "below").mkdir(parents=True)
    random = np.random.default_rng(0)
    for at in range(COUNT):
        name = f"below/{at:02}.JPG" if at % 5 == 0 else f"{at:02}.png"
        Image.fromarray(random.integers(0, 255, (20 + at, 30, 3), dtype=np.uint8)).save(found / "photos" / name)
    (found / "photos" / ".hidden.png").write_bytes(b"")
    return found


@functools.cache
def hidden_states(folder: Path, photos: Path) -> list[np.ndarray]:
    """Of each layer (n, T, D) float64, the images in the order of their paths."""
    model: Any = transformers.AutoModel.from_pretrained(folder)
    tower = model.vision_model if hasattr(model, "text_model") else model
    files = sorted(path for path in photos.rglob("[0-9]*"))
    opened = [Image.open(path).convert("RGB") for path in files]
    pixels = AutoImageProcessor.from_pretrained(folder)(opened, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        states = tower(pixels, output_hidden_states=True).hidden_states
    return [state.double().numpy() for state in states]


def mean_cosine(rows: np.ndarray) -> float:
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return float(((units @ units.T).sum() - len(rows)) / (len(rows) * (len(rows) - 1)))


@pytest.mark.parametrize("name", ["dinov2-registers", "clip"])
def test_every_layer_is_that_of_plain_arithmetic(name: str, root: Path) -> None:
    result = experiments.layers(root / name, root / "photos", device="cpu", threads=1)
    wanted = hidden_states(root / name, root / "photos")
    assert len(result.layers) == len(wanted) == LAYERS + 1
    for layer, hidden in zip(result.layers, wanted, strict=True):
        assert (layer.sentence.count, layer.token.count) == (COUNT, hidden.shape[0] * hidden.shape[1])
        assert abs(layer.sentence.anisotropy - mean_cosine(hidden.mean(1))) < 1e-6
        assert abs(layer.token.anisotropy - mean_cosine(np.concatenate(hidden))) < 1e-6
    assert result.model["architecture"] == {"clip": "CLIPVisionModel"}.get(name, "Dinov2WithRegistersModel")
    assert result.corpus["tokens"] == result.layers[0].token.count
    pooled = experiments.layers(root / name, root / "photos", pooling="mean_without_special", device="cpu", threads=1)
    patches = wanted[-1][:, 1 if name == "clip" else 4 :]
    assert patches.shape[1] == 16
    assert abs(pooled.layers[-1].sentence.anisotropy - mean_cosine(patches.mean(1))) < 1e-6


def test_what_is_left_without_dimensions_is_of_the_same_images(root: Path) -> None:
    measured = measure(root / "clip", root / "photos", device="cpu", threads=1)
    hidden = hidden_states(root / "clip", root / "photos")
    out = {1: [0, 5], LAYERS: [3]}
    for layer, found in of_sentences(measured, out, {"threads": 1}).items():
        assert found.count == COUNT
        assert abs(found.value - mean_cosine(np.delete(hidden[int(layer)].mean(1), out[int(layer)], axis=1))) < 1e-6


def test_vectors_are_kept_and_cuts_do_not_show(root: Path) -> None:
    loaded = load_image_model(root / "dinov2-registers", "cpu")
    assert SHARD_IMAGES == 256
    whole = run(loaded, Corpus(root / "photos"), keep_vectors=[-1], threads=1, batch_size=4, shard_size=8)
    wanted = hidden_states(root / "dinov2-registers", root / "photos")[-1].mean(1)
    kept = next(iter(whole.vectors.values())).read(0, COUNT).double().numpy()
    assert np.abs(kept - wanted).max() < 1e-5
    again = run(loaded, Corpus(str(root / "photos")), threads=1, batch_size=4, shard_size=8)
    assert again.state.fingerprint() == whole.state.fingerprint()
    assert whole.batches == 6
    found = run(loaded, Corpus(root / "photos", limit=5), token_budget="auto", threads=1)
    assert (found.sentences, found.batches) == (5, 1)


def test_a_folder_of_texts_and_images_is_one_of_texts(root: Path, tmp_path: Path) -> None:
    corpus = Corpus(root / "photos")
    assert corpus.of_images
    assert [Path(path).name for path in corpus][:6] == ["01.png", "02.png", "03.png", "04.png", "06.png", "07.png"]
    (tmp_path / "a.txt").write_text("A text.")
    (tmp_path / "b.png").write_bytes((root / "photos" / "01.png").read_bytes())
    assert not Corpus(tmp_path).of_images
    assert list(Corpus(tmp_path)) == ["A text."]
    assert Corpus(tmp_path / "*.png").of_images
    with pytest.raises(CorpusError, match="has images and texts; it must be of one kind"):
        Corpus([tmp_path / "a.txt", tmp_path / "b.png"])
    (tmp_path / "c.png").write_bytes(b"text")
    with pytest.raises(CorpusError, match=r"c\.png does not begin as an image does"):
        Corpus(tmp_path / "c.png")


def test_what_does_not_go_together_is_refused(root: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "bert")
    for folder, corpus, error, said in (
        (tmp_path / "bert", root / "photos", ModelError, "is a BertModel, which takes no images"),
        (root / "dinov2-registers", ["A text."], ModelError, "has no tokenizer, as models of images and sounds"),
        (load_image_model(root / "clip"), ["A text."], ValueError, "corpus: got texts for a model of images"),
        (
            load_model(tmp_path / "bert"),
            root / "photos",
            ValueError,
            "corpus: got images for a model of texts; it must",
        ),
    ):
        with pytest.raises(error, match=said):
            experiments.layers(folder, corpus)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prompt: got 'x' with a corpus of images; it must be left out"):
        experiments.layers(root / "clip", root / "photos", prompt="x")
    with pytest.raises(ValueError, match="baseline: got 'shuffled-tokens' for a model of images"):
        experiments.layers(root / "clip", root / "photos", baseline="shuffled-tokens")
    with pytest.raises(ValueError, match="corpus: got images; it must be texts for what lies along an axis"):
        experiments.axis(root / "clip", root / "photos")
    with pytest.raises(ValueError, match="corpus: got images; it must be texts for what lies along an axis"):
        experiments.run([root / "clip"], root / "photos", out=tmp_path / "out")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cut.png").write_bytes((root / "photos" / "01.png").read_bytes()[:200])
    with pytest.raises(ValueError, match="corpus: got images; it must be texts, whose tokens can be told apart"):
        experiments.tokens(root / "clip", root / "photos")
    with pytest.raises(ImageError, match=r"images: .*cut\.png cannot be read as an image"):
        experiments.layers(root / "clip", tmp_path / "photos")


def live(root: Path, name: str) -> tuple[Any, Any]:
    """A model in memory in training mode, and its image processor."""
    model = transformers.AutoModel.from_pretrained(root / name).train()
    return model, AutoImageProcessor.from_pretrained(root / name)


@pytest.mark.parametrize("name", ["dinov2-registers", "clip"])
def test_a_model_in_memory_gives_what_its_folder_gives(name: str, root: Path) -> None:
    model, processor = live(root, name)
    threads: dict[str, Any] = {"threads": 1}
    wanted = experiments.layers(root / name, root / "photos", device="cpu", second_moment=True, **threads)
    got = experiments.layers(model, root / "photos", processor=processor, second_moment=True, **threads)
    assert got.layers == wanted.layers
    assert got.corpus["fingerprint"] == wanted.corpus["fingerprint"]
    assert got.model["architecture"] == wanted.model["architecture"]
    pooled = experiments.pooling(model, root / "photos", processor=processor, pooling=["cls"], **threads)
    first = hidden_states(root / name, root / "photos")[-1][:, 0]
    assert abs(pooled.layers[-1].poolings["cls"].anisotropy - mean_cosine(first)) < 1e-6
    assert all(part.training for part in model.modules())


def test_a_model_of_images_with_an_adapter_is_measured_with_it(root: Path) -> None:
    model, processor = live(root, "dinov2-registers")
    options: dict[str, Any] = {"processor": processor, "threads": 1}
    plain = experiments.layers(model, root / "photos", **options)
    lora = peft.LoraConfig(target_modules=["query", "value", "q_proj", "v_proj"], r=2, init_lora_weights=False)
    tuned = peft.get_peft_model(model, lora)
    found = experiments.layers(tuned, root / "photos", **options)
    merged = experiments.layers(tuned.merge_and_unload(), root / "photos", **options)
    assert found.layers[-1].sentence.anisotropy == pytest.approx(merged.layers[-1].sentence.anisotropy, abs=1e-6)
    assert abs(found.layers[-1].sentence.anisotropy - plain.layers[-1].sentence.anisotropy) > 1e-4


def test_a_processor_of_both_is_taken_and_models_are_compared(root: Path, tmp_path: Path) -> None:
    model, processor = live(root, "clip")
    both = SimpleNamespace(image_processor=processor, tokenizer=None)
    options: dict[str, Any] = {"processor": both, "threads": 1}
    other = transformers.CLIPModel(model.config)
    rotated = experiments.rotation([model, other], root / "photos", k=1, **options)
    by_path = experiments.rotation([root / "clip", root / "clip"], root / "photos", k=1, device="cpu", threads=1)
    assert rotated.models[0].level == by_path.models[0].level
    centred = experiments.center(model, root / "photos", output=tmp_path / "centering.safetensors", **options)
    vectors = hidden_states(root / "clip", root / "photos")[-1].mean(1)
    assert abs(centred.after.anisotropy - mean_cosine(vectors - vectors.mean(0))) < 1e-5


@pytest.fixture(scope="module")
def pictures(root: Path) -> list[Image.Image]:
    """The photos as images of PIL, in the order of their paths."""
    return [Image.open(path).convert("RGB") for path in Corpus(root / "photos")]


def test_a_data_set_and_a_list_of_images_are_a_corpus(root: Path, pictures: list[Image.Image]) -> None:
    model, processor = live(root, "clip")
    wanted = experiments.layers(root / "clip", root / "photos", device="cpu", threads=1)
    rows = datasets.Dataset.from_dict({"label": [0] * COUNT, "photo": pictures})
    options: dict[str, Any] = {"processor": processor, "threads": 1}
    of_rows = experiments.layers(model, rows, **options)
    assert of_rows.layers == wanted.layers
    fingerprint, name = of_rows.corpus["fingerprint"], of_rows.corpus["name"]
    # Equal images are one sentence, in whatever mode and record they are.
    several: list[Any] = [*pictures, pictures[3].copy(), pictures[0].convert("RGBA")]
    of_list = experiments.layers(model, several, **options)
    assert of_list.layers == wanted.layers
    assert (of_list.corpus["fingerprint"], of_list.corpus["duplicates"], name) == (fingerprint, 2, "<images>")
    assert of_rows.corpus["duplicates"] == 0
    two = [{"a": one, "b": other} for one, other in zip(pictures, reversed(pictures), strict=True)]
    backwards = experiments.layers(model, two, field="b", limit=5, **options)
    last = hidden_states(root / "clip", root / "photos")[-1].mean(1)
    assert abs(backwards.layers[-1].sentence.anisotropy - mean_cosine(last[-5:])) < 1e-6


def test_images_in_memory_are_run_once_more_and_drawn(root: Path, pictures: list[Image.Image]) -> None:
    model, processor = live(root, "clip")
    options: dict[str, Any] = {"processor": processor, "threads": 1}
    measured = measure(model, pictures, shuffle=True, **options)
    hidden = hidden_states(root / "clip", root / "photos")
    found = of_sentences(measured, {1: [0, 5]}, options)[1]
    assert found.count == COUNT
    assert abs(found.value - mean_cosine(np.delete(hidden[1].mean(1), [0, 5], axis=1))) < 1e-6
    drawn = measure(model, pictures, sample=9, keep_vectors=[-1], **options)
    kept = next(iter(drawn.vectors.values())).read(0, 9).numpy()
    near = np.abs(hidden[-1].mean(1)[:, None] - kept).max(-1).argmin(0)
    assert len(set(near.tolist())) == 9
    assert near.tolist() == sorted(near.tolist())


def test_what_is_no_image_in_memory_is_refused(root: Path, pictures: list[Image.Image]) -> None:
    processor = live(root, "clip")[1]
    model = transformers.CLIPModel.from_pretrained(root / "clip")
    cut = io.BytesIO((root / "photos" / "01.png").read_bytes()[:300])
    both = [{"a": pictures[0], "b": pictures[1]}]
    with_text = [{"text": "A text.", "image": pictures[0]}]
    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        ([pictures[0], "A text."], {}, CorpusError, r"images\[1\] is a str; it must be an image of PIL"),
        ([{"i": pictures[0]}, {"i": None}], {}, CorpusError, r"images\[1\]\['i'\] is a NoneType; it must be an image"),
        ([pictures[0], Image.open(cut)], {}, CorpusError, r"images\[1\] cannot be read as an image"),
        (both, {}, CorpusError, "the first record has images in 'a', 'b'; name one as the field"),
        (with_text, {}, ValueError, "processor: got a .* with a corpus that is not of images"),
        (pictures, {"group_by": "scene"}, ValueError, "group_by: got 'scene' with images given in Python"),
        (iter(pictures), {}, ValueError, "processor: got a .* with a corpus that is not of images"),
    ]
    for corpus, options, error, said in cases:
        with pytest.raises(error, match=said):
            experiments.layers(model, corpus, processor=processor, **options)
    with pytest.raises(ValueError, match="corpus: got images; it must be texts for what lies along an axis"):
        experiments.axis(model, pictures, processor=processor)


def test_what_a_model_in_memory_cannot_take_is_refused(root: Path, tmp_path: Path) -> None:
    model, processor = live(root, "dinov2-registers")
    save_checkpoint(tmp_path / "bert")
    bert, tokenizer = transformers.BertModel.from_pretrained(tmp_path / "bert"), word_tokenizer()
    photos = root / "photos"

    class SentenceTransformer(torch.nn.Sequential):
        """Known by its name."""

    cases: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
        (model, photos, {}, ModelError, "processor: got none; it must be given with a model of images that is in"),
        (model, photos, {"processor": tokenizer}, ModelError, "processor: got a .*; it must be the image processor"),
        (model, photos, {"processor": 7}, ModelError, "processor: got a int; it must be the image processor"),
        (bert, photos, {"processor": processor}, ModelError, "is a BertModel, which takes no images; the corpus has"),
        (bert, photos, {"tokenizer": tokenizer}, ValueError, "tokenizer: got a .* with a corpus of images; it must be"),
        (
            bert,
            ["A text."],
            {"processor": processor},
            ValueError,
            "processor: got a .* with a corpus that is not of images",
        ),
        (SentenceTransformer(), photos, {}, ModelError, "model: got a SentenceTransformer with a corpus of images"),
        (torch.nn.Linear(2, 2), photos, {"processor": processor}, TypeError, "model: got Linear; it must be a folder"),
        (root / "clip", photos, {"processor": processor}, ValueError, "processor: got a .* with a folder or a hub id"),
        (model, photos, {"processor": processor, "dtype": "float64"}, ValueError, "dtype: got 'float64' with a model"),
        (model, photos, {"processor": processor, "workers": 2}, TypeError, "model"),
    ]
    for given, corpus, options, error, said in cases:
        with pytest.raises(error, match=said):
            experiments.layers(given, corpus, **options)


def test_commands_take_a_folder_of_images(root: Path, tmp_path: Path) -> None:
    given = ["--corpus", str(root / "photos"), "--device", "cpu", "--threads", "1"]

    def cone(*arguments: str | Path) -> str:
        result = CliRunner().invoke(main, [*map(str, arguments), *given])
        assert result.exit_code == 0, result.output
        return result.output

    model = root / "dinov2-registers"
    cone("layers", "--model", model, "--json", tmp_path / "layers.json")
    layers = json.loads((tmp_path / "layers.json").read_text())["layers"]
    assert [(row["layer"], row["sentence"]["count"]) for row in layers] == [(at, COUNT) for at in range(LAYERS + 1)]
    cone("pooling", "--model", model)
    cone("rotation", "--model", model, "--model", root / "clip")
    cone("center", "--model", model, "--output", tmp_path / "centering.safetensors")
