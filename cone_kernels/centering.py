"""Opening the cone: mean removal, all-but-the-top and whitening, fitted on a state and applied to vectors."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cone_kernels import metrics
from cone_kernels.names import METHODS, OUTPUT, CenteringMethod, Layer, place
from cone_kernels.ops.arguments import Array, ArrayLike, float_tensor, is_array, like_input
from cone_kernels.ops.top_eigenvectors import top_eigenvectors
from cone_kernels.state import file as state_file
from cone_kernels.state.cone_state import ConeState, Moments

# Whitening divides by the root of an eigenvalue. With this ratio of the smallest to the largest the rounding of float32
# rows (6e-8) grows by a factor of 1e4 at most.
_LEAST_EIGENVALUE = 1e-8
# The status of a row that is not finite; see `Moments.update`.
_NOT_FINITE = 2
_HEADER = ("method", "level", "layer", "dim", "count", "components", "shrinkage", "model")


@dataclass(frozen=True, eq=False)
class Centering:
    """An affine map of vectors that opens the cone of the layer it was fitted on. Two are equal if they map alike.

    Attributes:
        method: "mean", "all-but-the-top" or "whitening".
        level: what it was fitted on, "sentence" or "token".
        layer: the layer's number, or "output".
        count: how many vectors it was fitted on.
        mean: (d,) float64, what is subtracted.
        directions: (k, d) float64 orthonormal rows, what all-but-the-top projects out; None for other methods.
        matrix: (d, d) float64 symmetric, what whitening multiplies by; None for other methods.
        shrinkage: α of whitening, from 0 to 1; None for other methods.
        model: what the state says of the model it was measured on, or None.

    Examples:
        >>> centering = Centering.fit(ConeState.load("minilm.safetensors"), method="all-but-the-top", components=3)
        >>> opened = centering(vectors)  # (..., 384)
    """

    method: CenteringMethod
    level: str
    layer: Layer
    count: int
    mean: Tensor = field(repr=False)
    directions: Tensor | None = field(repr=False)
    matrix: Tensor | None = field(repr=False)
    shrinkage: float | None
    model: dict[str, Any] | str | None = field(repr=False)
    # A memo of copies, which changes nothing that the map gives.
    _casts: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = field(
        init=False, default_factory=dict, repr=False
    )

    @classmethod
    def fit(
        cls,
        state: ConeState | Moments | ArrayLike,
        *,
        layer: Layer | None = None,
        method: CenteringMethod = "mean",
        components: int | None = None,
        shrinkage: float | None = None,
    ) -> Centering:
        """Fits the map on the sums of one layer.

        - "mean": x − m, m the mean of the rows.
        - "all-but-the-top" (Mu & Viswanath 2018): x − m without its part along the top k eigenvectors of the
          covariance C. The part is taken from the centred row, so that the mean of the outcome is 0.
        - "whitening": S^(-1/2)(x − m), S = (1−α)·C + α·(tr C/d)·I. Of all whitening maps this one (ZCA) moves the
          rows least.

        Args:
            state: a `ConeState`, whose sentence level is taken, or `Moments` of either level; all methods but "mean"
                need its second moment. Or the rows themselves, (n, d) in any dtype that `apply` takes; rows of zeros
                have no direction and are left out.
            layer: its number, -1 is the last one of the state; or "output", the vectors that the model itself gives.
                None is the output, or the last layer where the state has none. Rows are "output".
            method: one of the three.
            components: k, 1 to d; all-but-the-top only. Default: d // 100, at least 1, as the paper advises.
            shrinkage: α, 0 to 1; whitening only. Default: the oracle approximating shrinkage for n rows, (Chen et al.
                2010, equation 23, for large d as in scikit-learn), α = (tr C² + tr² C) / ((n+1)(tr C² − tr² C/d)) and
                1 at most. It is best for normal data, falls as 1/n, and needs the sums alone.

        Raises:
            TypeError: the state is neither a state nor rows of a dtype that is taken.
            ValueError: an argument is out of range or not of this method, the state has no second moment or too few
                rows, a row is not finite, or the covariance is too ill-conditioned to whiten with this shrinkage.

        Examples:
            >>> Centering.fit(state, method="whitening", shrinkage=0.1)
            Centering(whitening with shrinkage 0.1, 384 wide, layer 6, from 1,000 sentences)
            >>> Centering.fit(vectors, method="all-but-the-top")
            Centering(all-but-the-top of 3 components, 384 wide, output, from 1,000 sentences)
        """
        check_method(method, components, shrinkage)
        if is_array(state):
            moments = _moments_of(state, layer, second_moment=method != "mean")
            number: Layer = OUTPUT
        else:
            number, moments = _layer_of(state, layer)
        count, needed = int(moments.count.sum()), 1 if method == "mean" else 2
        if count < needed:
            raise ValueError(
                f"state: got {count} vectors at {place(number)}; it must be at least {needed} for method {method!r}"
            )
        if method != "mean" and "second_moment" not in moments.fields:
            raise ValueError(
                f"state: got one without second moments; it must have them (second_moment=True) for method {method!r}"
            )
        directions = matrix = None
        if method == "all-but-the-top":
            directions = _top_directions(moments, components)
        elif method == "whitening":
            covariance = metrics.covariance(moments)[0]
            shrinkage = _oracle_shrinkage(covariance, count) if shrinkage is None else float(shrinkage)
            matrix = _whitening_matrix(covariance, shrinkage)
        model = state.info.get("model") if isinstance(state, ConeState) else None
        mean = metrics.mean_vector(moments)[0]
        return cls(method, moments.level, number, count, mean, directions, matrix, shrinkage, model)

    @property
    def dim(self) -> int:
        """The width d of the vectors."""
        return len(self.mean)

    @property
    def components(self) -> int | None:
        """How many directions all-but-the-top projects out; None for other methods."""
        return None if self.directions is None else len(self.directions)

    def apply(self, x: Array) -> Array:
        """Maps vectors; differentiable for tensors.

        Args:
            x: (..., d) float32, float64, bfloat16 or float16, a tensor on any device or a NumPy array. bfloat16 and
                float16 are computed in float32 and rounded once, at the end.

        Returns:
            (..., d), of the same type, dtype and device.

        Raises:
            TypeError: a type or dtype is not taken.
            ValueError: the width is not d.
        """
        rows, dtype = self._computed(x)
        parts = self._parts_on(rows.device, rows.dtype)
        mapped = rows - parts["mean"]
        if "directions" in parts:
            mapped = mapped - (mapped @ parts["directions"].mT) @ parts["directions"]
        elif "matrix" in parts:
            mapped = mapped @ parts["matrix"]
        result: Array = like_input(mapped.to(dtype), x)
        return result

    def inverse(self, x: Array) -> Array:
        """Maps vectors back: what `apply` mapped to `x`, but for what all-but-the-top projected out; differentiable.

        Args:
            x: (..., d), as of `apply`.

        Returns:
            (..., d), of the same type, dtype and device. What was projected out is that of the mean then.

        Raises:
            TypeError, ValueError: as `apply`.

        Examples:
            >>> torch.testing.assert_close(centering.inverse(centering(vectors)), vectors)
        """
        rows, dtype = self._computed(x)
        parts = self._parts_on(rows.device, rows.dtype)
        if "matrix" in parts:
            rows = rows @ parts["inverse"]
        result: Array = like_input((rows + parts["mean"]).to(dtype), x)
        return result

    def __call__(self, x: Array) -> Array:
        """As `apply`."""
        return self.apply(x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Centering) and self.fingerprint() == other.fingerprint()

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    def __repr__(self) -> str:
        how: str = self.method
        if self.components is not None:
            how += f" of {self.components} component{'s' if self.components > 1 else ''}"
        elif self.shrinkage is not None:
            how += f" with shrinkage {self.shrinkage:.3g}"
        return f"Centering({how}, {self.dim} wide, {place(self.layer)}, from {self.count:,} {self.level}s)"

    def fingerprint(self) -> str:
        """sha256 (hex) of all that `save` writes."""
        return state_file.fingerprint(self._parts(), {"centering": self._header()})

    def save(self, path: str | os.PathLike[str]) -> str:
        """Writes a safetensors file, whole or not at all; returns its fingerprint."""
        return state_file.write(path, self._parts(), {"centering": self._header()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Centering:
        """Reads what `save` wrote.

        Raises:
            OSError: the file cannot be read.
            StateFileError: it is damaged, or not of this kind.
        """
        tensors, info = state_file.read(path, "centering")
        header = _checked_header(path, info["centering"])
        shapes = _tensor_shapes(header["method"], header["dim"], header["components"])
        if sorted(tensors) != sorted(shapes):
            raise state_file.StateFileError(f"{path}: has tensors {sorted(tensors)}; it must have {sorted(shapes)}")
        for name, shape in shapes.items():
            state_file.check_tensor(path, name, tensors[name], shape, torch.float64)
        _check_structure(path, tensors)
        return cls(
            method=header["method"],
            level=header["level"],
            layer=header["layer"],
            count=header["count"],
            mean=tensors["mean"],
            directions=tensors.get("directions"),
            matrix=tensors.get("matrix"),
            shrinkage=header["shrinkage"],
            model=header["model"],
        )

    def _parts(self) -> dict[str, Tensor]:
        parts = {"mean": self.mean, "directions": self.directions, "matrix": self.matrix}
        return {name: part for name, part in parts.items() if part is not None}

    def _header(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _HEADER}

    def _computed(self, x: ArrayLike) -> tuple[Tensor, torch.dtype]:
        """Rows in the dtype that they are computed in, and the dtype that they came in."""
        rows = float_tensor("x", x, 1, "(..., d)")
        if rows.shape[-1] != self.dim:
            raise ValueError(f"x: got width {rows.shape[-1]}; it must be {self.dim}, as the centering was fitted on")
        return rows.to(torch.float64 if rows.dtype == torch.float64 else torch.float32), rows.dtype

    def _parts_on(self, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors that rows are computed with; of a matrix its inverse too."""
        key = (device, dtype)
        if key not in self._casts:
            parts = self._parts()
            # A tensor made under inference mode could be in no later backward pass.
            with torch.inference_mode(False):
                if self.matrix is not None:
                    parts["inverse"] = torch.linalg.inv(self.matrix)
                self._casts[key] = {name: part.to(device, dtype) for name, part in parts.items()}
        return self._casts[key]


