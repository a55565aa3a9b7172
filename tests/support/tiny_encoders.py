"""Tiny models of images and sounds with random weights, shared by tests. Nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tests.support.tiny_models import HEADS, HIDDEN, LAYERS, PAD, VOCAB, tiny_batch

SIDE, PATCH = 16, 4  # of an image and its patches: 4 x 4 of them
SAMPLES = 203  # of a wave: 19 frames
_VISION = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 64,
    "image_size": SIDE,
    "patch_size": PATCH,
}
_WAVES = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 64,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "feat_extract_norm": "layer",
    "layerdrop": 0.0,
    "mask_time_prob": 0.0,
    "pad_token_id": PAD,
}
_SPEECH = {
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": 2,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": VOCAB,
    "pad_token_id": PAD,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 2,
}

# Test id -> model class, configuration class, settings.
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTModel", "ViTConfig", _VISION),
    "deit": ("DeiTModel", "DeiTConfig", _VISION),
    "dinov2": ("Dinov2Model", "Dinov2Config", _VISION),
    "dinov2-registers": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        {**_VISION, "num_register_tokens": 3},
    ),
    "clip-vision": ("CLIPVisionModel", "CLIPVisionConfig", _VISION),
    "siglip-vision": ("SiglipVisionModel", "SiglipVisionConfig", _VISION),
    "wav2vec2": ("Wav2Vec2Model", "Wav2Vec2Config", _WAVES),
    "wav2vec2-adapter": (
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        {**_WAVES, "add_adapter": True, "do_stable_layer_norm": True},
    ),
    "hubert": ("HubertModel", "HubertConfig", _WAVES),
    "whisper": ("WhisperModel", "WhisperConfig", {**_SPEECH, "num_mel_bins": 8, "max_source_positions": 20}),
    "speech-to-text": (
        "Speech2TextModel",
        "Speech2TextConfig",
        {**_SPEECH, "input_feat_per_channel": 8, "input_channels": 1},
    ),
}
_OTHERS = {"sew": ("SEWModel", "SEWConfig", {**_WAVES, "squeeze_factor": 2})}  # probed without a mask alone
_TEXTS = {**_VISION, "vocab_size": VOCAB, "max_position_embeddings": 16}
_CLIP = {
    "text_config": {**_TEXTS, "eos_token_id": 3, "bos_token_id": 2},
    "vision_config": _VISION,
    "projection_dim": 24,
}
_SIGLIP = {
    "text_config": {**_TEXTS, "projection_size": HIDDEN},
    "vision_config": _VISION,
}
# Both towers; each of them is probed by itself.
WHOLE = {"clip": ("CLIPModel", "CLIPConfig", _CLIP), "siglip": ("SiglipModel", "SiglipConfig", _SIGLIP)}
IMAGES = ("vit", "deit", "dinov2", "dinov2-registers", "clip-vision", "siglip-vision")


def tiny_encoder(name: str, *, model_class: str | None = None, seed: int = 0, **settings: Any) -> nn.Module:
    """One of `ENCODERS` in eval mode, with weights large enough that dropping a step would show."""
    class_name, config_name, base = (ENCODERS | _OTHERS | WHOLE)[name]
    torch.manual_seed(seed)
    model: nn.Module = getattr(transformers, model_class or class_name)(
        getattr(transformers, config_name)(**{**base, **settings})
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def encoder_batch(name: str, *, rows: int = 5, seed: int = 1, side: int = SIDE) -> dict[str, Tensor]:
    """Random input of a model of `ENCODERS`; sounds of a batch differ in length, and the first is the longest."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=generator)

    decoder = {"decoder_input_ids": torch.full((rows, 2), 2)}
    if name in WHOLE:
        return {"pixel_values": random(3, side, side), **tiny_batch(sentences=rows, seed=seed)}
    if name in IMAGES:
        return {"pixel_values": random(3, side, side)}
    if name == "whisper":
        return {"input_features": random(8, 40), **decoder}
    size = 40 if name == "speech-to-text" else SAMPLES
    lengths = torch.tensor([size - (31 if size == SAMPLES else 7) * row for row in range(rows)])[:, None]
    mask = (torch.arange(size) < lengths).to(torch.int64)
    if name == "speech-to-text":
        return {"input_features": random(size, 8), "attention_mask": mask, **decoder}
    return {"input_values": random(size) * mask, "attention_mask": mask}
