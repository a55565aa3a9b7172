"""Which positions of images and sounds count, and which are special: of models that have no more than their names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cone_kernels.probe.positions import Positions

PLAIN: Any = SimpleNamespace()
IMAGES = torch.ones(2, 3, 8, 12)
WAVES = torch.ones(2, 10)


def image_model(patch_size: Any) -> Any:
    return SimpleNamespace(config=SimpleNamespace(patch_size=patch_size))


def half(lengths: Tensor) -> Tensor:
    return lengths // 2


def half_or_less(lengths: Tensor, add_adapter: bool | None = None) -> Tensor:
    """What the adapter leaves, unless it is said that none is meant."""
    return lengths // 2 if add_adapter is False else lengths // 4


def sound_model(
    frames: Any = half, *, masks_frames: bool = True, kind: str | None = None, counts: bool = True
) -> SimpleNamespace:
    model = SimpleNamespace(config=SimpleNamespace(model_type=kind))
    if counts:
        model._get_feat_extract_output_lengths = frames
    if masks_frames:
        model._get_feature_vector_attention_mask = None
    return model


def test_texts_have_none() -> None:
    tokens = torch.ones(2, 3)
    assert Positions.of(PLAIN, {}, None) is None
    assert Positions.of(PLAIN, {"input_ids": tokens}, None) is None
    assert Positions.of(PLAIN, {"inputs_embeds": tokens, "pixel_values": IMAGES}, None) is None


@pytest.mark.parametrize(
    ("name", "mask_name"),
    [
        ("pixel_values", "pixel_attention_mask"),
        ("input_features", "attention_mask"),
        ("input_values", "attention_mask"),
    ],
)
def test_the_mask_of_an_input_comes_by_an_argument_of_its_own(name: str, mask_name: str) -> None:
    masks = {key: torch.ones(2, n) for n, key in enumerate(("attention_mask", "pixel_attention_mask"), 1)}
    found = Positions.of(PLAIN, {"input_ids": None, name: WAVES, **masks}, None)
    assert found is not None
    assert (found.name, found.mask_name) == (name, mask_name)
    assert found.input is WAVES
    assert found.mask is masks[mask_name]
    without = Positions.of(PLAIN, {name: WAVES}, None)
    assert without is not None
    assert without.mask is None
    noted = Positions.of(PLAIN, {name: WAVES, **masks}, WAVES)
    assert noted is not None
    assert (noted.mask is WAVES, noted.mask_name) == (True, "mask")


@pytest.mark.parametrize(
    ("given", "got"),
    [
        ([1.0], "list"),
        (torch.ones(3), "shape (3,)"),
        (torch.ones(0, 3), "shape (0, 3)"),
        (torch.ones(1, 3, 0), "shape (1, 3, 0)"),
    ],
)
def test_what_is_no_batch_is_refused(given: Any, got: str) -> None:
    with pytest.raises(ValueError, match="input_values") as refused:
        Positions.of(PLAIN, {"input_values": given}, None)
    assert str(refused.value) == f"input_values: got {got}; it must be one image or sound at least, a tensor (B, ...)"


def test_all_positions_count_unless_a_mask_is_of_them() -> None:
    every = Positions(PLAIN, "pixel_values", IMAGES).mask_of(3)
    assert (every.tolist(), every.dtype) == ([[True] * 3] * 2, torch.bool)
    given = torch.tensor([[1, 0, 0], [1, 1, 0]])
    of_them = Positions(PLAIN, "pixel_values", IMAGES, given).mask_of(3)
    assert (of_them.tolist(), of_them.dtype) == (given.bool().tolist(), torch.bool)


@pytest.mark.parametrize(
    "model",
    [
        sound_model(),
        sound_model(half_or_less),
        sound_model(lambda lengths: lengths.to(torch.float32).div(2).floor()),
        sound_model(masks_frames=False, kind="whisper"),
    ],
)
def test_the_first_frames_of_a_sound_count_as_many_as_its_samples_make(model: Any) -> None:
    mask = torch.tensor([[1] * 10, [1] * 5 + [0] * 5], dtype=torch.int32)
    found = Positions(model, "input_values", WAVES, mask).mask_of(5)
    assert found.tolist() == [[True] * 5, [True] * 2 + [False] * 3]
    none = Positions(model, "input_values", WAVES[:1], torch.tensor([[1] + [0] * 9])).mask_of(5)
    assert none.tolist() == [[False] * 5]


@pytest.mark.parametrize(
    ("model", "mask", "mask_name", "n_positions"),
    [
        (sound_model(masks_frames=False), torch.ones(2, 10), "attention_mask", 5),
        (sound_model(counts=False), torch.ones(2, 10), "attention_mask", 5),
        (sound_model(counts=False, masks_frames=False, kind="whisper"), torch.ones(2, 10), "attention_mask", 5),
        (sound_model(), torch.ones(2, 10), "attention_mask", 4),
        (sound_model(), torch.ones(2, 10), "attention_mask", 6),
        (sound_model(), torch.ones(2, 10), "mask", 5),
        (sound_model(), torch.ones(3, 10), "attention_mask", 5),
        (PLAIN, torch.ones(2, 10), "attention_mask", 5),
    ],
)
def test_a_mask_of_which_it_is_not_known_what_the_model_makes_of_it_is_refused(
    model: Any, mask: Tensor, mask_name: str, n_positions: int
) -> None:
    with pytest.raises(ValueError, match="must be") as refused:
        Positions(model, "input_values", WAVES, mask, mask_name).mask_of(n_positions)
    assert str(refused.value) == (
        f"{mask_name}: got shape {tuple(mask.shape)}; it must be (2, {n_positions}) as the positions of the layers "
        "(how SimpleNamespace turns another mask into theirs is not known here); say which count by "
        "next_batch(mask=...)"
    )


@pytest.mark.parametrize(
    ("patch", "n_positions", "n_special"),
    [
        (4, 6, 0),  # 2 x 3 patches of 8 x 12
        (4, 7, 1),
        ([4, 6], 5, 1),  # 2 x 2
        ((8, 3), 6, 2),  # 1 x 4
        (5, 4, 2),  # 1 x 2, and a rest
        (4, 5, None),
        ([4], 9, None),
        ([1, 4, 4], 9, None),
        (4.0, 9, None),
        (None, 9, None),
    ],
)
def test_what_comes_before_the_patches_is_special(patch: Any, n_positions: int, n_special: int | None) -> None:
    found = Positions(image_model(patch), "pixel_values", IMAGES).special_of(n_positions)
    if n_special is None:
        assert found is None
        return
    assert found is not None
    assert found.tolist() == [[True] * n_special + [False] * (n_positions - n_special)] * 2


def test_of_other_inputs_it_is_not_known_what_is_special() -> None:
    assert Positions(PLAIN, "pixel_values", IMAGES).special_of(9) is None
    assert Positions(image_model(4), "input_values", IMAGES).special_of(9) is None
    assert Positions(image_model(4), "pixel_values", torch.ones(2, 5, 3, 8, 12)).special_of(9) is None
    assert Positions(image_model(4), "pixel_values", torch.ones(2, 8, 12)).special_of(9) is None