def _moments_of(rows: ArrayLike, layer: Layer | None, *, second_moment: bool) -> Moments:
    """The sums of rows (n, d), on the CPU."""
    if layer is not None:
        raise ValueError(f"layer: got {layer!r} with rows; it must be None, for rows are of no layer")
    x = float_tensor("state", rows, 2, "(n, d)")
    if x.dim() != 2:
        raise ValueError(f"state: got rows of shape {tuple(x.shape)}; it must be (n, d)")
    moments = Moments.empty("sentence", [0], x.shape[1], second_moment=second_moment, device=x.device)
    (bad,) = torch.nonzero(moments.update(x)[0] == _NOT_FINITE, as_tuple=True)
    if len(bad):
        raise ValueError(
            f"state: got {len(bad)} rows that are not finite, the first is row {int(bad[0])}; it must have none"
        )
    return moments.on_cpu()


def _layer_of(state: ConeState | Moments, layer: Layer | None) -> tuple[Layer, Moments]:
    """The layer that is meant, and its sums on the CPU."""
    if not isinstance(state, (ConeState, Moments)):
        raise TypeError(
            f"state: got {type(state).__name__}; it must be a ConeState, Moments, or rows as a torch.Tensor or a "
            "numpy.ndarray"
        )
    output = state.output if isinstance(state, ConeState) else None
    if layer == OUTPUT or (layer is None and output is not None):
        if output is None:
            raise ValueError(f"layer: got {OUTPUT!r}; it must be a number, for the state has no output")
        return OUTPUT, output.on_cpu()
    level = state.sentence if isinstance(state, ConeState) else state
    asked = -1 if layer is None else layer
    moments = level.select(level.layers[asked] if -len(level.layers) <= asked < 0 else asked).on_cpu()
    return moments.layers[0], moments


