"""The probe on models of images and sounds: every layer as hidden_states has it, and which positions count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cone_kernels import metrics
from cone_kernels.models.transformers_names import FRAME_MASK, FRAMES_OF_SAMPLES, TOWERS, UNMASKED_SOUND
from cone_kernels.probe.cone_probe import ConeProbe
from tests.support.recording_probe import RecordingProbe, probed, same
from tests.support.tiny_encoders import ENCODERS, HIDDEN, IMAGES, LAYERS, WHOLE, encoder_batch, tiny_encoder

pytestmark = pytest.mark.usefixtures("one_thread")


def tuple_of(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
    states: tuple[Tensor, ...] = output.get("hidden_states") or output["encoder_hidden_states"]
    return states


def frames(model: nn.Module, batch: dict[str, Tensor], states: tuple[Tensor, ...]) -> np.ndarray:
    """(B, T) bool: the positions that the model itself lets count."""
    mask = batch.get("attention_mask")
    if mask is None:
        return np.ones(states[0].shape[:2], dtype=bool)
    own: Any = model.encoder if hasattr(model, "decoder") else model
    extra = {"add_adapter": False} if type(model).__name__ == "Wav2Vec2Model" else {}
    return np.asarray(own._get_feature_vector_attention_mask(states[0].shape[1], mask, **extra)).astype(bool)


def mean_cosine(rows: np.ndarray) -> float:
    """Of distinct pairs of rows (n, d), by the n x n matrix in float64."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = units @ units.T
    return float((cosines.sum() - np.trace(cosines)) / (len(rows) * (len(rows) - 1)))


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_every_layer_is_that_of_the_tuple(name: str) -> None:
    model = tiny_encoder(name)
    batches = [encoder_batch(name, seed=seed) for seed in (1, 2)]
    with RecordingProbe(model) as probe, torch.no_grad():
        for batch in batches:
            model(**batch)
    wanted = [tuple_of(model, batch) for batch in batches]
    masks = [frames(model, batch, states) for batch, states in zip(batches, wanted, strict=True)]
    if "attention_mask" in batches[0]:
        assert len({int(row.sum()) for row in masks[0]}) > 2, "the mask of frames must tell something"
    assert sorted(probe.added) == list(range(LAYERS + 1)) == list(range(len(wanted[0])))
    for layer in range(LAYERS + 1):
        for got, states in zip(probe.added[layer], wanted, strict=True):
            assert torch.equal(got, states[layer])
        hidden = [states[layer].double().numpy() for states in wanted]
        counted = [
            row[kept] for rows, mask in zip(hidden, masks, strict=True) for row, kept in zip(rows, mask, strict=True)
        ]
        tokens, sentences = np.concatenate(counted), np.stack([row.mean(0) for row in counted])
        for moments, rows in ((probe.state.token, tokens), (probe.state.sentence, sentences)):
            assert int(moments.count[layer].sum()) == len(rows)
            assert abs(float(metrics.anisotropy(moments)[layer]) - mean_cosine(rows)) < 1e-6


@pytest.mark.parametrize("name", ["vit", "wav2vec2", "whisper"])
def test_training_and_the_models_own_output_are_as_without_the_probe(name: str) -> None:
    model = tiny_encoder(name).train()
    batch = encoder_batch(name)
    torch.manual_seed(5)
    with RecordingProbe(model) as probe:
        output = model(**batch)[0]
    torch.manual_seed(5)
    assert torch.equal(output, model(**batch)[0])
    torch.manual_seed(5)
    for layer, state in enumerate(tuple_of(model, batch)):
        assert torch.equal(probe.added[layer][0], state)


def test_class_and_register_tokens_are_special() -> None:
    special = {"siglip-vision": 0, "vit": 1, "clip-vision": 1, "dinov2": 1, "deit": 2, "dinov2-registers": 4}
    assert set(special) == set(IMAGES)
    for name, n_special in special.items():
        model, batch = tiny_encoder(name), encoder_batch(name)
        state = probed(model, batch, poolings=["mean_without_special", "cls"])
        patches = tuple_of(model, batch)[-1].double().numpy()[:, n_special:]
        assert patches.shape[1] == 16
        assert (
            abs(float(metrics.anisotropy(state.poolings["mean_without_special"])[-1]) - mean_cosine(patches.mean(1)))
            < 1e-6
        )
        first = tuple_of(model, batch)[-1].double().numpy()[:, 0]
        assert abs(float(metrics.anisotropy(state.poolings["cls"])[-1]) - mean_cosine(first)) < 1e-6


def test_images_of_another_size() -> None:
    model = tiny_encoder("vit")
    with RecordingProbe(model, pooling="mean_without_special") as probe, torch.no_grad():
        for side in (24, 16):
            model(**encoder_batch("vit", side=side), interpolate_pos_encoding=True)
    assert [tuple(rows.shape) for rows in probe.added[2]] == [(5, 37, HIDDEN), (5, 17, HIDDEN)]


