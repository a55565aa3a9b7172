"""Tables of token vectors: what `StaticEmbedding.encode` gives, model2vec's own rules, and text files of words."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor

from cone_kernels import experiments
from cone_kernels.cli import main
from cone_kernels.models import LoadedModel, ModelError, load_model
from cone_kernels.names import OUTPUT
from cone_kernels.runs.runner import run
from tests.support.tiny_checkpoints import WORDS, word_tokenizer
from tests.support.tiny_models import VOCAB
from tests.support.vector_writers import write_word2vec

DIM, UNKNOWN = 16, 0
# Sentences of one to nine words, some of which no table has.
TEXTS = [
    " ".join((*WORDS, "abc", "w4w4")[(i * 7 + i // 9 + j * 3) % 98] for j in range(1 + i * 5 % 9)) for i in range(90)
]
PROMPT = {"prompts": {"say": "w80 w81 "}, "default_prompt_name": "say"}
OPTIONS: dict[str, Any] = {"threads": 1, "shard_size": 40}

pytestmark = pytest.mark.usefixtures("one_thread")


def table() -> Tensor:
    return torch.randn(VOCAB, DIM, generator=torch.Generator().manual_seed(0)) + 0.3


def save_static(folder: Path, *then: Any, limit: int | None = None, settings: dict[str, Any] | None = None) -> Path:
    """A folder as sentence-transformers writes it, whose tokenizer would add special tokens where it is asked to."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = word_tokenizer().backend_tokenizer
    if limit is not None:
        tokenizer.enable_truncation(limit)
    given = {"default_prompt_name": None, **(settings or {})}
    static = StaticEmbedding(tokenizer, embedding_weights=table())
    SentenceTransformer(modules=[static, *then], device="cpu", **given).save(str(folder), create_model_card=False)
    return folder


def save_model2vec(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "model2vec", **config}))
    word_tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def vectors_of(loaded: LoadedModel, layer: int | str, texts: list[str] = TEXTS) -> np.ndarray:
    """(n, d) float64: the vectors that a run measures."""
    return run(loaded, texts, keep_vectors=[layer], **OPTIONS).vectors[layer].read(0, len(texts)).double().numpy()


def encoded(folder: Path) -> np.ndarray:
    """(n, d) float64: what `encode` gives."""
    from sentence_transformers import SentenceTransformer

    found = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, show_progress_bar=False)
    return np.asarray(found, dtype=np.float64)


def means(rows: np.ndarray, *, known: bool, limit: int | None = None, texts: list[str] = TEXTS) -> np.ndarray:
    """(n, d): of each sentence the mean of its words' rows, of those that the table has where `known`."""
    ids = [[int(word[1:]) if word in WORDS else UNKNOWN for word in text.split()][:limit] for text in texts]
    return np.stack([rows[[one for one in row if one != UNKNOWN or not known]].mean(0) for row in ids])


def mean_cosine(rows: np.ndarray) -> float:
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return float(((units @ units.T).sum() - len(rows)) / (len(rows) * (len(rows) - 1)))


def test_a_bare_static_embedding_is_one_layer_of_what_encode_gives(tmp_path: Path) -> None:
    folder = save_static(tmp_path / "bare")
    loaded = load_model(folder, "cpu")
    wanted = encoded(folder)
    assert np.abs(vectors_of(loaded, 0) - wanted).max() < 1e-6
    result = experiments.layers(folder, TEXTS, device="cpu", second_moment=True)
    (layer,) = result.layers
    assert (layer.layer, layer.name) == (0, "embedding")
    assert abs(layer.sentence.anisotropy - mean_cosine(wanted)) < 1e-6
    rows = table().double().numpy()
    tokens = rows[[int(word[1:]) if word in WORDS else UNKNOWN for text in TEXTS for word in text.split()]]
    assert abs(layer.token.anisotropy - mean_cosine(tokens)) < 1e-6
    assert layer.token.count == len(tokens)
    assert result.model["architecture"] == "StaticEmbedding"
    said = result.to_dict()["output"]
    assert said == {"modules": ["StaticEmbedding"], "reason": "it is the mean of layer 0, which is measured there"}


