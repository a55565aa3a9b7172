"""The two towers of CLIP and SigLIP, and the gap between their vectors, against NumPy in float64."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from cone_kernels import backends, experiments
from cone_kernels.cli import main
from cone_kernels.corpora import Corpus
from cone_kernels.experiments.modality_gap import _left_out
from cone_kernels.experiments.modality_gap_result import ModalityGapResult
from cone_kernels.models import ModelError
from cone_kernels.models.images import ImageError
from cone_kernels.runs.progress import Progress
from cone_kernels.statistics.claims import Claim
from cone_kernels.sums import jackknife_blocks, jackknife_groups
from cone_kernels.terminal.progress import told
from tests.cli.test_commands_on_a_gpu import about
from tests.support.report_reading import read_report, value_at
from tests.support.stand_in_gpu import stand_in_gpu
from tests.support.tiny_checkpoints import THREE_LENGTHS, WORDS, save_checkpoint, word_tokenizer
from tests.support.tiny_encoders import SIDE, WHOLE, tiny_encoder

TEXTS = [" ".join(WORDS[(i * 7 + i // 9 + j * 3) % 90] for j in range(THREE_LENGTHS[i % 3])) for i in range(70)]
LAYERS = 2  # of each tower

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several kinds and sizes, one below, one that is hidden and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "below").mkdir()
    random = np.random.default_rng(0)
    for at in range(41):
        name = f"below/{at:02}.jpg" if at % 5 == 0 else f"{at:02}.png"
        pixels = random.integers(0, 255, (20 + at % 3, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert("L" if at % 7 == 0 else "RGB").save(folder / name)
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("none")
    return folder


@pytest.fixture(scope="module", params=sorted(WHOLE))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("towers") / request.param
    towers = WHOLE[request.param][2]
    of_each = {f"{one}_config": {**towers[f"{one}_config"], "num_hidden_layers": LAYERS} for one in ("text", "vision")}
    tiny_encoder(request.param, **of_each).save_pretrained(found)
    names = ["input_ids"] if request.param == "siglip" else ["input_ids", "attention_mask"]
    word_tokenizer(model_input_names=names).save_pretrained(found)
    sizes: dict[str, Any] = {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": False}
    transformers.CLIPImageProcessorPil(**sizes).save_pretrained(found)
    return found


@pytest.fixture(scope="module")
def result(folder: Path, photos: Path) -> ModalityGapResult:
    return experiments.modality_gap(folder, photos, TEXTS, device="cpu", threads=1)


@pytest.fixture(scope="module")
def in_batches(folder: Path, photos: Path) -> ModalityGapResult:
    return experiments.modality_gap(folder, photos, TEXTS, batch_size=16, device="cpu", threads=1)


# Vectors of images and of texts, and the last hidden states of each text's tokens and each image's positions.
Features = tuple[np.ndarray, np.ndarray, list[np.ndarray], list[np.ndarray]]


def test_captions_of_an_image_are_in_one_group(
    folder: Path, photos: Path, result: ModalityGapResult, features: Features, tmp_path: Path
) -> None:
    """Against the model's vectors of the texts, added up by hand; the command gives the same numbers."""
    file = tmp_path / "captions.jsonl"
    records = [{"caption": text, "image": f"photo {at // 5}"} for at, text in enumerate(TEXTS)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    corpus = Corpus(file, fields=["caption"], group_by="image", dedup=False)
    found = experiments.modality_gap(folder, photos, corpus)
    group = np.array([corpus.group for _ in corpus])
    assert len(group) == 70
    assert [len(set(group[at : at + 5])) for at in range(0, 70, 5)] == [1] * 14
    rows = features[1]
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    output = found.texts.state.output
    assert output is not None
    for one in range(64):
        np.testing.assert_allclose(output.unit_sum[0][one], units[group == one].sum(0), atol=1e-5)
        assert found.texts.state.sentence.count[0, one] == found.texts.state.sentence.count[1, one] == sum(group == one)
    assert found.gap.value == pytest.approx(result.gap.value, rel=1e-6)
    assert found.gap_claim.null != result.gap_claim.null
    command = ["modality-gap", "--model", folder, "--images", photos, "--captions", file, "--field", "caption"]
    command += ["--group-by", "image", "--no-dedup", "--json", "-"]
    done = CliRunner().invoke(main, list(map(str, command)))
    assert json.loads(done.stdout)["gap"] == found.to_dict()["gap"]


def mean_cosine(rows: np.ndarray) -> float:
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return float(((units @ units.T).sum() - len(rows)) / (len(rows) * (len(rows) - 1)))


@pytest.fixture(scope="module")
def features(folder: Path, photos: Path) -> Features:
    """As transformers gives them, a text at a time."""
    model: Any = transformers.AutoModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    files = sorted(path for path in photos.rglob("*") if path.suffix in (".png", ".jpg") and path.name[0] != ".")
    opened = [Image.open(path).convert("RGB") for path in files]
    pixels = AutoImageProcessor.from_pretrained(folder)(opened, return_tensors="pt")["pixel_values"]
    texts: list[np.ndarray] = []
    tokens: list[np.ndarray] = []
    with torch.no_grad():
        images = model.get_image_features(pixel_values=pixels).pooler_output
        positions = model.vision_model(pixels, output_hidden_states=True).hidden_states[-1]
        for text in TEXTS:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            n = ids.shape[1]
            if folder.name == "siglip":
                ids = torch.nn.functional.pad(ids, (0, 16 - n), value=tokenizer.pad_token_id)
            texts.append(model.get_text_features(input_ids=ids).pooler_output[0].double().numpy())
            states = model.text_model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
            tokens.append(states[0, :n].double().numpy())
    return images.double().numpy(), np.stack(texts), tokens, list(positions.double().numpy())


def test_both_towers_and_the_gap_are_those_of_plain_arithmetic(
    in_batches: ModalityGapResult, features: Features
) -> None:
    result = in_batches
    images, texts, tokens, positions = features
    assert (len(images), len(texts)) == (41, 70)
    means = [(rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(0) for rows in (images, texts)]
    cosine = means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1])
    assert abs(result.cosine_of_means.value - cosine) < 1e-6
    assert abs(result.gap.value - np.linalg.norm(means[0] - means[1])) < 1e-6
    assert abs(result.across.value - means[0] @ means[1]) < 1e-6
    for tower, rows, hidden in ((result.images, images, positions), (result.texts, texts, tokens)):
        assert tower.output.count == len(rows)
        assert abs(tower.output.anisotropy - mean_cosine(rows)) < 1e-6
        assert len(tower.layers) == LAYERS + 1
        last = tower.layers[-1]
        assert abs(last.sentence.anisotropy - mean_cosine(np.stack([row.mean(0) for row in hidden]))) < 1e-6
        assert abs(last.token.anisotropy - mean_cosine(np.concatenate(hidden))) < 1e-6
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (found["schema"], found["experiment"]) == ("cone_kernels/modality_gap/1", "modality_gap")
    assert found["images"]["layers"][0]["sentence"]["count"] == 41
    assert f"cosine of {cosine:.3f} ±" in result.summary()[0]
    within, across = (mean_cosine(images), mean_cosine(texts)), f"{means[0] @ means[1]:.3f}"
    assert result.summary()[1].startswith(
        f"Two images at random and two texts at random have a mean cosine of {within[0]:.3f} and {within[1]:.3f}; an "
        f"image and a text one of {across} ±"
    )
    # Of a single image, or a single text, no two can be picked.
    one = {
        name: replace(tower, output=replace(tower.output, anisotropy=math.nan))
        for name, tower in (("images", result.images), ("texts", result.texts))
    }
    assert (
        replace(result, images=one["images"])
        .summary()[1]
        .startswith(f"Two texts at random have a mean cosine of {within[1]:.3f}; an image and a text one of {across} ±")
    )
    assert (
        replace(result, **one)
        .summary()[1]
        .startswith(f"An image and a text at random have a mean cosine of {across} ±")
    )


