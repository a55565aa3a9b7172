"""Tensors of `.safetensors` files."""

from __future__ import annotations

import json
from pathlib import Path

from cone_kernels.vector_files.mapped import Layout, MappedRows
from cone_kernels.vector_files.reading import Format, Reader, VectorFileError, check_kind, check_shape, chosen

# The names that the format has for the dtypes that are taken.
_KINDS = {
    "F32": "float32",
    "F64": "float64",
    "F16": "float16",
    "BF16": "bfloat16",
    "I8": "int8",
    "U8": "uint8",
}


def open_safetensors(path: Path, field: str | None) -> Reader:
    """A tensor (n, d) of a `.safetensors` file.

    Raises:
        VectorFileError: it is no such file, damaged or cut short, has no such tensor or several, or one of another
            shape or dtype.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:  # checks the header against the size
            names = sorted(file.keys())
    except (SafetensorError, OSError) as error:
        raise VectorFileError(
            f"{path} is not a .safetensors file, or one that is damaged or cut short: {error}"
        ) from error
    with path.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        header = json.loads(raw.read(length))
    found = {name: f"{header[name]['dtype']} of shape {tuple(header[name]['shape'])}" for name in names}
    usable = [name for name in names if len(header[name]["shape"]) == 2 and header[name]["dtype"] in _KINDS]
    name = chosen(field, found, usable, str(path), "tensors")
    where, tensor = f"{path}: tensor {name!r}", header[name]
    rows, dim = check_shape(tensor["shape"], where)
    kind = check_kind(_KINDS.get(tensor["dtype"], tensor["dtype"]), where)
    return MappedRows(path, Layout(rows, dim, kind, 8 + length + tensor["data_offsets"][0]))


FORMATS = {"safetensors": Format(open_safetensors, has_fields=True)}
