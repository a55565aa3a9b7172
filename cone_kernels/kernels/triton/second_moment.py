"""Second moments of rows by tensor cores: 16-bit rows as they are, others less the pilot as two float16 planes."""

from __future__ import annotations

import torch
from torch import Tensor

from cone_kernels.kernels.pointers import require_gpu_dtype
from cone_kernels.kernels.triton.float16_planes import PAD, padded, planes_of
from cone_kernels.kernels.triton.gram_product import add_plane_products, add_raw_products

# Rows of one pass: the partial tiles, and the planes with their 4 bytes an element, take bounded memory.
_RAW_ROWS, _PLANE_ROWS, _PLANE_ELEMENTS = 65536, 8192, 16 << 20


def second_moment(
    moment: Tensor,
    x: Tensor,
    use: Tensor | None,
    weights: Tensor | None,
    pilot: Tensor | None,
    about_pilot: bool,
) -> None:
    """Adds Σ x xᵀ, or Σ (x − pilot)(x − pilot)ᵀ, of x (L, n, d) to the upper triangle of `moment` (L, d, d)."""
    require_gpu_dtype("x", x.dtype, "triton")
    n_layers, n, d = x.shape
    if x.numel() == 0:
        return
    if x.dtype != torch.float32 and weights is None and pilot is None:
        for first in range(0, n, _RAW_ROWS):
            part = (slice(None), slice(first, first + _RAW_ROWS))
            add_raw_products(moment, x[part], None if use is None else use[part])
        return
    most_rows = max(PAD, min(_PLANE_ROWS, _PLANE_ELEMENTS // padded(d) // PAD * PAD))
    wave = max(1, _PLANE_ELEMENTS // (padded(min(n, most_rows)) * padded(d)))
    for first_layer in range(0, n_layers, wave):
        layers = slice(first_layer, first_layer + wave)
        about = None if pilot is None else pilot[layers]
        corrected = None if about_pilot else about
        for first in range(0, n, most_rows):
            part = (layers, slice(first, first + most_rows))
            rows, chosen = x[part], None if use is None else use[part]
            planes = planes_of(rows, chosen, None if weights is None else weights[part], about)
            n_used = None if chosen is None or corrected is None else chosen.sum(1)
            add_plane_products(moment[layers], planes, n_used, rows.shape[1], corrected)
