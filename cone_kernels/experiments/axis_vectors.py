"""The directions that `cone axis` finds, as a file: safetensors with a sha256, written whole or not at all."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from cone_kernels.state import file as state_file


@dataclass(frozen=True, eq=False)
class AxisVectors:
    """The axes of one layer of one model over one corpus; all float64, width d.

    Attributes:
        centered: (k, d) unit eigenvectors of the covariance, one a row.
        eigenvalues: (k,) their eigenvalues, descending.
        mean: (d,) the mean of the sentence vectors.
        mean_direction: (d,) the mean at length 1; zeros where the mean is zero.
        uncentered: (d,) the top eigenvector of Σxxᵀ/n.
        info: JSON data: model (name, architecture, weights_sha256), layer, layer_name, sentences, corpus_fingerprint.

    Examples:
        >>> vectors = AxisVectors.load("axis.safetensors")
        >>> projections = (x - vectors.mean) @ vectors.centered.T  # (n, d) -> (n, k)
    """

    centered: Tensor
    eigenvalues: Tensor
    mean: Tensor
    mean_direction: Tensor
    uncentered: Tensor
    info: dict[str, Any]

    def save(self, path: str | os.PathLike[str]) -> str:
        """Writes the file; returns the sha256 that it carries."""
        return state_file.write(path, self._tensors(), {"axis": self.info})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AxisVectors:
        """Reads what `save` wrote.

        Raises:
            OSError: the file cannot be read.
            StateFileError: it is damaged, or not of this kind.
        """
        tensors, info = state_file.read(path, "axis")
        wanted = sorted(field.name for field in fields(cls) if field.name != "info")
        if sorted(tensors) != wanted or not isinstance(info["axis"], dict):
            raise state_file.StateFileError(f"{path}: has tensors {sorted(tensors)}; it must have {wanted}")
        if tensors["centered"].dim() != 2:
            shape = tuple(tensors["centered"].shape)
            raise state_file.StateFileError(f"{path}: centered has shape {shape}; it must be (k, d)")
        k, d = tensors["centered"].shape
        shapes = dict.fromkeys(wanted, (d,)) | {"centered": (k, d), "eigenvalues": (k,)}
        for name, shape in shapes.items():
            state_file.check_tensor(path, name, tensors[name], shape, torch.float64)
        return cls(**tensors, info=info["axis"])

    def _tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "info"}
