"""The CUDA kernels of second_moment and top_eigenvectors: tensors' addresses handed to cone_kernels._cuda."""

from __future__ import annotations

import functools
from typing import TypedDict

import torch
from torch import Tensor

from cone_kernels import _cuda
from cone_kernels.devices import is_captured
from cone_kernels.kernels.cuda.queue import device_number, queue_of
from cone_kernels.kernels.pointers import DTYPE_NUMBERS, address, column_stride, require_gpu_dtype, start_block

# Steps of the iteration that are launched before the host looks which layers are done.
_ROUND_STEPS = 16


def second_moment(
    moment: Tensor,
    x: Tensor,
    use: Tensor | None,
    weights: Tensor | None,
    pilot: Tensor | None,
    about_pilot: bool,
) -> None:
    """Adds Σ x xᵀ, or Σ (x − pilot)(x − pilot)ᵀ, of x (L, n, d) to the upper triangle of `moment` (L, d, d)."""
    rows, weights_address, pilot_address = _rows(x), address(weights), address(pilot)
    size = _cuda.second_moment_workspace(**rows, weights=weights_address, pilot=pilot_address)
    workspace = torch.empty(size, dtype=torch.float64, device=x.device)
    _cuda.second_moment(
        **rows,
        use=address(use),
        weights=weights_address,
        pilot=pilot_address,
        about_pilot=about_pilot,
        moment=moment.data_ptr(),
        workspace=workspace.data_ptr(),
        most_shared=_most_shared(device_number(x)),
        queue=queue_of(x),
    )


def top_eigenvectors(
    x: Tensor, covariance: bool, center: bool, k: int, tolerance: float, max_iterations: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Values, vectors, residuals, iterations, value k + 1, converged, and the mean of data; x (L, n or d, d)."""
    n_layers, _, d = x.shape
    rows, queue = _rows(x), queue_of(x)
    start = _start(k, d, x.device)

    def empty(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.empty((n_layers, *shape), dtype=dtype, device=x.device)

    values, vectors, residuals, next_value = empty(k), empty(k, d), empty(k), empty()
    iterations, converged, done = empty(dtype=torch.int64), empty(dtype=torch.bool), empty(dtype=torch.bool)
    mean = None if covariance else empty(d)
    results = {
        "values": values,
        "vectors": vectors,
        "residuals": residuals,
        "iterations": iterations,
        "next_value": next_value,
        "mean": mean,
        "converged": converged,
        "done": done,
    }
    solver = _cuda.TopEigenvectors(
        **rows,
        covariance=covariance,
        center=center,
        k=k,
        tolerance=tolerance,
        max_iterations=max_iterations,
        start=start.data_ptr(),
        block=len(start),
        results={name: address(result) for name, result in results.items()},
        most_shared=_most_shared(device_number(x)),
    )
    workspace = torch.empty(solver.workspace(), dtype=torch.float64, device=x.device)
    solver.begin(workspace=workspace.data_ptr(), queue=queue)
    # While a graph is being captured the host cannot read the flags, so the graph holds all the steps. Those of layers
    # that are done do nothing.
    round_steps = max_iterations if is_captured(x) else _ROUND_STEPS
    for step in range(0, max_iterations, round_steps):
        solver.steps(min(round_steps, max_iterations - step), queue=queue)
        if step + round_steps >= max_iterations or bool(done.all()):
            break
    return values, vectors, residuals, iterations, next_value, converged, mean


@functools.cache
def _start(k: int, d: int, device: torch.device) -> Tensor:
    # Cached, because nothing can be copied from the host while a graph is being captured; never dropped, because
    # captured graphs go on reading it.
    return start_block(k, d).to(device)


class _Rows(TypedDict):
    """Rows (L, n, d) as these bindings take them: the layers are as far apart as the first stride says."""

    data: int
    dtype: int
    shape: tuple[int, int, int]
    strides: tuple[int, int, int]


def _rows(x: Tensor) -> _Rows:
    require_gpu_dtype("x", x.dtype, "cuda")
    n_layers, n, d = x.shape
    strides = (x.stride(0), x.stride(1), column_stride(x))
    return {"data": x.data_ptr(), "dtype": DTYPE_NUMBERS[x.dtype], "shape": (n_layers, n, d), "strides": strides}


@functools.cache
def _most_shared(device: int) -> int:
    return _cuda.most_shared_memory(device)