@pytest.mark.parametrize("case", ["Normalize", "Dense", "prompt", "truncated texts", "truncate_dim"])
def test_what_follows_the_table_is_what_encode_gives(case: str, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    torch.manual_seed(0)
    folder = save_static(
        tmp_path / "folder",
        *([Dense(DIM, 6)] if case == "Dense" else [Normalize()]),
        limit=3 if case == "truncated texts" else None,
        settings=PROMPT if case == "prompt" else {"truncate_dim": 5} if case == "truncate_dim" else None,
    )
    loaded = load_model(folder, "cpu")
    assert loaded.output is not None
    assert loaded.output.modules == ("StaticEmbedding", "Dense" if case == "Dense" else "Normalize")
    wanted = encoded(folder)
    assert wanted.shape[1] == {"Dense": 6, "truncate_dim": 5}.get(case, DIM)
    assert np.abs(vectors_of(loaded, OUTPUT) - wanted).max() < 1e-6
    if case == "truncated texts":
        assert loaded.max_length == 3
        assert experiments.layers(loaded, TEXTS, **OPTIONS).corpus["truncated"] > 10


def test_one_in_memory_is_measured_as_its_folder(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize

    folder = save_static(tmp_path / "folder", Normalize(), settings=PROMPT)
    live = SentenceTransformer(str(folder), device="cpu")
    before = live.encode(TEXTS[:3])
    result = experiments.layers(live, TEXTS, **OPTIONS)
    assert np.array_equal(live.encode(TEXTS[:3]), before)
    wanted = experiments.layers(folder, TEXTS, device="cpu", **OPTIONS)
    for moments in ("token", "sentence", "output"):
        got, expected = getattr(result.state, moments), getattr(wanted.state, moments)
        assert torch.equal(got.unit_sum, expected.unit_sum), moments


def test_model2vec_alone_leaves_out_what_it_does_not_know(tmp_path: Path) -> None:
    rows = table().double().numpy()
    for normalize in (False, True):
        folder = save_model2vec(tmp_path / f"m2v-{normalize}", {"embeddings": table()}, normalize=normalize)
        loaded = load_model(folder, "cpu")
        wanted = means(rows, known=True)
        assert np.abs(vectors_of(loaded, 0) - wanted).max() < 1e-6
        assert (loaded.output is not None) is normalize
        if normalize:
            unit = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
            assert np.abs(vectors_of(loaded, OUTPUT) - unit).max() < 1e-6
    result = experiments.layers(folder, TEXTS, device="cpu")
    unknown = sum(word not in WORDS for text in TEXTS for word in text.split())
    assert result.corpus["unknown_tokens"] == unknown > 0
    assert result.corpus["tokens"] + unknown == sum(len(text.split()) for text in TEXTS)
    assert result.manifest["drops_unknown"] is True
    assert loaded.max_length == 512
    assert load_model(save_model2vec(tmp_path / "long", {"embeddings": table()}, max_length=4), "cpu").max_length == 4


def test_model2vec_with_shared_rows_weights_and_integers(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    shared = torch.randint(-100, 100, (20, DIM), generator=generator, dtype=torch.int8)
    mapping = torch.randint(0, 20, (VOCAB,), generator=generator)
    weights = torch.rand(VOCAB, generator=generator)
    tensors = {"embeddings": shared, "mapping": mapping, "weights": weights}
    loaded = load_model(save_model2vec(tmp_path / "quantized", tensors), "cpu")
    rows = shared.double().numpy()[mapping.numpy()] * weights.double().numpy()[:, None]
    wanted = means(rows, known=True)
    assert np.abs(vectors_of(loaded, 0) - wanted).max() < 1e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("header", [True, False], ids=["word2vec", "GloVe"])
def test_a_text_file_of_words(header: bool, tmp_path: Path) -> None:
    rows = table().double().numpy()
    lines = [f"w{number} " + " ".join(map(repr, rows[number].tolist())) for number in range(4, VOCAB)]
    # A word may have a space in it, and of one that comes again the first counts.
    lines += [". . " + " ".join(["1"] * DIM), "w4 " + " ".join(["9"] * DIM)]
    file = tmp_path / "words.txt"
    file.write_text("".join(f"{line}\n" for line in ([f"{len(lines)} {DIM}"] if header else []) + lines))
    loaded = load_model(file, "cpu", dtype="float64")
    texts = [text.upper() if at % 2 else text for at, text in enumerate(TEXTS)]
    assert np.abs(vectors_of(loaded, 0, texts) - means(rows, known=True)).max() < 1e-12
    state = experiments.layers(loaded, ["w5, w6!", "nothing of it", "w7 w8"], **OPTIONS).state
    assert int(state.token.count.sum()) == 4
    assert int(state.sentence.n_empty.sum()) == 1
    capital = tmp_path / "capital.vec"
    capital.write_text("Paris 1 2 3\nparis 3 2 1\n")
    assert vectors_of(load_model(capital, "cpu"), 0, ["Paris", "paris"]).tolist() == [[1, 2, 3], [3, 2, 1]]


@pytest.mark.parametrize("ends", [b"\n", b""], ids=["C tool", "gensim"])
def test_a_binary_file_of_words(ends: bytes, tmp_path: Path) -> None:
    rows = table().numpy()
    words = [f"w{number}" for number in range(4, VOCAB)]
    again = np.full((1, DIM), 9, np.float32)  # of a word that comes twice the first counts
    file = tmp_path / "words.bin"
    write_word2vec(file, np.concatenate([rows[4:], again]), words=[*words, "w4"], ends=ends)
    loaded = load_model(file, "cpu", dtype="float64")
    assert loaded.info["weights_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert np.abs(vectors_of(loaded, 0) - means(rows.astype(np.float64), known=True)).max() < 1e-12
    capital = tmp_path / "capital.BIN"
    capital.write_bytes(b"2 1\nParis " + np.float32(1).tobytes() + ends + b"paris " + np.float32(2).tobytes() + ends)
    assert vectors_of(load_model(capital, "cpu"), 0, ["Paris", "paris"]).tolist() == [[1], [2]]


def test_other_binary_files_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "words.bin"
    torch.save({"w": torch.ones(2, 2)}, file)
    with pytest.raises(
        ModelError, match=r"words\.bin is a file; .* word2vec's binary one \(\.bin\), which begins with a"
    ):
        load_model(file)
    for content, said in (
        (b"2 1\nw 1234\nv 123", r"model: .*words\.bin is cut short in word 1 of 2: it has 16 bytes"),
        (b"2 1\nw 1234\n\xff 1234", r"model: .*words\.bin: word 1 is not UTF-8"),
        (b"900000000 300\nw " + bytes(1200), r"model: .* too few for 900,000,000 words of 300 float32"),
    ):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=said):
            load_model(file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "line 1 is not a word and its numbers"),
        ("a sentence of words\n", "line 1 of .* is not a word and 3 numbers after it"),
        ("3 2\nw4 1 2\nw5 1 x\n", "line 3 of .* is not a word and 2 numbers after it"),
        ("w4 1 2 3\nw5 1 2\n", "line 2 of .* is not a word and 3 numbers after it"),
        ("0 3\n", "has no word"),
    ],
)
def test_what_is_no_file_of_words_is_refused_with_its_line(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text(content)
    with pytest.raises(ModelError, match=said):
        load_model(file)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    few = save_model2vec(tmp_path / "few", {"embeddings": table()[:50]})
    with pytest.raises(ModelError, match="has a token 99, and its table has 50 rows"):
        load_model(few)
    other = save_model2vec(tmp_path / "other", {"vectors": table()})
    with pytest.raises(ModelError, match=r"has no table embedding.weight or embeddings of token vectors \(V, D\)"):
        load_model(other)
    (few / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"few has no tokenizer\.json"):
        load_model(few)
    (few / "model.safetensors").write_bytes(b"")
    word_tokenizer().backend_tokenizer.save(str(few / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"the weights of .* cannot be read"):
        load_model(few)
    with pytest.raises(ModelError, match="attention: got 'sdpa'; it must be left out"):
        load_model(save_static(tmp_path / "static"), attention="sdpa")


@pytest.mark.usefixtures("undrawn")
def test_every_command_takes_a_table(tmp_path: Path) -> None:
    file, corpus = tmp_path / "glove.txt", tmp_path / "texts.txt"
    rows = table()
    file.write_text("".join(f"w{at} {' '.join(map(str, rows[at].tolist()))}\n" for at in range(4, VOCAB)))
    corpus.write_text("\n".join(TEXTS))
    folder = save_static(tmp_path / "static")
    given = ["--corpus", str(corpus), "--device", "cpu", "--threads", "1"]

    def cone(*arguments: str | Path) -> str:
        result = CliRunner().invoke(main, [*map(str, arguments), *given])
        assert result.exit_code == 0, result.output
        return result.output

    said = cone("layers", "--model", file)
    unknown = sum(word not in WORDS for text in TEXTS for word in text.split())
    assert f"unknown to the tokenizer and left out: {unknown} of" in said
    assert sum(line.split()[:1] == ["0"] for line in cone("layers", "--model", folder).splitlines()) == 1
    cone("pooling", "--model", file)
    assert "Of the vocabulary" in cone("axis", "--model", file)
    cone("center", "--model", folder, "--output", tmp_path / "centering.safetensors")
    cone("rotation", "--model", folder, "--model", file)
    cone("run", "--model", folder, "--model", file, "--out", tmp_path / "results")
    asked = ["axis", "--model", str(folder), "--layer", "output", *given]
    refused = CliRunner().invoke(main, asked)
    assert refused.exit_code != 0
    assert "because it is the mean of layer 0, which is measured there" in refused.output
