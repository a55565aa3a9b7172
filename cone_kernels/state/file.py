"""State files: safetensors with a JSON header and a sha256 over everything; written whole or not at all.

No pickle. What is read is checked first: fingerprint, names, shapes, dtypes and ranges.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cone_kernels.files import write_whole

SCHEMA = "cone_kernels/state/1"

# Of the tensors of any of the files; of others NumPy has no bytes.
_DTYPES = {torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool}
_LARGEST = 2**31 - 1  # number of a layer, or width

# What a key of the header says of a file: named in the message where another kind of file is needed.
_KINDS = {
    "state": "the state of a whole run (such states are added up by ConeState.merge)",
    "partial": "a part of a run (`cone merge` makes a state of all its parts)",
}


class StateFileError(ValueError):
    """A file is no state file, or a damaged one; the message says in which respect."""


def fingerprint(tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> str:
    """sha256 (hex) over the header and every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps([SCHEMA, info], sort_keys=True, allow_nan=False).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    info: Mapping[str, Any],
    *,
    previous: str | os.PathLike[str] | None = None,
) -> str:
    """Writes aside, syncs and renames, so that `path` is the old file or the new one; returns the sha256.

    The old file is kept as `previous`, where that is given.
    """
    sha256 = fingerprint(tensors, info)
    metadata = {"schema": SCHEMA, "info": json.dumps(info, sort_keys=True, allow_nan=False), "sha256": sha256}
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)
    write_whole(path, _in_order(content), previous=previous)
    return sha256


def _in_order(content: bytes) -> bytes:
    """The file with its metadata sorted, so that equal states are equal files; safetensors orders it at random."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors stay aligned
    return b"".join((len(encoded).to_bytes(8, "little"), encoded, memoryview(content)[end:]))


def read(
    path: str | os.PathLike[str], *keys: str, optional: Sequence[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the header, whose fingerprint holds and which has exactly these keys.

    The keys of `optional` may be there too.

    Raises:
        StateFileError: the file is no safetensors file, of another schema, or its content is not what was written.
        OSError: it cannot be read.
    """
    if Path(path).is_dir():
        raise StateFileError(f"{path}: is a folder; it must be a file that save has written")
    Path(path).stat()  # a missing file is an OSError, not a damaged state
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise StateFileError(f"{path}: not a readable safetensors file ({error})") from error
    if metadata.get("schema") != SCHEMA:
        raise StateFileError(f"{path}: got schema {metadata.get('schema')!r}; it must be {SCHEMA!r}")
    try:
        info = json.loads(metadata.get("info", ""), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # too deep, a number too long, NaN
        raise StateFileError(f"{path}: its header is not JSON ({error})") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise StateFileError(f"{path}: {name} is of {tensor.dtype}, which no state file has")
    if not isinstance(info, dict) or sorted(set(info) - set(optional)) != sorted(keys):
        got = sorted(info) if isinstance(info, dict) else type(info).__name__
        for key in set(info) & set(_KINDS) - set(keys) if isinstance(info, dict) else ():
            got = f"{got}, which is {_KINDS[key]}"
        raise StateFileError(f"{path}: got a header of {got}; it must be {sorted(keys)}")
    sha256 = fingerprint(tensors, info)
    if metadata.get("sha256") != sha256:
        raise StateFileError(f"{path}: its content has sha256 {sha256}, its header says {metadata.get('sha256')}")
    return tensors, info


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def checked_identity(
    path: str | os.PathLike[str],
    identity: Any,
    level_fields: Mapping[str, Sequence[str]],
    optional_fields: Sequence[str],
) -> tuple[str, tuple[int, ...], int, list[str]]:
    """Level, layers, width and fields of a state, from a file's header, which is checked first."""
    expected = {"level": str, "layers": list, "dim": int, "fields": list}
    if not isinstance(identity, dict) or set(identity) != set(expected):
        raise StateFileError(f"{path}: header: got {identity!r}; it must be an object with {sorted(expected)}")
    for key, kind in expected.items():
        if type(identity[key]) is not kind:
            raise StateFileError(f"{path}: {key} is {identity[key]!r}; it must be of type {kind.__name__}")
    level, layers, dim, fields = (identity[key] for key in expected)
    if level not in level_fields:
        raise StateFileError(f"{path}: level is {level!r}; it must be one of {sorted(level_fields)}")
    if len(set(map(str, layers))) != len(layers) or not all(type(n) is int and abs(n) <= _LARGEST for n in layers):
        raise StateFileError(f"{path}: layers are {layers!r:.200}; they must be distinct integers")
    if not 1 <= dim <= _LARGEST:
        raise StateFileError(f"{path}: dim is {dim!r:.80}; it must be 1 or more")
    required = list(level_fields[level])
    missing = [field for field in required if field not in fields]
    if missing:
        raise StateFileError(
            f"{path}: fields are {fields}; {', '.join(missing)} must be there too. A state that was saved before the "
            "sums had them must be measured again"
        )
    if fields[: len(required)] != required or fields[len(required) :] != [f for f in optional_fields if f in fields]:
        raise StateFileError(f"{path}: fields are {fields}; they must be {required} and any of {list(optional_fields)}")
    return level, tuple(layers), dim, fields


def check_tensor(
    path: str | os.PathLike[str], name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Raises StateFileError unless the tensor is of this shape and dtype, finite, and a count not negative."""
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        got = f"shape {tuple(tensor.shape)} and dtype {tensor.dtype}"
        raise StateFileError(f"{path}: {name} has {got}; it must have {shape} and {dtype}")
    if dtype == torch.int64 and bool((tensor < 0).any()):
        raise StateFileError(f"{path}: {name} has a negative count")
    if not bool(tensor.isfinite().all()):
        raise StateFileError(f"{path}: {name} has values that are not finite")
