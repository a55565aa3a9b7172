"""Second moments and covariances of rows, accurate when the mean is far from zero."""

from __future__ import annotations

import torch
from torch import Tensor

from cone_kernels import backends
from cone_kernels.ops.arguments import (
    Array,
    ArrayLike,
    as_tensor,
    dtype_name,
    flatten_batch,
    float_tensor,
    like_input,
    require_device,
    traced,
)
from cone_kernels.ops.gradients import refuse_backward
from cone_kernels.sums import symmetric


def second_moment(
    x: Array,
    *,
    center: bool = False,
    row_scale: ArrayLike | None = None,
    pilot: ArrayLike | None = None,
    backend: str = "auto",
) -> Array:
    """Σ x xᵀ of the rows of `x`, or their covariance.

    The rows less a pilot vector are multiplied (float32 rows in float32 over at most 128 rows, then float64), and the
    pilot is put back in float64, so that a large mean costs no digits of the covariance. Rows are the observations, as
    in scikit-learn; `torch.cov` has them in columns: `second_moment(x, center=True)` is `torch.cov(x.mT)`. It has
    no gradient: a backward raises.

    Args:
        x: (..., n, d) float32, float64, bfloat16 or float16; leading dimensions are batch dimensions. Any strides.
        center: return the covariance Σ(x−m)(x−m)ᵀ/(n−1), m the mean of the rows, instead of the plain sum.
        row_scale: (..., n), each row is multiplied by it first: 1/‖x‖ gives Σ u uᵀ of the unit rows.
        pilot: (..., d) or (d,), any vector near the mean of the (scaled) rows: it decides the rounding and nothing
            else. Default the mean if `center`, else zero.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        (..., d, d) float64, symmetric. NaN if `center` and n < 2: there is no covariance. A row that is not finite
        leaves its columns not finite. A NumPy array for a NumPy array.

    Raises:
        TypeError: a dtype or type is not taken.
        ValueError: a shape, device or value is not as above.
        BackendUnavailable: the backend asked for cannot run here.

    Examples:
        >>> second_moment(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[10., 14.],
                [14., 20.]], dtype=torch.float64)
    """
    rows = float_tensor("x", x, 2, "(..., n, d)")
    *batch, n, d = rows.shape
    scale = None if row_scale is None else _float64("row_scale", row_scale, (*batch, n), rows.device)
    if pilot is not None:
        pilot = as_tensor("pilot", pilot)
        pilot = _float64("pilot", pilot.expand(*batch, d) if pilot.shape == (d,) else pilot, (*batch, d), rows.device)
    chosen = backends.resolve(backend, rows.device, "second_moment")
    compute = _second_moment if any(traced(given) for given in (rows, scale, pilot) if given is not None) else _moment
    result: Array = like_input(compute(rows, center, scale, pilot, chosen.value), x)
    return result


def second_moment_(
    moment: Tensor,
    x: Tensor,
    *,
    use: Tensor | None = None,
    weights: Tensor | None = None,
    pilot: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """Adds Σ x xᵀ of the rows of x to the upper triangle of `moment`.

    Args:
        moment: (L, d, d) contiguous float64.
        x: (L, n, d) as in `second_moment`.
        use: (L, n) bool, the rows to take; None: all.
        weights: (L, n), each row is multiplied by its weight first; None: 1.
        pilot: (L, d), any vector near the mean of the rows; None: zero.
        backend: as in `second_moment`.

    Raises:
        TypeError: weights or pilot are not floating.
        ValueError: a shape, dtype or device is not as above.
        BackendUnavailable: the backend asked for cannot run here.
    """
    if moment.dtype != torch.float64 or not moment.is_contiguous():
        got = f"{dtype_name(moment.dtype)} with strides {moment.stride()}"
        raise ValueError(f"moment: got {got}; it must be contiguous float64")
    if moment.shape != (x.shape[0], x.shape[2], x.shape[2]):
        raise ValueError(f"moment: got shape {tuple(moment.shape)}; for x of {tuple(x.shape)} it must be (L, d, d)")
    require_device("moment", moment, x.device)
    layers, n, d = x.shape
    if use is not None:
        require_device("use", use, x.device)
    if use is not None and (use.dtype != torch.bool or use.shape != (layers, n)):
        raise ValueError(
            f"use: got dtype {dtype_name(use.dtype)} of shape {tuple(use.shape)}; it must be bool ({layers}, {n})"
        )
    scale = None if weights is None else _float64("weights", weights, (layers, n), x.device)
    about = None if pilot is None else _float64("pilot", pilot, (layers, d), x.device)
    chosen = backends.resolve(backend, x.device, "second_moment")
    add = _second_moment_ if traced(x) else _add_products
    add(moment, x.resolve_neg(), None if use is None else use.contiguous(), scale, about, False, chosen.value)


def _float64(name: str, value: ArrayLike, shape: tuple[int, ...], device: torch.device) -> Tensor:
    tensor = as_tensor(name, value)
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{name}: got dtype {dtype_name(tensor.dtype)}; it must be floating")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}; it must be {shape}")
    require_device(name, tensor, device)
    return tensor.to(torch.float64).contiguous().resolve_neg()