def test_the_error_is_that_of_leaving_groups_out(result: ModalityGapResult, features: Features) -> None:
    images, texts, _, _ = features
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, texts)]
    statistics: dict[str, Any] = {
        "cosine_of_means": lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b),
        "gap": lambda a, b: np.linalg.norm(a - b),
        "across": lambda a, b: a @ b,
    }
    for name, statistic in statistics.items():
        variance = 0.0
        for at in (0, 1):
            group_of = jackknife_groups(torch.arange(len(units[at]))).numpy()
            pairs = ([units[0].mean(0), units[1].mean(0)] for _ in np.unique(group_of))
            values = []
            for group, pair in zip(np.unique(group_of), pairs, strict=True):
                pair[at] = units[at][group_of != group].mean(0)
                values.append(statistic(*pair))
            variance += (len(values) - 1) / len(values) * ((values - np.mean(values)) ** 2).sum()
        assert abs(getattr(result, name).stderr - variance**0.5) < 1e-7
    against_chance(result, units)


def against_chance(result: ModalityGapResult, units: list[np.ndarray]) -> None:
    """The gap of one cone by chance: of blocks of eight or more neighbours, for a sixteenth is less, turned around."""
    found, parts = result.to_dict()["gap_by_chance"], []
    for rows in units:
        groups = jackknife_groups(torch.arange(len(rows)))
        block_of = jackknife_blocks(torch.bincount(groups))[groups].numpy()
        left = np.stack([rows[block_of != one].mean(0) for one in np.unique(block_of)])
        parts.append((left - left.mean(0)) * math.sqrt((len(left) - 1) / len(left)))
    deviations = np.concatenate(parts)
    assert abs(found["expected"] - np.linalg.norm(deviations)) < 1e-7
    turned = np.random.default_rng(0).choice([-1.0, 1.0], (20_000, len(deviations))) @ deviations
    assert abs(found["at_most"] - np.quantile(np.linalg.norm(turned, axis=1), 0.95)) < 0.05 * found["at_most"]
    chance = f"the means of 41 images and 70 texts of one cone lie up to {found['at_most']:.3f} apart in 19 of 20 draws"
    assert (found["verdict"], result.summary()[2]) == ("greater", f"The gap is more than chance: {chance}.")
    small = replace(result, gap_claim=Claim(found["expected"], found["expected"], found["at_most"] - found["expected"]))
    assert small.summary()[2] == f"Whether there is a gap is undecided: {chance}."
    few = replace(result, gap_claim=Claim(0.5, math.nan, math.nan))
    assert few.summary()[2] == "Whether there is a gap is undecided: 41 images and 70 texts are too few."
    assert few.to_dict()["gap_by_chance"] == {"expected": None, "at_most": None, "verdict": "undecided"}


