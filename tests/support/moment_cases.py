"""What the tests of row_moments and pool_moments share: shapes, views of rows, and the comparison with float64."""

from __future__ import annotations

import torch
from torch import Tensor

from cone_kernels.sums import SECOND_MOMENT_FIELDS

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
WIDTHS = [*range(1, 35), 47, 63, 64, 65, 95, 96, 127, 128, 129, 130, 384, 1000]

# Of the largest entry of a sum: rounding of the unit vectors to the compute type, float32 for the three narrow dtypes.
RELATIVE = {torch.float32: 4e-7, torch.bfloat16: 4e-7, torch.float16: 4e-7, torch.float64: 2e-14}

# The jackknife group of the sentence with this index: stretches of 1, 2, 4 and 8, 16 of each, then of 16.
_STRETCHES = [length for length in (1, 2, 4, 8) for _ in range(16)] + [16] * 200
GROUP_OF = [stretch % 64 for stretch, length in enumerate(_STRETCHES) for _ in range(length)]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, shift: float = 0.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, dtype=torch.float64, generator=generator) + shift).to(dtype)


def with_cancelling_sentences(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows (..., B, T, d), T even: the unit vectors of every third sentence cancel, but for rounding."""
    hidden = normal(*shape, dtype=dtype, seed=3)
    half, doubled = shape[-2] // 2, torch.tensor([-1, -2, -0.5], dtype=dtype)
    hidden[..., ::3, half:, :] = (hidden * doubled[torch.arange(shape[-2]) % 3, None])[..., ::3, :half, :].flip(-2)
    return hidden


# Second moments of float32 rows: up to 128 products are added in float32.
SECOND_MOMENT_RELATIVE = 1e-6


# A direction g/‖g‖ has T/‖g‖ times the error of unit vectors: of the tests' sentences, in two dimensions and more, at
# most so much.
DIRECTION = 32


def assert_sums_close(got: dict[str, Tensor], wanted: dict[str, Tensor], relative: float) -> None:
    """Counts exactly; sums to `relative` of the field's largest entry (float32 second moments: to 1e-6 of it)."""
    assert sorted(got) == sorted(wanted)
    for name, value in wanted.items():
        assert got[name].shape == value.shape, name
        assert got[name].dtype == value.dtype, name
        if value.dtype == torch.int64:
            assert torch.equal(got[name], value), name
        else:
            scale = value.abs().max().clamp_min(torch.finfo(torch.float64).tiny) if value.numel() else 1.0
            bound = max(relative, SECOND_MOMENT_RELATIVE) if name in SECOND_MOMENT_FIELDS else relative
            bound *= DIRECTION if name == "sentence_unit_sum" else 1
            assert got[name].numel() == 0 or float((got[name] - value).abs().max() / scale) <= bound, name


def views(x: Tensor) -> dict[str, Tensor]:
    """The same values (L, n, d) in memory of other layouts."""
    padded = torch.full((x.shape[0], x.shape[1] + 2, x.shape[2] + 3), torch.nan, dtype=x.dtype)
    padded[:, 1:-1, 2:-1] = x
    spread = torch.full((x.shape[0], x.shape[1], 2 * x.shape[2] + 1), torch.nan, dtype=x.dtype)
    spread[:, :, 1::2] = x
    return {
        "contiguous": x,
        "offset and padded rows": padded[:, 1:-1, 2:-1],
        "every second column": spread[:, :, 1::2],
        "transposed": x.mT.contiguous().mT,
        "layers inside": x.transpose(0, 1).contiguous().transpose(0, 1),
    }
