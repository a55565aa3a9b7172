"""Top eigenvectors by block Krylov iteration, all layers at once: the products, then one small step a layer."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import triton
from torch import Tensor

from cone_kernels.devices import is_captured
from cone_kernels.kernels.pointers import require_gpu_dtype, start_block
from cone_kernels.kernels.triton.block_product import add_parts, diagonal_scales, multiply_covariance, multiply_data
from cone_kernels.kernels.triton.krylov_step import krylov_step
from cone_kernels.kernels.triton.launch import launch

_BASIS_BLOCKS = 4  # the basis holds at most this many blocks
_ROUND = 16  # steps launched before the host looks whether all layers are finished
_WIDTH, _STEP_WIDTH, _TILE = 64, 32, 32  # columns that a product takes at once, columns and rows that a step takes
_COVARIANCE_ROWS, _DATA_ROWS = 32, 64
_LEAST_PART_ROWS, _PARTS, _PARTIAL_BYTES = 512, 528, 64 << 20
_ROTATED = 4096  # entries of the projected matrix and its vectors that are rotated at once


def top_eigenvectors(
    x: Tensor, covariance: bool, center: bool, k: int, tolerance: float, max_iterations: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Values, vectors, residuals, iterations, value k + 1, converged, and the mean of data; x (L, n or d, d).

    Nothing waits for the GPU within a round of steps. While the stream is being captured in a graph there is one round,
    of `max_iterations`; a call with this k and d must then have run on that device before.
    """
    if not covariance:
        require_gpu_dtype("x", x.dtype, "triton")
    n_layers, _, d = x.shape
    start = _start(k, d, x.device)
    block = len(start)
    capacity = min(_BASIS_BLOCKS * block, d)
    size = max(16, triton.next_power_of_2(capacity))
    padded_block = max(8, triton.next_power_of_2(block))
    rotated_rows = max(1, min(size, _ROTATED // (2 * size)))
    columns = triton.cdiv(d, _WIDTH) * _WIDTH

    def scratch(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.empty((n_layers, *shape), dtype=dtype, device=x.device)

    def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.zeros((n_layers, *shape), dtype=dtype, device=x.device)

    values, residuals, vectors = scratch(k), scratch(k), scratch(k, d)
    iterations, converged = scratch(dtype=torch.int64), scratch(dtype=torch.uint8)
    next_value = torch.full_like(values[:, 0], torch.nan)
    mean = None if covariance else x.mean(-2, dtype=torch.float64)  # (L, d)
    if n_layers == 0:
        return values, vectors, residuals, iterations, next_value, converged.bool(), mean

    # Rows beyond the basis are multiplied by zeros, so they must not be NaN.
    bases, images = (tuple(zeros(size, columns) for _ in range(2)) for _ in range(2))
    bases[0][:, :block, :d] = start
    state = zeros(4, dtype=torch.int32)
    state[:, 1] = block
    scale = torch.ones_like(next_value)
    part = min(padded_block, _TILE)
    parts = triton.cdiv(block, part)  # how many parts the vectors are multiplied in
    multiply = (
        _covariance_product(x, scale, part, parts) if mean is None else _data_product(x, mean, center, part, parts)
    )
    pairs, directions, coefficients = scratch(2, size, 2 * size), scratch(2, padded_block, columns), scratch(size, part)
    ritz, order = scratch(3, size), scratch(size, dtype=torch.int32)
    limit = torch.full((1,), tolerance, dtype=torch.float64, device=x.device)
    capturing = is_captured(x)
    for step in range(max_iterations):
        now, then = step % 2, (step + 1) % 2
        multiply(bases[now], images[now], state)
        launch(
            krylov_step, (n_layers,),
            bases[now], images[now], bases[then], images[then], pairs, directions, coefficients, ritz, order, state,
            scale, limit, values, vectors, residuals, iterations, next_value, converged,
            d, columns, k, block, capacity, max_iterations,
            SIZE=size, BLOCK=padded_block, PART=part, TILE=min(size, _TILE), ROWS=rotated_rows, WIDTH=_STEP_WIDTH,
            num_warps=8, num_stages=2, maxnreg=255,
        )  # fmt: skip
        if (step + 1) % _ROUND == 0 and not capturing and bool(state[:, 3].all()):
            break
    return values, vectors, residuals, iterations, next_value, converged.bool(), mean


_Multiply = Callable[[Tensor, Tensor, Tensor], None]


def _covariance_product(x: Tensor, scale: Tensor, part: int, vector_parts: int) -> _Multiply:
    if x.element_size() == 2:
        x = x.float()  # a small copy: Triton 3.6 cannot compile a float64 product of 16-bit loads
    n_layers, _, d = x.shape
    strides = (x.stride(0), x.stride(2), x.stride(1)) if x.stride(1) == 1 else x.stride()  # C is symmetric
    launch(diagonal_scales, (n_layers,), x, scale, d, *strides, WIDTH=1024)

    def multiply(basis: Tensor, image: Tensor, state: Tensor) -> None:
        _, size, columns = basis.shape
        launch(
            multiply_covariance, (n_layers, triton.cdiv(d, _COVARIANCE_ROWS), vector_parts),
            x, basis, image, state, scale, d, columns, *strides,
            SIZE=size, PART=part, ROWS=_COVARIANCE_ROWS, WIDTH=_WIDTH, num_warps=4, num_stages=3,
        )  # fmt: skip

    return multiply


def _data_product(x: Tensor, mean: Tensor, center: bool, part: int, vector_parts: int) -> _Multiply:
    n_layers, n, d = x.shape
    vectors, columns = vector_parts * part, triton.cdiv(d, _WIDTH) * _WIDTH
    most = min(triton.cdiv(_PARTS, n_layers), _PARTIAL_BYTES // (n_layers * vectors * columns * 8))
    parts = max(1, min(triton.cdiv(n, _LEAST_PART_ROWS), most))
    part_rows = triton.cdiv(triton.cdiv(n, parts), _DATA_ROWS) * _DATA_ROWS
    parts = triton.cdiv(n, part_rows)
    partial = torch.empty((n_layers, vectors, parts, columns), dtype=torch.float64, device=x.device)
    aligned = x.stride(2) == 1 and d % 16 == 0 and x.stride(1) % 16 == 0
    warps = 4 if aligned else 8  # loads of single elements take more registers than 4 warps have

    def multiply(basis: Tensor, image: Tensor, state: Tensor) -> None:
        size = basis.shape[1]
        launch(
            multiply_data, (n_layers, parts, vector_parts),
            x, mean, basis, partial, state, n, d, columns, part_rows, *x.stride(),
            CENTER=center, SIZE=size, PART=part, ROWS=_DATA_ROWS, WIDTH=_WIDTH, num_warps=warps, num_stages=1,
        )  # fmt: skip
        launch(
            add_parts, (n_layers, columns // _WIDTH, vector_parts),
            partial, image, state, parts, columns, n - 1 if center else n, SIZE=size, PART=part, WIDTH=_WIDTH,
        )  # fmt: skip

    return multiply


@functools.cache  # never dropped: captured graphs go on reading it
def _start(k: int, d: int, device: torch.device) -> Tensor:
    """`start_block` with its rows made orthonormal."""
    orthonormal: Tensor = torch.linalg.qr(start_block(k, d).mT).Q.mT.contiguous()
    return orthonormal.to(device)
