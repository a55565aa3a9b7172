"""Folders of sentence-transformers around a transformer that is there already, with modules of any kind after it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.support.tiny_checkpoints import save_checkpoint

_PACKAGE = "sentence_transformers.models"


def save_encoder(
    folder: Path,
    transformer: Path,
    pooling: str | Sequence[str] | Mapping[str, bool] = "mean",
    *,
    then: Sequence[tuple[str, Mapping[str, Any]]] = (),
    include_prompt: bool = True,
    settings: Mapping[str, Any] | None = None,
    transformer_settings: Mapping[str, Any] | None = None,
    package: str = _PACKAGE,
    dim: int = 384,
) -> Path:
    """Writes a folder and returns it; the transformer's own files are linked to.

    Args:
        folder: where it is written.
        transformer: the folder of the transformer and its tokenizer.
        pooling: the modes of the Pooling; a mapping has the keys of older versions.
        then: kind and configuration of each module after the Pooling. A Dense and a LayerNorm get random weights.
        include_prompt: whether the prompt's tokens are pooled.
        settings: what is in config_sentence_transformers.json.
        transformer_settings: what is in sentence_bert_config.json, in place of the transformer's own.
        package: of the first module.
        dim: the transformer's width.
    """
    folder.mkdir(parents=True)
    for file in transformer.iterdir():
        if file.is_file() and file.name not in {"modules.json", "config_sentence_transformers.json"}:
            (folder / file.name).symlink_to(file)
    kinds = ["Transformer", "Pooling", *(kind for kind, _ in then)]
    modules = [
        {"idx": at, "name": str(at), "path": f"{at}_{kind}" if at else "", "type": f"{_PACKAGE}.{kind}"}
        for at, kind in enumerate(kinds)
    ]
    modules[0]["type"] = f"{package}.Transformer"
    modes = dict(pooling) if isinstance(pooling, Mapping) else {"pooling_mode": pooling}
    pooled: dict[str, Any] = {"word_embedding_dimension": dim, **modes, "include_prompt": include_prompt}
    for at, (kind, config) in enumerate([("Pooling", pooled), *then], start=1):
        inner = folder / f"{at}_{kind}"
        inner.mkdir()
        if config:
            (inner / "config.json").write_text(json.dumps(config))
        weights = _weights(kind, config)
        if weights:
            save_file(weights, inner / "model.safetensors")
    (folder / "modules.json").write_text(json.dumps(modules))
    if transformer_settings is not None:
        (folder / "sentence_bert_config.json").unlink(missing_ok=True)
        (folder / "sentence_bert_config.json").write_text(json.dumps(transformer_settings))
    if settings is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return folder


def dense(width: int, dim: int, activation: str = "torch.nn.modules.activation.Tanh", **more: Any) -> tuple[str, Any]:
    """A Dense from `width` to `dim`."""
    config = {"in_features": width, "out_features": dim, "bias": True, "activation_function": activation}
    return "Dense", {**config, **more}


def _weights(kind: str, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / 8

    if kind == "LayerNorm":
        width = config.get("dimension", 384)
        return {"norm.weight": 1 + random(width), "norm.bias": random(width)}
    if kind != "Dense":
        return {}
    width, dim = config["in_features"], config["out_features"]
    found = {"linear.weight": random(dim, width)} | ({"linear.bias": random(dim)} if config["bias"] else {})
    return found | ({"residual.weight": random(dim, width)} if config.get("use_residual") and width != dim else {})


def save_tiny_encoder(folder: Path, pooling: str = "cls", *, seed: int = 0, **case: Any) -> Path:
    """As `save_encoder`, around a tiny random BERT that is written to a folder beside it; 32 wide."""
    plain = folder.with_name(f"{folder.name}-plain")
    save_checkpoint(plain, seed=seed)
    return save_encoder(folder, plain, pooling, **{"dim": 32, "then": [("Normalize", {})], **case})
