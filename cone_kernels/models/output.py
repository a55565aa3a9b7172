"""What a model of sentence-transformers makes of its last hidden states: the vectors that its `encode` gives.

The modules are computed here, because importing sentence-transformers takes longer than measuring a small corpus; the
tests hold them to what `SentenceTransformer.encode` gives. Its page "Creating Custom Models" lists the modules. Where
padding changes what a model makes of a sentence (absolute positions, padded on the left), `encode` depends on which
sentences share a batch; the vectors here are those of each sentence alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cone_kernels.centering import Centering
from cone_kernels.files import sha256_of
from cone_kernels.models.source import ModelError, NoOutputError, Source, inside
from cone_kernels.state.poolings import pool

# The modes of a Pooling and what they are here; `mean_sqrt_len_tokens` is the mean times the root of the length.
_MODES = {
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean",
    "cls": "cls",
    "max": "max",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
# Keys of older folders, in the order in which their vectors are put side by side.
_OLD_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_VECTORS = "sentence_embedding"


@dataclass(frozen=True)
class Output:
    """From last hidden states to sentence vectors.

    Attributes:
        modules: the names of all modules, the transformer first.
        modes: of the Pooling, in its names; their vectors are put side by side.
        steps: the modules after it, each from vectors (B, d) to vectors (B, d').
        full_dim: the width of what the last module gives.
        skipped: tokens at the beginning of a sentence that are not pooled: the prompt, where the folder says so.
        truncate_dim: of the vectors so many first dimensions are kept; None keeps all.
        weights_sha256: of the modules' own weights; None where they have none.
    """

    modules: tuple[str, ...]
    modes: tuple[str, ...]
    steps: tuple[nn.Module, ...]
    full_dim: int
    skipped: int = 0
    truncate_dim: int | None = None
    weights_sha256: str | None = None

    @property
    def pooling(self) -> str:
        """How it pools, in the names of `cone_kernels.names.POOLINGS`; several are joined by +."""
        return "+".join(_our_name(name) for name in self.modes)

    def vectors(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The vectors of a batch.

        Args:
            hidden: (B, T, D) last hidden states.
            mask: (B, T) bool: 1 = a token of the sentence; padding follows the tokens.

        Returns:
            (B, dim) float32, or float64 for float64 input; NaN for a sentence without a token that is pooled.

        Examples:
            >>> load_model("sentence-transformers/all-MiniLM-L6-v2").output.vectors(hidden, mask).norm(dim=1)
        """
        if self.skipped:
            mask = mask.clone()
            mask[:, : self.skipped] = False
        pooled = [self._pooled(hidden, mode, mask) for mode in self.modes]
        # As `encode` does: what is summed is summed in float32, and each module computes in the model's own type.
        found = torch.cat(pooled, dim=1).to(hidden.dtype)
        for step in self.steps:
            found = step(found)
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        return found[:, : self.truncate_dim].to(dtype)

    def _pooled(self, hidden: Tensor, mode: str, mask: Tensor) -> Tensor:
        """(B, D) of the tokens under the mask."""
        vectors = pool(hidden, _MODES[mode], mask)
        if mode not in {"mean_sqrt_len_tokens", "weightedmean"} or (mode == "weightedmean" and not self.skipped):
            return vectors
        tokens = mask.sum(1, keepdim=True).to(vectors.dtype)  # (B, 1)
        if mode == "mean_sqrt_len_tokens":
            return vectors * tokens.sqrt()
        # Tokens keep the weights that they have with the prompt before them: rank + skipped.
        ranks, before = tokens * (tokens + 1) / 2, tokens * self.skipped
        return (vectors * ranks + pool(hidden, "mean", mask) * before) / (ranks + before)

    @property
    def normalized(self) -> bool:
        """Whether the vectors have length 1."""
        return self.modules[-1] == "Normalize" and self.dim == self.full_dim

    def truncated(self, truncate_dim: int) -> Output:
        """The same with so many first dimensions kept, whatever the folder says.

        Raises:
            ModelError: it is not from 1 to the width of what the modules give.
        """
        if not 1 <= truncate_dim <= self.full_dim:
            raise ModelError(f"truncate_dim: got {truncate_dim}; it must be from 1 to {self.full_dim}, the whole width")
        return replace(self, truncate_dim=truncate_dim)

    @property
    def is_plain_mean(self) -> bool:
        """Whether the vectors are the means of the last hidden states and nothing more."""
        return self.modes == ("mean",) and not (self.steps or self.skipped) and self.dim == self.full_dim

    @property
    def dim(self) -> int:
        """The width of the vectors."""
        return self.full_dim if self.truncate_dim is None else min(self.full_dim, self.truncate_dim)

    def to_dict(self) -> dict[str, Any]:
        """What the output is, as JSON data."""
        found = {"modules": list(self.modules), "pooling": self.pooling, "dim": self.dim}
        if self.skipped:
            found["include_prompt"] = False
        return found | ({"weights_sha256": self.weights_sha256} if self.weights_sha256 else {})


def _our_name(pooling: str) -> str:
    return pooling if pooling == "mean_sqrt_len_tokens" else _MODES[pooling]


def output_of_folder(
    source: Source,
    listed: Sequence[tuple[str, str]],
    like: Tensor,
    hidden_size: int,
    *,
    static: bool = False,
    prompt_length: Callable[[], int],
    truncate_dim: int | None,
) -> Output:
    """The output that a folder of sentence-transformers describes.

    Args:
        source: its files.
        listed: the modules of its modules.json: class and subfolder of each, the transformer first.
        like: a weight of the transformer; the modules compute where that is, and in its type.
        hidden_size: D, the width of the last hidden states.
        static: a table of token vectors is in place of the transformer, which pools by the mean itself.
        prompt_length: gives how many tokens the prompt has; called where the folder leaves it out of the pooling.
        truncate_dim: as in `Output`.

    Raises:
        NoOutputError: a module is not known here, or is not where it usually is.
        ModelError: a module's files are damaged, or missing.
    """
    names = tuple(kind.rpartition(".")[2] for kind, _ in listed)
    modes, left_out = (("mean",), 0) if static else _pooling(source, listed, prompt_length)
    dim = len(modes) * hidden_size
    steps: list[nn.Module] = []
    weights: list[Path] = []
    for kind, subfolder in listed[1 if static else 2 :]:
        name = _short(kind)
        if name not in _STEPS:
            raise NoOutputError(f"this tool does not know its module {kind}")
        step, width = _made(_STEPS[name], source, subfolder, dim)
        weights_in = [one for key, one in step.named_parameters() if key in {"linear.weight", "norm.weight"}]
        if any(weight.shape[-1] != dim for weight in weights_in):
            raise ModelError(f"model: {subfolder} of {source.name} does not take vectors {dim} wide")
        dim = width
        weights += source.weights(subfolder)
        steps.append(step.to(like.device, like.dtype).eval())
    sha256 = sha256_of(*weights) if weights else None
    return Output(names, modes, tuple(steps), dim, left_out, truncate_dim, sha256)


def _pooling(
    source: Source, listed: Sequence[tuple[str, str]], prompt_length: Callable[[], int]
) -> tuple[tuple[str, ...], int]:
    """The modes of the Pooling that follows the transformer, and how many tokens it skips."""
    if len(listed) < 2 or _short(listed[1][0]) != "Pooling":
        followed = f"its {listed[1][0].rpartition('.')[2]}" if len(listed) > 1 else "nothing"
        raise NoOutputError(f"{followed} follows the transformer, where this tool knows a Pooling alone")
    if source.file(inside(listed[1][1], "config.json")) is None:
        raise NoOutputError(f"its {inside(listed[1][1], 'config.json')}, which says how it pools, is missing")
    config = _config(source, listed[1][1])
    return pooled_tokens(_modes(config), bool(config.get("include_prompt", True)), prompt_length)


def _short(kind: str) -> str:
    """The name of a module of sentence-transformers itself, which has moved between its versions; else the whole."""
    package, _, name = kind.rpartition(".")
    return name if package.partition(".")[0] == "sentence_transformers" else kind


def _config(source: Source, subfolder: str) -> dict[str, Any]:
    found = source.json(inside(subfolder, "config.json"))
    if not isinstance(found, dict):
        raise ModelError(f"model: {inside(subfolder, 'config.json')} of {source.name} is missing, or no object")
    return found


def _modes(config: dict[str, Any]) -> str | Sequence[str]:
    """How the Pooling of a folder pools; those from before there was a choice pool by the mean."""
    old = [mode for key, mode in _OLD_KEYS.items() if config.get(key, False)]
    found: str | Sequence[str] = config.get("pooling_mode") or old or "mean"
    return found


def pooled_tokens(
    modes: str | Sequence[str], include_prompt: bool, prompt_length: Callable[[], int]
) -> tuple[tuple[str, ...], int]:
    """The modes of an `Output`, and how many tokens it skips.

    Args:
        modes: of the Pooling.
        include_prompt: whether it pools the tokens of the prompt.
        prompt_length: gives how many they are; called where they are not pooled.

    Raises:
        NoOutputError: a mode is not known here.
    """
    named = (modes,) if isinstance(modes, str) else tuple(modes)
    unknown = [mode for mode in named if mode not in _MODES]
    if unknown:
        raise NoOutputError(f"this tool does not know its pooling {', '.join(map(str, unknown))}")
    return named, 0 if include_prompt else prompt_length()


def _made(make: _Step, source: Source, subfolder: str, dim: int) -> tuple[nn.Module, int]:
    try:
        return make(source, subfolder, dim)
    except ModelError:
        raise
    # A configuration that lacks a key or has other types fails in many ways; the layers are there all the same.
    except Exception as error:
        raise NoOutputError(f"its module {subfolder} cannot be made: {type(error).__name__}: {error}") from error


_Step = Callable[[Source, str, int], tuple[nn.Module, int]]


class _Dense(nn.Module):
    """An activation of a linear map, with the vectors themselves added where the folder says so."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, dim, residual = config["in_features"], config["out_features"], bool(config.get("use_residual", False))
        self.linear = nn.Linear(width, dim, bias=bool(config.get("bias", True)))
        if residual and width != dim:
            self.residual = nn.Linear(width, dim, bias=False)
        self._adds = residual
        # Its weights, where it has some, have this name in the folder.
        self.activation_function = _activation(
            str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
        )

    def forward(self, vectors: Tensor) -> Tensor:
        mapped: Tensor = self.activation_function(self.linear(vectors))
        if not self._adds:
            return mapped
        added: Tensor = self.residual(vectors) if hasattr(self, "residual") else vectors
        return mapped + added


class _Centered(nn.Module):
    """What a `CenteringModule` of this package does."""

    def __init__(self, centering: Centering) -> None:
        super().__init__()
        self._centering = centering

    def forward(self, vectors: Tensor) -> Tensor:
        mapped: Tensor = self._centering(vectors)
        return mapped


class _Normalize(nn.Module):
    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=-1)


def _activation(named: str) -> nn.Module:
    """A class of torch by its name: the only ones that a folder can have run without code of its own."""
    module, _, name = named.rpartition(".")
    found = getattr(import_module(module), name, None) if named.startswith("torch.nn.") else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise NoOutputError(f"its Dense has the activation {named}, which is no module of torch.nn")
    return found()


def _dense(source: Source, subfolder: str, dim: int) -> tuple[nn.Module, int]:
    config = _of_vectors(source, subfolder)
    return _filled(_Dense(config), source, subfolder), int(config["out_features"])


def _normalize(source: Source, subfolder: str, dim: int) -> tuple[nn.Module, int]:
    # Older folders have no file for it.
    if source.file(inside(subfolder, "config.json")) is not None:
        _of_vectors(source, subfolder)
    return _Normalize(), dim


def _layer_norm(source: Source, subfolder: str, dim: int) -> tuple[nn.Module, int]:
    norm = nn.Sequential()
    norm.add_module("norm", nn.LayerNorm(int(_config(source, subfolder)["dimension"])))
    return _filled(norm, source, subfolder), dim


def _centered(source: Source, subfolder: str, dim: int) -> tuple[nn.Module, int]:
    file = source.file(inside(subfolder, "centering.safetensors"))
    if file is None:
        raise ModelError(f"model: {subfolder} of {source.name} has no centering.safetensors")
    centering = Centering.load(file)
    if centering.dim != dim:
        raise ModelError(f"model: {subfolder} of {source.name} does not take vectors {dim} wide")
    return _Centered(centering), dim


def _dropout(source: Source, subfolder: str, dim: int) -> tuple[nn.Module, int]:
    return nn.Identity(), dim


_STEPS: dict[str, _Step] = {
    "Dense": _dense,
    "Normalize": _normalize,
    "LayerNorm": _layer_norm,
    "Dropout": _dropout,
    "cone_kernels.integrations.sentence_transformers.CenteringModule": _centered,
}
"""What makes the module of each name that may follow the Pooling: of the width of what it takes; with that of what it
gives."""


def _of_vectors(source: Source, subfolder: str) -> dict[str, Any]:
    """The configuration of a module that must take and give the sentence vectors."""
    config = _config(source, subfolder)
    for key in ("module_input_name", "module_output_name"):
        if config.get(key, _VECTORS) not in (_VECTORS, None):
            raise NoOutputError(f"its module {subfolder} has {key} {config[key]!r}, where this tool knows {_VECTORS}")
    return config


def _filled(step: nn.Module, source: Source, subfolder: str) -> nn.Module:
    """The module with the weights of its folder."""
    weights: dict[str, Tensor] = {}
    for file in source.weights(subfolder):
        found = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        weights |= found
    try:
        step.load_state_dict(weights)
    except RuntimeError as error:
        what = str(error).splitlines()[-1].strip()
        raise ModelError(f"model: the weights of {subfolder} in {source.name} do not fit: {what}") from None
    return step
