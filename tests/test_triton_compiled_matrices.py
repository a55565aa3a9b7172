"""What ptxas makes of the kernels of second moments and top eigenvectors for sm_80 and sm_90.

`python tests/test_triton_compiled_matrices.py` prints the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
from triton_compiled import SHARED_MEMORY_LIMIT, code_of_launches, in_subprocess, parsed_launches

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Widths that are multiples of 16 compile to the same code.
WIDTHS = (384, 768, 1024, 4096)
# One launch of each kind; float16 and the other widths are left to `make test-slow`.
QUICK = {
    ("second_moment", "bfloat16"),
    ("second_moment, pilot", "float32"),
    ("top_eigenvectors, data", "bfloat16"),
    ("top_eigenvectors, float64 covariance", "float32"),
}
ROW_KERNELS = {"_add_rows", "_add_sentences", "_pool", "_backward", "_finish"}
MATRIX_KERNELS = {"multiply_tiles", "multiply_covariance", "multiply_data", "krylov_step"}


def launches(d: int, dtype: str) -> Iterator[tuple[str, Any]]:
    """(what, a call) of each op on aligned rows of width d; the number of rows decides nothing that is compiled."""
    from cone_kernels.kernels.triton.second_moment import second_moment
    from cone_kernels.kernels.triton.top_eigenvectors import top_eigenvectors

    x = torch.zeros((1, 4096, d), dtype=DTYPES[dtype])
    moment, pilot = torch.zeros((1, d, d), dtype=torch.float64), torch.zeros((1, d), dtype=torch.float64)
    yield "second_moment", lambda: second_moment(moment, x, None, None, None, False)
    yield "second_moment, pilot", lambda: second_moment(moment, x, None, None, pilot, False)
    yield "top_eigenvectors, data", lambda: top_eigenvectors(x, False, True, 1, 1e-6, 1)
    if dtype == "float32":  # 16-bit covariances are multiplied as float32, those of a state are float64
        yield "top_eigenvectors, float64 covariance", lambda: top_eigenvectors(moment, True, True, 1, 1e-8, 1)
        yield "top_eigenvectors, covariance", lambda: top_eigenvectors(moment.float(), True, True, 1, 1e-8, 1)


def compiled(widths: list[int], capability: int, quick: bool) -> list[dict[str, Any]]:
    """Every kernel of every launch, or of the quick ones."""
    return [
        {"op": what, "d": d, "dtype": dtype, **asdict(code)}
        for d in widths
        for dtype in DTYPES
        for what, call in launches(d, dtype)
        if not quick or (what, dtype) in QUICK
        for code in code_of_launches(call, capability)
    ]


@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90])
@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_nothing_spills_and_loads_are_wide(capability: int, quick: bool) -> None:
    widths = [1024] if quick else list(WIDTHS)
    found = in_subprocess("test_triton_compiled_matrices:compiled", widths, capability, quick)
    assert {code["kernel"] for code in found} > MATRIX_KERNELS
    for code in found:
        assert (code["stack"], code["spills"]) == (0, 0), code
        assert code["shared"] <= SHARED_MEMORY_LIMIT[capability], code
        if code["kernel"] in MATRIX_KERNELS:
            assert code["matrix"] > 0, code
        if code["kernel"] not in ("diagonal_scales", "krylov_step"):
            assert code["loads"].get("128", 0) > 0, code
            assert code["loads"].get("16", 0) == code["loads"].get("U16", 0) == 0, code


def test_sizes_of_one_compile() -> None:
    """Triton makes a constant of Python of an argument that is 1."""
    parsed = in_subprocess("test_triton_compiled_matrices:parsed_with_sizes_of_one")
    assert set(parsed) >= MATRIX_KERNELS | ROW_KERNELS | {"add_parts", "add_raw_tiles", "add_packed_tiles"}


def parsed_with_sizes_of_one() -> list[str]:
    """Every op on a row or two, a token, a column."""
    import test_triton_compiled as rows

    from cone_kernels.kernels.triton.second_moment import second_moment
    from cone_kernels.kernels.triton.top_eigenvectors import top_eigenvectors

    x, moment, pilot = torch.zeros((1, 2, 1)), torch.zeros((1, 1, 1)).double(), torch.zeros((1, 1)).double()
    use, weights = torch.ones((1, 2)).bool(), torch.ones((1, 2)).double()
    calls = [
        lambda: second_moment(moment, x[:, :1], None, None, pilot, False),
        lambda: second_moment(moment, x[:, :1], use[:, :1], weights[:, :1], pilot, False),
        lambda: second_moment(moment, x, use, weights, None, False),
        lambda: second_moment(moment, x[:, :1].bfloat16(), use[:, :1], None, None, False),
        lambda: top_eigenvectors(x, False, True, 1, 1e-6, 1),
        lambda: top_eigenvectors(x[:, :1], False, False, 1, 1e-6, 1),
        lambda: top_eigenvectors(moment, True, True, 1, 1e-8, 1),
        *(call for _, call in rows.launches(1, "float32", layers=1, sentences=1, tokens=1)),
    ]
    return [kernel for call in calls for kernel in parsed_launches(call, 90)]


if __name__ == "__main__":
    for at in (80, 90):
        for code in in_subprocess("test_triton_compiled_matrices:compiled", list(WIDTHS), at, False):
            print(*code.values(), sep=" | ")