def test_masks_of_samples_become_those_of_frames_or_are_refused() -> None:
    model, batch = tiny_encoder("wav2vec2"), encoder_batch("wav2vec2")
    states = tuple_of(model, batch)
    given = torch.from_numpy(frames(model, batch, states))
    with ConeProbe(model) as probe, torch.no_grad():
        probe.next_batch(mask=given)
        model(**batch)
    assert same(probe.state, probed(model, batch))
    short = {**batch, "attention_mask": batch["attention_mask"].clone()}
    short["attention_mask"][4, 10:] = 0  # ten samples make no frame
    state = probed(model, short)
    assert int(state.sentence.count[-1].sum()) == 4
    assert int(state.sentence.n_zero[-1].sum() + state.sentence.n_nonfinite[-1].sum()) <= 1
    left = {**batch, "attention_mask": batch["attention_mask"].flip(1)}
    with pytest.raises(ValueError, match="attention_mask: got padding before samples"):
        probed(model, left)
    with pytest.raises(ValueError, match="attention_mask: got values other than 0 and 1"):
        probed(model, {**batch, "attention_mask": batch["attention_mask"] * torch.tensor([1, 1, 1, 1, 2])[:, None]})


def test_a_mask_that_the_model_turns_into_another_in_ways_of_its_own_is_refused() -> None:
    # SEW squeezes its frames before the encoder, and its own count of frames is of those before.
    model = tiny_encoder("sew")
    batch = encoder_batch("wav2vec2")
    refused = r"attention_mask: got shape \(5, 203\); it must be \(5, 9\).*SEWModel.*next_batch\(mask=\.\.\.\)"
    with pytest.raises(ValueError, match=refused):
        probed(model, batch)
    assert int(probed(model, {"input_values": batch["input_values"]}).token.count[0].sum()) == 5 * 9


def test_whisper_counts_the_frames_under_its_mask() -> None:
    # The encoder lets all frames see each other; the mask says which of them are measured.
    model, batch = tiny_encoder("whisper"), encoder_batch("whisper")
    assert int(probed(model, batch).token.count[-1].sum()) == 5 * 20
    mask = (torch.arange(40) < torch.tensor([40, 33, 20, 2, 1])[:, None]).to(torch.int32)
    assert int(probed(model, {**batch, "attention_mask": mask}).token.count[-1].sum()) == 20 + 17 + 10 + 1 + 1
    encoder = {"input_features": batch["input_features"]}
    got, whole = probed(model.get_encoder(), encoder), probed(model, batch)
    assert torch.equal(got.token.unit_sum, whole.token.unit_sum)


def test_what_is_no_batch_of_images_or_positions_is_refused_by_name() -> None:
    model = tiny_encoder("vit")
    with pytest.raises(ValueError, match=r"pixel_values: got shape \(0, 3, 16, 16\); it must be one image or sound"):
        probed(model, encoder_batch("vit", rows=0))
    with pytest.raises(ValueError, match="special: got None"):
        probed(tiny_encoder("wav2vec2"), encoder_batch("wav2vec2"), pooling="mean_without_special")
    with ConeProbe(model) as probe, torch.no_grad():
        probe.next_batch(mask=torch.ones(5, 16, dtype=torch.bool))
        with pytest.raises(ValueError, match=r"mask: got shape \(5, 16\)"):
            model(**encoder_batch("vit"))
        model(**encoder_batch("vit"))


def test_repeats_and_ids() -> None:
    model, batch = tiny_encoder("wav2vec2"), encoder_batch("wav2vec2")
    with ConeProbe(model) as probe, torch.no_grad():
        probe.next_batch(repeats=torch.tensor([False, True, False, False, True]))
        model(**batch)
    assert probe.n_sentences == 3
    kept = [0, 2, 3]
    rows = [
        row[mask].mean(0)
        for row, mask in zip(
            tuple_of(model, batch)[-1].double().numpy(), frames(model, batch, tuple_of(model, batch)), strict=True
        )
    ]
    assert abs(float(metrics.anisotropy(probe.state.sentence)[-1]) - mean_cosine(np.stack(rows)[kept])) < 1e-6


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_of_two_towers_each_is_probed_inside_the_whole_model(name: str) -> None:
    model = tiny_encoder(name)
    batch = encoder_batch(name)
    with pytest.raises(RuntimeError, match=r"has a tower of texts.*model\.text_model or model\.vision_model"):
        probed(model, batch)
    with RecordingProbe(model.vision_model) as images, RecordingProbe(model.text_model) as texts, torch.no_grad():
        model(**batch)
    wanted = tuple_of(model.vision_model, {"pixel_values": batch["pixel_values"]})
    assert all(torch.equal(images.added[layer][0], state) for layer, state in enumerate(wanted))
    wanted = tuple_of(model.text_model, {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]})
    assert all(torch.equal(texts.added[layer][0], state) for layer, state in enumerate(wanted))


def test_the_private_names_of_transformers_still_hold() -> None:
    wave, whisper, clip = tiny_encoder("wav2vec2"), tiny_encoder("whisper").get_encoder(), tiny_encoder("clip")
    assert hasattr(wave, FRAME_MASK)
    assert int(getattr(wave, FRAMES_OF_SAMPLES)(torch.tensor([203]), add_adapter=False)) == 19
    assert int(getattr(whisper, FRAMES_OF_SAMPLES)(torch.tensor([40]))) == 20
    assert whisper.config.model_type in UNMASKED_SOUND
    assert all(hasattr(clip, tower) and hasattr(clip, method) for tower, method in TOWERS.items())
