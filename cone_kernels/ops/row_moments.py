"""Row moments: everything that needs no d×d matrix, from one read of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cone_kernels import backends
from cone_kernels.ops.arguments import (
    Array,
    ArrayLike,
    first_groups,
    flatten_batch,
    float_tensor,
    groups_of,
    like_input,
    require_device,
    require_groups,
    traced,
)
from cone_kernels.ops.gradients import refused_gradients
from cone_kernels.sums import COSINE_FIELDS, ROW_FIELDS, zero_sums


def row_moments(x: Array, *, sentence_ids: ArrayLike | None = None, backend: str = "auto") -> dict[str, Array]:
    """The plain sums of the rows of `x` by jackknife group, from one read of `x`.

    Rows whose squared norm is zero or not finite in float64 are left out and counted. u = x/‖x‖. Without a gradient: a
    backward through the sums raises.

    Args:
        x: (..., n, d) float32, float64, bfloat16 or float16; leading dimensions are batch dimensions. Any strides.
        sentence_ids: (n,) int64, each row's index in the corpus, which decides its jackknife group. Default 0..n-1.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        Sums by name, float64 (counts int64): `count`, `n_zero`, `n_nonfinite`, `unit_sq_total` (..., 64), `unit_sum`
        (..., 64, d), `unit_sq_sum`, `sum`, `sq_sum` (..., d), `norm_sum`, `norm_sq_sum` (...).

    Raises:
        TypeError: a dtype or type is not taken.
        ValueError: a shape, device or value is not as above.
        BackendUnavailable: the backend asked for cannot run here.

    Examples:
        >>> row_moments(torch.eye(3))["count"].sum()
        tensor(3)
    """
    rows = float_tensor("x", x, 2, "(..., n, d)")
    *batch, n, d = rows.shape
    groups = groups_of("sentence_ids", sentence_ids, n, rows.device)
    if groups is None:
        groups = first_groups(n, rows)
    flat = flatten_batch(rows, 2)
    sums = zero_sums(ROW_FIELDS, flat.shape[0], d, device=rows.device)
    row_moments_(flat, groups, list(sums.values()), backend)

    def shaped(total: Tensor) -> Any:
        return like_input(refused_gradients("row_moments", total.reshape((*batch, *total.shape[1:])), [rows]), x)

    return {field: shaped(total) for field, total in sums.items()}


def row_moments_(x: Tensor, groups: Tensor | None, sums: Sequence[Tensor], backend: str = "auto") -> Tensor:
    """Adds the rows of x to `sums`.

    Args:
        x: (L, n, d) as in `row_moments`.
        groups: (n,) int64 in [0, 64), or -1 for a row to skip; None: row i is in group i mod 64.
        sums: tensors in the order of `ROW_FIELDS`, or of `COSINE_FIELDS` where no more is wanted.
        backend: as in `row_moments`.

    Returns:
        The status (L, n) uint8 of each row: 0 used, 1 zero, 2 not finite.

    Raises:
        TypeError: the groups are not int64.
        ValueError: a tensor is not on the device of `x`, or there is not a group for each row.
        BackendUnavailable: the backend asked for cannot run here.
    """
    if groups is not None:
        require_groups(groups, x.shape[1], x.device)
    for i, total in enumerate(sums):
        require_device(f"sums[{i}]", total, x.device)
    chosen = backends.resolve(backend, x.device, "row_moments")
    add = _row_moments_ if traced(x) else _add_rows
    result: Tensor = add(x.resolve_neg(), groups, list(sums), chosen.value)
    return result


def _add_rows(x: Tensor, groups: Tensor | None, sums: Sequence[Tensor], backend: str) -> Tensor:
    fields = ROW_FIELDS if len(sums) == len(ROW_FIELDS) else COSINE_FIELDS
    result: Tensor = backends.kernel("row_moments", backend)(x, groups, dict(zip(fields, sums, strict=True)))
    return result


_row_moments_ = torch.library.custom_op("cone_kernels::row_moments_", _add_rows, mutates_args=("sums",))


@_row_moments_.register_fake
def _(x: Tensor, groups: Tensor | None, sums: Sequence[Tensor], backend: str) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.uint8)