def test_a_model_in_memory_and_processed_images(folder: Path, photos: Path, result: ModalityGapResult) -> None:
    model = transformers.AutoModel.from_pretrained(folder).train()
    given: dict[str, Any] = {
        "tokenizer": transformers.AutoTokenizer.from_pretrained(folder),
        "image_processor": AutoImageProcessor.from_pretrained(folder),
    }
    files = sorted(path for path in photos.rglob("[0-9]*"))
    opened = [Image.open(path).convert("RGB") for path in files]
    pixels: Tensor = given["image_processor"](opened, return_tensors="pt")["pixel_values"]
    for images in (files, opened, pixels):
        got = experiments.modality_gap(model, images, TEXTS, **given)
        assert got.gap == result.gap
    assert model.training
    assert all(part.training for part in model.modules())
    with pytest.raises(ValueError, match="image_processor: got none; it must be given with a model that is in memory"):
        experiments.modality_gap(model, photos, TEXTS, tokenizer=given["tokenizer"])


def test_progress_and_what_was_cut(folder: Path, photos: Path) -> None:
    reports: list[Progress] = []
    longest = transformers.AutoConfig.from_pretrained(folder).text_config.max_position_embeddings
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [*TEXTS[:20], " ".join(WORDS[:3] * 40), " ".join(WORDS[1:2] * (longest - 2)), " ".join(WORDS[4:9] * 30)]
    too_long = sum(len(tokenizer(text, verbose=False)["input_ids"]) > longest for text in texts)
    given: dict[str, Any] = {"batch_size": 16, "device": "cpu", "backend": "reference", "threads": 1}
    with backends.record() as ran:
        result = experiments.modality_gap(folder, photos, texts, progress=reports.append, **given)
    assert (result.manifest["backend"], result.manifest["threads"]) == ("reference", 1)
    assert {op: str(used) for op, used in ran} == {"pool_moments": "reference", "row_moments": "reference"}
    images, sentences = [(16, 41), (32, 41), (41, 41)], [(16, None), (23, 23)]
    assert [(one.unit, one.sentences, one.expected) for one in reports] == [
        *(("images", *done) for done in images),
        *(("texts", *done) for done in sentences),
    ]
    assert {one.tokens for one in reports} == {0}
    assert told(replace(reports[0], elapsed=2.0)) == "8 images/s, 0:00:03 left"
    assert 2 <= too_long == result.corpus["truncated"]


