"""What ptxas makes of the kernels of second moments and top eigenvectors for sm_80 and sm_90.

`python -m tests.kernels.triton.test_triton_compiled_matrices` prints the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch

from tests.support.triton_compiled import (
    SHARED_MEMORY_LIMIT,
    code_of_launches,
    in_subprocess,
    in_subprocesses,
    parsed_launches,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Widths that are multiples of 16 compile to the same code.
WIDTHS = (384, 768, 1024, 4096)
# Of rows as they are; `make test-slow` has the others.
QUICK = ("second_moment", "top_eigenvectors, data")
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


def compiled(forms: list[tuple[str, int, str]], capability: int) -> list[dict[str, Any]]:
    """Every kernel of each (launch, d, dtype)."""
    return [
        {"op": what, "d": d, "dtype": dtype, **asdict(code)}
        for what, d, dtype in forms
        for code in code_of_launches(dict(launches(d, dtype))[what], capability)
    ]


def all_forms() -> list[tuple[str, int, str]]:
    return [(what, d, dtype) for d in WIDTHS for dtype in DTYPES for what, _ in launches(64, dtype)]


def compiled_at_once(*jobs: tuple[list[tuple[str, int, str]], int]) -> list[dict[str, Any]]:
    """The kernels of several lists of forms, each for a compute capability."""
    return in_subprocesses("tests.kernels.triton.test_triton_compiled_matrices:compiled", *jobs)


def assert_good(found: list[dict[str, Any]]) -> None:
    for code in found:
        assert (code["stack"], code["spills"]) == (0, 0), code
        assert code["shared"] <= SHARED_MEMORY_LIMIT[code["capability"]], code
        if code["kernel"] in MATRIX_KERNELS:
            assert code["matrix"] > 0, code


def assert_loads_are_wide(found: list[dict[str, Any]]) -> None:
    for code in found:
        if code["kernel"] not in ("diagonal_scales", "krylov_step"):
            assert code["loads"].get("128", 0) > 0, code
            assert code["loads"].get("16", 0) == code["loads"].get("U16", 0) == 0, code


def test_nothing_spills_and_loads_are_wide() -> None:
    found = compiled_at_once(([(what, 1024, "bfloat16") for what in QUICK], 90))
    assert {code["kernel"] for code in found} >= MATRIX_KERNELS - {"multiply_covariance"}
    assert_good(found)
    assert_loads_are_wide(found)


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_MEMORY_LIMIT)
def test_nothing_spills_and_loads_are_wide_at_any_width(capability: int) -> None:
    found = compiled_at_once((all_forms(), capability))
    assert {code["kernel"] for code in found} > MATRIX_KERNELS
    assert_good(found)
    assert_loads_are_wide(found)


@pytest.mark.slow
def test_products_of_data_that_is_not_aligned_do_not_spill() -> None:
    forms = [("top_eigenvectors, data", d, dtype) for d in (1, 7) for dtype in DTYPES]
    for code in compiled_at_once(*((forms, capability) for capability in SHARED_MEMORY_LIMIT)):
        assert (code["stack"], code["spills"]) == (0, 0), code


def test_sizes_of_one_compile() -> None:
    """Triton makes a constant of Python of an argument that is 1."""
    parsed = in_subprocess("tests.kernels.triton.test_triton_compiled_matrices:parsed_with_sizes_of_one")
    assert set(parsed) >= MATRIX_KERNELS | ROW_KERNELS | {"add_parts", "add_raw_tiles", "add_plane_tiles"}


def parsed_with_sizes_of_one() -> list[str]:
    """Every op on a row or two, a token, a column."""
    from cone_kernels.kernels.triton.second_moment import second_moment
    from cone_kernels.kernels.triton.top_eigenvectors import top_eigenvectors
    from tests.kernels.triton import test_triton_compiled as rows

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
    for code in compiled_at_once(*((all_forms(), capability) for capability in SHARED_MEMORY_LIMIT)):
        print(*code.values(), sep=" | ")