def _add_products(
    moment: Tensor,
    x: Tensor,
    use: Tensor | None,
    weights: Tensor | None,
    pilot: Tensor | None,
    about_pilot: bool,
    backend: str,
) -> None:
    backends.kernel("second_moment", backend)(moment, x, use, weights, pilot, about_pilot)


_second_moment_ = torch.library.custom_op("cone_kernels::second_moment_", _add_products, mutates_args=("moment",))


@_second_moment_.register_fake
def _(
    moment: Tensor,
    x: Tensor,
    use: Tensor | None,
    weights: Tensor | None,
    pilot: Tensor | None,
    about_pilot: bool,
    backend: str,
) -> None:
    return None


def _moment(x: Tensor, center: bool, row_scale: Tensor | None, pilot: Tensor | None, backend: str) -> Tensor:
    """What `second_moment` returns, of checked arguments."""
    rows = flatten_batch(x, 2)  # (L, n, d)
    n_layers, n, d = rows.shape
    scale = None if row_scale is None else row_scale.reshape(n_layers, n)
    about = None if pilot is None else pilot.reshape(n_layers, d)
    if not center:
        return _products(rows, scale, about, False, backend).reshape(*x.shape[:-2], d, d)
    mean = _mean(rows, scale, backend)  # (L, d)
    moment = _products(rows, scale, mean if about is None else about, True, backend)
    if about is not None:
        offset = mean - about
        moment -= n * offset[:, :, None] * offset[:, None, :]
    moment /= n - 1 if n > 1 else torch.nan
    return moment.reshape(*x.shape[:-2], d, d)


def _products(rows: Tensor, row_scale: Tensor | None, pilot: Tensor | None, about_pilot: bool, backend: str) -> Tensor:
    """Σ x xᵀ or Σ (x − pilot)(x − pilot)ᵀ, both triangles of it, (L, d, d)."""
    n_layers, _, d = rows.shape
    moment = torch.zeros((n_layers, d, d), dtype=torch.float64, device=rows.device)
    multiply = backends.kernel("second_moment", backend)
    if backend == backends.Backend.CPU.value:
        multiply(moment, rows, None, row_scale, pilot, about_pilot, whole=True)
        return moment
    multiply(moment, rows, None, row_scale, pilot, about_pilot)
    return symmetric(moment)


_second_moment = torch.library.custom_op("cone_kernels::second_moment", _moment, mutates_args=())


@_second_moment.register_fake
def _(x: Tensor, center: bool, row_scale: Tensor | None, pilot: Tensor | None, backend: str) -> Tensor:
    return x.new_empty((*x.shape[:-2], x.shape[-1], x.shape[-1]), dtype=torch.float64)


_second_moment.register_autograd(refuse_backward("second_moment"))


def _mean(rows: Tensor, scale: Tensor | None, backend: str) -> Tensor:
    if backend == backends.Backend.CPU.value:
        found: Tensor = backends.function("mean_of_rows", backends.Backend.CPU)(rows, scale)
        return found
    if scale is None:
        return rows.mean(-2, dtype=torch.float64)
    n_layers, n, d = rows.shape
    total = torch.zeros((n_layers, d), dtype=torch.float64, device=rows.device)
    for start in range(0, n, 4096):
        part = slice(start, start + 4096)
        total += (rows[:, part].double() * scale[:, part, None]).sum(-2)
    return total / n if n else total
