"""How kernels are launched, and where a program of many layers is."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Runs a kernel, with products and sums fused, as the precision of all kernels was tested.

    A grid has at most 65,535 programs in y and in z: what may be more, such as layers, belongs in x.
    """
    kernel[grid](*arguments, enable_fp_fusion=True, **options)


@triton.jit
def layer_and_number(programs):
    """Which layer a program belongs to, and its number there, in a grid of x = layers · programs."""
    number = tl.program_id(0)
    return (number // programs).to(tl.int64), (number % programs).to(tl.int64)
