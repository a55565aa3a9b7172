"""What ptxas makes of the Triton kernels for sm_80 and sm_90: no spills, 16-byte loads, shared memory that fits.

`python -m tests.kernels.triton.test_triton_compiled` prints the table, of all widths and dtypes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch

from tests.support.triton_compiled import SHARED_MEMORY_LIMIT, code_of_launches, in_subprocess, in_subprocesses

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WIDTHS = (384, 768, 1024, 4096)
OPS = (
    "row_moments",
    "pool_moments",
    "masked_mean_pool",
    "mean_pairwise_cosine_backward",
    "masked_mean_pool_backward",
)
# Kernels that read little and in no order that counts.
WITHOUT_WIDE_LOADS = {"_finish"}


def launches(d: int, dtype: str, layers: int = 3, sentences: int = 3, tokens: int = 40) -> Iterator[tuple[str, Any]]:
    """(op, a call) on aligned rows of width d, in the forms that are compiled apart."""
    from cone_kernels.kernels.triton.masked_mean_pool import masked_mean_pool
    from cone_kernels.kernels.triton.masked_mean_pool_backward import masked_mean_pool_backward
    from cone_kernels.kernels.triton.mean_pairwise_cosine_backward import mean_pairwise_cosine_backward
    from cone_kernels.kernels.triton.pool_moments import pool_moments
    from cone_kernels.kernels.triton.row_moments import row_moments
    from cone_kernels.sums import COSINE_FIELDS, ROW_FIELDS, TOKEN_FIELDS, zero_sums

    rows = sentences * tokens
    x, grad = torch.zeros((layers, tokens, d), dtype=DTYPES[dtype]), torch.zeros((2, sentences, d))
    hidden = [torch.zeros((sentences, tokens, d), dtype=x.dtype) for _ in range(layers)]
    packed = [layer.view(rows, d) for layer in hidden]
    mask, groups = torch.ones((sentences, tokens)).bool(), torch.arange(sentences)
    starts = torch.arange(0, rows + 1, tokens)
    token_sums = zero_sums(TOKEN_FIELDS, layers, d)
    one_group = zero_sums(COSINE_FIELDS, layers, d, groups=1)
    unit_sum, scale = torch.zeros((layers, d)).double(), torch.ones(layers).double()
    yield "row_moments", lambda: row_moments(x, torch.arange(tokens), zero_sums(ROW_FIELDS, layers, d))
    yield "pool_moments", lambda: pool_moments(hidden, mask, None, groups, token_sums)
    yield "masked_mean_pool", lambda: masked_mean_pool(hidden[:1], mask, None)
    yield "mean_pairwise_cosine_backward", lambda: mean_pairwise_cosine_backward(x, unit_sum, scale)
    yield "masked_mean_pool_backward", lambda: masked_mean_pool_backward(grad, mask, None, tokens, DTYPES[dtype])
    yield "row_moments, cosine alone", lambda: row_moments(x, None, one_group)
    yield "pool_moments, packed", lambda: pool_moments(packed, None, starts, groups, token_sums)
    yield "masked_mean_pool, packed", lambda: masked_mean_pool(packed, None, starts)


def compiled(forms: list[tuple[str, int, str]], capability: int) -> list[dict[str, Any]]:
    """The kernels of each (op, d, dtype)."""
    found = []
    for op, d, dtype in forms:
        call = dict(launches(d, dtype))[op]
        for code in code_of_launches(call, capability):
            found.append({"op": op, "d": d, "dtype": dtype, **asdict(code)})
    return found


def compiled_at_once(*jobs: tuple[list[tuple[str, int, str]], int]) -> list[dict[str, Any]]:
    """The kernels of several lists of forms, each for a compute capability."""
    return in_subprocesses("tests.kernels.triton.test_triton_compiled:compiled", *jobs)


def compiled_for_both(forms: list[tuple[str, int, str]]) -> list[dict[str, Any]]:
    return compiled_at_once(*((forms, capability) for capability in SHARED_MEMORY_LIMIT))


def all_forms() -> list[tuple[str, int, str]]:
    return [(op, d, dtype) for d in WIDTHS for dtype in DTYPES for op, _ in launches(64, dtype)]


def assert_good(found: list[dict[str, Any]]) -> None:
    for code in found:
        assert code["stack"] == 0, code
        assert code["spills"] == 0, code
        assert code["shared"] <= SHARED_MEMORY_LIMIT[code["capability"]], code
        assert code["loads"].get("128", 0) > 0 or code["kernel"] in WITHOUT_WIDE_LOADS, code


def test_no_spills_and_wide_loads() -> None:
    """One width and dtype for sm_90; `make test-slow` has the others, and row_moments, which takes fewer registers."""
    forms = [(op, 1024, "bfloat16") for op in OPS if op != "row_moments"]
    found = compiled_at_once((forms, 90))
    assert {code["kernel"] for code in found} == {
        "_add_sentences",
        "_add_directions",
        "_squared_norms",
        "_pool",
        "_backward",
        "_finish",
    }
    assert_good(found)


@pytest.mark.slow
def test_no_spills_and_wide_loads_of_any_shape() -> None:
    found = compiled_for_both(all_forms())
    assert "_squared_norms" in {code["kernel"] for code in found}
    assert {code["capability"] for code in found} == set(SHARED_MEMORY_LIMIT)
    assert_good(found)


def test_unaligned_rows_are_not_read_16_bytes_at_a_time() -> None:
    """What is said of alignment decides: else the gates above would pass on any addresses."""
    (code, _) = in_subprocess("tests.kernels.triton.test_triton_compiled:compiled_unaligned")
    assert code["stack"] == 0
    assert "128" not in code["loads"]


def compiled_unaligned() -> list[dict[str, Any]]:
    """row_moments of rows that start two bytes past a boundary."""
    from cone_kernels.kernels.triton.row_moments import row_moments
    from cone_kernels.sums import COSINE_FIELDS, zero_sums

    x = torch.zeros(40 * 64 + 8, dtype=torch.bfloat16)[1 : 40 * 64 + 1].view(1, 40, 64)
    sums = zero_sums(COSINE_FIELDS, 1, 64, groups=1)
    return [asdict(code) for code in code_of_launches(lambda: row_moments(x, None, sums), 90)]


def table() -> str:
    """Markdown: registers, spilled bytes, shared memory and load widths of every kernel on sm_80 / sm_90."""
    both: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for code in compiled_for_both(all_forms()):
        both.setdefault((code["op"], code["kernel"], code["d"], code["dtype"]), []).append(code)
    lines = [
        "| op | kernel | d | dtype | registers | stack bytes | shared bytes | loads: width×count (sm_90) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, codes in both.items():
        cells = [" / ".join(str(code[what]) for code in codes) for what in ("registers", "stack", "shared")]
        loads = ", ".join(f"{width}×{n}" for width, n in sorted(codes[-1]["loads"].items(), key=lambda w: -int(w[0])))
        lines.append("| " + " | ".join([*map(str, key), *cells, loads]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