def check_method(method: str, components: int | None, shrinkage: float | None) -> None:
    """Raises ValueError for an unknown method, and for an option that is out of range or not of this method."""
    if method not in list(METHODS):  # which may be anything, hashable or not
        raise ValueError(f"method: got {method!r}; it must be one of {', '.join(METHODS)}")
    if components is not None and method != "all-but-the-top":
        raise ValueError(
            f"components: got {components}; it must be None for method {method!r}, as only 'all-but-the-top' has them"
        )
    if components is not None and components < 1:
        raise ValueError(f"components: got {components}; it must be at least 1")
    if shrinkage is not None and method != "whitening":
        raise ValueError(
            f"shrinkage: got {shrinkage}; it must be None for method {method!r}, as only 'whitening' has one"
        )
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage: got {shrinkage}; it must be from 0 to 1")


def _top_directions(moments: Moments, components: int | None) -> Tensor:
    """(k, d), orthonormal."""
    k = max(1, moments.dim // 100) if components is None else components
    if not 1 <= k <= moments.dim:
        raise ValueError(f"components: got {k}; it must be from 1 to the width {moments.dim}")
    found = top_eigenvectors(covariance=metrics.covariance(moments)[0], k=k)
    directions: Tensor = found.vectors
    if not float(found.values[0]) > 0:
        raise ValueError("state: all its vectors are alike, so there is no direction in which they vary")
    return directions


def _oracle_shrinkage(covariance: Tensor, count: int) -> float:
    trace, squares = float(covariance.trace()), float(covariance.square().sum())
    over_sphere = squares - trace**2 / len(covariance)
    return min(1.0, (squares + trace**2) / ((count + 1) * over_sphere)) if over_sphere > 0 else 1.0


def _whitening_matrix(covariance: Tensor, shrinkage: float) -> Tensor:
    """S^(-1/2) of the shrunk covariance S."""
    d = len(covariance)
    variance = float(covariance.trace()) / d
    if not variance > 0:
        raise ValueError("state: all its vectors are alike, so there is no covariance to whiten")
    values, vectors = torch.linalg.eigh(covariance)
    # Shrinking moves eigenvalues alone; done on them, S keeps the eigenvectors of C to the last bit.
    values = (1 - shrinkage) * values + shrinkage * variance
    ratio = float(values[0] / values[-1])
    if not ratio >= _LEAST_EIGENVALUE:
        raise ValueError(
            f"shrinkage: got {shrinkage:g}; the smallest eigenvalue of the covariance is {ratio:.0e} of its largest "
            f"then, and whitening would blow up rounding; it must be {_LEAST_EIGENVALUE:.0e} or more, so shrink more"
        )
    matrix: Tensor = (vectors * values.rsqrt()) @ vectors.mT
    return (matrix + matrix.mT) / 2


def _checked_header(path: str | os.PathLike[str], header: Any) -> Mapping[str, Any]:
    """The header of a file, after its types and ranges have been checked."""
    if not isinstance(header, dict) or set(header) != set(_HEADER):
        raise state_file.StateFileError(
            f"{path}: header: got {header!r:.200}; it must be an object with {sorted(_HEADER)}"
        )
    method, dim, components, shrinkage = (header[name] for name in ("method", "dim", "components", "shrinkage"))
    whole = all(type(header[name]) is int for name in ("dim", "count"))
    whole = whole and (type(header["layer"]) is int or header["layer"] == OUTPUT)
    is_number = type(shrinkage) in (int, float) and math.isfinite(shrinkage)
    wrong = {
        "method": method not in list(METHODS),
        "level": header["level"] not in ("sentence", "token"),
        "layer, dim, count": not whole or dim < 1 or header["count"] < 1,
        "components": type(components) is not (int if method == "all-but-the-top" else type(None)),
        "shrinkage": not (is_number and 0 <= shrinkage <= 1) if method == "whitening" else shrinkage is not None,
        "model": not isinstance(header["model"], (dict, str, type(None))),
    }
    found = [name for name, is_wrong in wrong.items() if is_wrong]
    if not found and type(components) is int and not 1 <= components <= dim:
        found = ["components"]
    if found:
        got = {name: header[name] for names in found for name in names.split(", ")}
        raise state_file.StateFileError(f"{path}: header: got {got!r:.200}; no centering has such values")
    return header


def _tensor_shapes(method: str, dim: int, components: int | None) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"mean": (dim,)}
    if components is not None:
        shapes["directions"] = (components, dim)
    elif method == "whitening":
        shapes["matrix"] = (dim, dim)
    return shapes


def _check_structure(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    directions, matrix = tensors.get("directions"), tensors.get("matrix")
    if directions is not None:
        identity = torch.eye(len(directions), dtype=torch.float64)
        if not torch.allclose(directions @ directions.mT, identity, rtol=0, atol=1e-8):
            raise state_file.StateFileError(f"{path}: its directions are not orthonormal")
    if matrix is not None and not torch.equal(matrix, matrix.mT):
        raise state_file.StateFileError(f"{path}: its matrix is not symmetric")
