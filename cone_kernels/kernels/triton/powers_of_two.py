"""Powers of two that bring values into the range of a narrower type."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scale_towards(largest, exponent):
    """The power of two that brings float64 `largest` into [2^exponent, 2^(exponent + 1)); 1 for 0, inf and NaN."""
    biased = (largest.to(tl.int64, bitcast=True) >> 52) & 0x7FF
    power = tl.minimum(
        tl.maximum(exponent + 1023 - biased, -1000), 1000
    )  # so that it and its inverse are normal numbers
    scale = ((power + 1023) << 52).to(tl.float64, bitcast=True)
    return tl.where((largest > 0) & (biased < 0x7FF), scale, 1.0)