def test_what_is_left_out_of_a_layer_is_bad(folder: Path, photos: Path) -> None:
    model = transformers.AutoModel.from_pretrained(folder)
    embeddings = model.text_model.embeddings.token_embedding.weight
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        embeddings[tokenizer(WORDS[0])["input_ids"][1]] = math.nan
    given: dict[str, Any] = {"tokenizer": tokenizer, "image_processor": AutoImageProcessor.from_pretrained(folder)}
    result = experiments.modality_gap(model, photos, TEXTS, **given)
    with_word = sum(WORDS[0] in text.split() for text in TEXTS)
    assert 0 < with_word == result.n_bad == result.texts.layers[0].sentence.n_nonfinite


@pytest.mark.parametrize("worst", [0, 1, 2])
def test_the_worst_layer_or_the_output_says_how_many_are_left_out(worst: int) -> None:
    levels = [SimpleNamespace(n_zero=1, n_nonfinite=1) for _ in range(3)]
    levels[worst] = SimpleNamespace(n_zero=2, n_nonfinite=3)
    rows = [SimpleNamespace(sentence=level) for level in levels[:2]]
    assert _left_out(SimpleNamespace(layers=rows, output=levels[2])) == 5  # type: ignore[arg-type]


def test_what_cannot_be_measured_is_refused(folder: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    for images, error, said in (
        (tmp_path, ImageError, r"images: .*broken\.png cannot be read as an image"),
        (tmp_path / "nowhere", FileNotFoundError, "images: there is no folder"),
        (folder, FileNotFoundError, r"has no file in it that ends in \.jpg"),
        (7, TypeError, "images: got int; it must be a folder, or an iterable of images"),
        ([], ValueError, "images: got none; it must be one at least"),
    ):
        with pytest.raises(error, match=said):
            experiments.modality_gap(folder, images, TEXTS, device="cpu")  # type: ignore[arg-type]
    for name in ("batch_size", "threads"):
        with pytest.raises(ValueError, match=f"{name}: got 0; it must be 1 or more"):
            experiments.modality_gap(folder, photos, TEXTS, **{name: 0})
    save_checkpoint(tmp_path / "bert")
    with pytest.raises(ModelError, match="is a BertModel, which has no text_model; it must have a tower of texts and"):
        experiments.modality_gap(tmp_path / "bert", photos, TEXTS, device="cpu")


def untimed(result: Any) -> dict[str, Any]:
    """The JSON of a result without its corpus and its times."""
    found: dict[str, Any] = {name: value for name, value in result.to_dict().items() if name != "corpus"}
    times = ("started", "seconds")
    return found | {"manifest": {name: value for name, value in found["manifest"].items() if name not in times}}


def cone(*arguments: object, text: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=text)


def asked(folder: Path, photos: Path) -> tuple[object, ...]:
    return "modality-gap", "--model", folder, "--images", photos, "--batch-size", 16, "--device", "cpu"


def test_the_command_shows_and_writes_what_python_gives(
    folder: Path, photos: Path, in_batches: ModalityGapResult, tmp_path: Path
) -> None:
    wanted = in_batches
    captions = tmp_path / "captions.jsonl"
    lines = [json.dumps({"id": at, "caption": text}) for at, text in enumerate([*TEXTS, TEXTS[0]])]
    captions.write_text("\n".join([*lines, "not JSON"]))
    options, begun = ("--captions", captions, "--field", "caption", "--max-bad", 1), time.perf_counter()
    done = cone(*asked(folder, photos), *options, "--json", tmp_path / "gap.json")
    elapsed = time.perf_counter() - begun
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "gap.json").read_text())
    assert found["corpus"]["duplicates"] == 1
    assert found["corpus"]["left_out"] == 0
    times = {name: found["manifest"].pop(name) for name in ("started", "seconds")}
    assert all(value == round(value, 3) > 0 for value in times["seconds"].values())
    assert times["seconds"]["load"] + times["seconds"]["run"] < elapsed
    assert {name: value for name, value in found.items() if name != "corpus"} == untimed(wanted)
    assert "dropped: 1 " in done.stderr
    assert re.search(r"^41 images and 70 texts in \d+\.\d s$", done.stderr, re.MULTILINE)
    for sentence in wanted.summary():
        assert sentence in " ".join(done.stdout.split())
    shown = f"{wanted.cosine_of_means.value:.4f} ± {wanted.cosine_of_means.stderr:.4f}".replace("-", "−")
    assert shown in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith(("images ", "texts "))]
    assert len(rows) == 2 + 2 * (LAYERS + 2)

    options = ("--captions", captions, "--field", "caption", "--max-bad", 0)
    every = cone(*asked(folder, photos), *options, "--no-dedup", "--json", "-")
    assert every.exit_code == 3
    assert "1 were left out; --max-bad allows 0" in every.stderr
    assert json.loads(every.stdout)["texts"]["output"]["sentence"]["count"] == 71
    few = cone(
        *asked(folder, photos), "--captions", "-", "--format", "txt", "--limit", 9, "--json", "-", text="\n".join(TEXTS)
    )
    assert few.exit_code == 0, few.output
    assert json.loads(few.stdout)["texts"]["output"]["sentence"]["count"] == 9


