"""What of a `ConeState` is in a file, and the checks of a file before a state is made of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cone_kernels.names import POOLINGS
from cone_kernels.state import file as state_file
from cone_kernels.state.moments import Moments

OPTIONAL_KEYS = ("poolings", "pooling", "output")
"""Keys of the header that a file has only where they say something: states without them are files as they ever were."""

_POOLING = "poolings."


class Parts(NamedTuple):
    """The parts of a `ConeState` that are tensors, by the names of its fields, and what its sentence vectors are."""

    sentence: Moments
    token: Moments
    first_left_out: Tensor  # (L, 8) int64
    poolings: dict[str, Moments]
    pooling: str = "mean"
    output: Moments | None = None

    def file_content(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors by name, and the header but for the state's `info`."""
        named = {"sentence": self.sentence, "token": self.token} | {
            _POOLING + name: moments for name, moments in self.poolings.items()
        }
        header: dict[str, Any] = {"sentence": self.sentence.identity(), "token": self.token.identity()}
        if self.poolings:
            header["poolings"] = {name: moments.identity() for name, moments in self.poolings.items()}
        if self.pooling != "mean":
            header["pooling"] = self.pooling
        if self.output is not None:
            named["output"] = self.output
            header["output"] = self.output.identity()
        tensors = {f"{key}.{name}": value for key, part in named.items() for name, value in part.sums.items()}
        return tensors | {"first_left_out": self.first_left_out}, header


def parts_of_file(path: str | os.PathLike[str], tensors: dict[str, Tensor], info: Mapping[str, Any]) -> Parts:
    """The parts that a file's tensors and header are.

    Args:
        path: named in errors.
        tensors: of the file, by name; those of the parts are taken out.
        info: the header.

    Raises:
        StateFileError: they are not those of a state.
    """
    if not isinstance(info["state"], dict):
        raise state_file.StateFileError(f"{path}: state is {info['state']!r}; it must be an object")
    pooling = info.get("pooling", "mean")
    if not isinstance(pooling, str) or pooling not in POOLINGS or ("pooling" in info and pooling == "mean"):
        raise state_file.StateFileError(
            f"{path}: pooling is {pooling!r}; it must be one of {', '.join(POOLINGS)}, and the mean is not written"
        )
    output = {"output": info["output"]} if "output" in info else {}
    identities = {"sentence": info["sentence"], "token": info["token"]} | _pooling_identities(path, info) | output
    left_out = tensors.pop("first_left_out", torch.empty(0, device="cpu"))
    parts = {}
    for key, identity in identities.items():
        names = [name for name in tensors if name.rpartition(".")[0] == key]
        own = {name.rpartition(".")[2]: tensors.pop(name) for name in names}
        parts[key] = Moments.restore(path, own, identity)
    found = Parts(parts.pop("sentence"), parts.pop("token"), left_out, {}, pooling, parts.pop("output", None))._replace(
        poolings={key.removeprefix(_POOLING): part for key, part in parts.items()}
    )
    _check(path, found)
    if tensors:
        raise state_file.StateFileError(f"{path}: has tensors {sorted(tensors)} that belong to nothing")
    return found


def _check(path: str | os.PathLike[str], parts: Parts) -> None:
    sentence, token, output = parts.sentence, parts.token, parts.output
    if sentence.level != "sentence" or token.level != "token":
        levels = f"sentence: {sentence.level}, token: {token.level}"
        raise state_file.StateFileError(f"{path}: its parts are of the wrong levels ({levels})")
    poolings = {_POOLING + name: part for name, part in parts.poolings.items()}
    for key, part in {"token": token, **poolings}.items():
        if (part.layers, part.dim) != (sentence.layers, sentence.dim):
            raise state_file.StateFileError(f"{path}: {key} and sentence differ in layers or width")
    if not sentence.layers and (output is None or output.dim != sentence.dim):
        raise state_file.StateFileError(f"{path}: has no layers; it must have some, or an output as wide as it says")
    if output is not None and (output.level, output.layers) != ("sentence", (0,)):
        got = f"level {output.level} and layers {output.layers}"
        raise state_file.StateFileError(f"{path}: output has {got}; it must have level sentence and the layer 0")
    state_file.check_tensor(path, "first_left_out", parts.first_left_out, (len(sentence.layers), 8), torch.int64)


def _pooling_identities(path: str | os.PathLike[str], info: Mapping[str, Any]) -> dict[str, Any]:
    if "poolings" not in info:
        return {}
    found = info["poolings"]
    known = [name for name in POOLINGS if name != "mean"]
    if not isinstance(found, dict) or not found or not set(found) <= set(known):
        got = sorted(found) if isinstance(found, dict) else found
        raise state_file.StateFileError(f"{path}: poolings are {got}; they must be of {known}")
    for name, identity in found.items():
        level = identity.get("level") if isinstance(identity, dict) else None
        if level != "sentence":
            raise state_file.StateFileError(f"{path}: the pooling {name} is of level {level!r}; it must be 'sentence'")
    return {_POOLING + name: found[name] for name in POOLINGS if name in found}