def test_what_the_command_refuses(folder: Path, photos: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(TEXTS))
    save_checkpoint(tmp_path / "bert")
    asks = asked(folder, photos)
    for given, code, words in (
        ((*asks, "--captions", tmp_path / "none.txt"), 1, "none.txt"),
        ((*asks, "--captions", captions, "--json", captions), 2, "is named twice"),
        ((*asks, "--captions", captions, "--batch-size", 0), 2, "--batch-size"),
        (asks, 2, "--captions"),
        ((*asked(folder, tmp_path / "no"), "--captions", captions), 1, "images: there is no folder"),
        (
            (*asked(tmp_path / "bert", photos), "--captions", captions),
            1,
            "must have a tower of texts and one of images",
        ),
    ):
        done = cone(*given)
        assert done.exit_code == code, done.output
        assert words in " ".join(done.stderr.split())


def test_the_command_on_a_gpu(folder: Path, photos: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(TEXTS))
    found = {}
    for device in ("cpu", "cuda"):
        with stand_in_gpu() as work:
            done = cone(
                *asked(folder, photos), "--device", device, "--captions", captions, "--limit", 30, "--json", "-"
            )
        assert done.exit_code == 0, done.output
        assert (work.launches["pool_moments"] > 1) == (device == "cuda")
        found[device] = json.loads(done.stdout)
    assert found["cuda"].pop("manifest")["device"] == "cuda:0"
    assert found["cpu"].pop("manifest")["device"] == "cpu"
    assert found["cuda"] == about(found["cpu"])


def test_a_table_for_pandas_and_a_page(result: ModalityGapResult, tmp_path: Path) -> None:
    table = result.to_pandas()
    assert list(table["tower"]) == ["images"] * (LAYERS + 2) + ["texts"] * (LAYERS + 2)
    assert table["layer"].tolist()[LAYERS + 1] == "output"
    assert table["sentence_anisotropy"].tolist()[LAYERS + 1] == result.images.output.anisotropy
    assert "How far apart" in result._repr_html_()
    (tmp_path / "gap.json").write_text(json.dumps(result.to_dict()))
    assert cone("report", tmp_path / "gap.json").exit_code == 0
    root = read_report((tmp_path / "gap.html").read_text())
    assert len(root.all("figure")) == 2
    described = [title.text for title in root.all("title", "desc")]
    gap = f"{result.gap.value:.3f} ± {result.gap.stderr:.3f}"
    assert any(f"The means are {gap} apart" in words for words in described)
    numbers = root.all("data")
    assert len(numbers) > 4 * (LAYERS + 1) * 2
    for number in numbers:
        assert json.loads(number.attributes["value"]) == value_at(result.to_dict(), number.attributes["data-at"])
