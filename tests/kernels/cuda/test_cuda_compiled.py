"""What nvcc makes of the CUDA kernels, for each architecture that is built for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.nvcc_compiled import ARCHS, Kernel, compiled, disassembler, nvcc

pytestmark = [
    pytest.mark.skipif(nvcc() is None, reason="nvcc is not installed"),
    pytest.mark.skipif(nvcc() is not None and disassembler() is None, reason="nvdisasm is not installed"),
]

# Files and how many kernels they have: for three element types, aligned rows or not, and what else there is.
KERNELS = {
    "row_moments.cu": 3 * 2 * 2,  # all sums or those of the cosine
    "pool_moments.cu": 3 * 2,
    "masked_mean_pool.cu": 3 * 2,
    "mean_pairwise_cosine_backward.cu": 3 * 2 * 2,  # rows wider than a block or not
    "masked_mean_pool_backward.cu": 3 * 2,
    "moment_partials.cu": 3 * 2 + 1,
    "list_tokens.cu": 1,
    "list_items.cu": 1,
    "list_sentences.cu": 1,
    "warp_moments.cu": 1,
    **{f"warp_moments_{dtype}.cu": 4 for dtype in ("float32", "bfloat16", "float16")},  # one for each number of octets
}
READS_ROWS = [
    "row_moments.cu",
    "pool_moments.cu",
    "masked_mean_pool.cu",
    "mean_pairwise_cosine_backward.cu",
    "moment_partials.cu",
]
WARPS = [name for name in KERNELS if name.startswith("warp_moments_")]
# It differs from bfloat16 by conversions alone, and takes as long to compile: `make test-slow` has it.
LIKE_ANOTHER = "warp_moments_float16.cu"


def each(sources: Iterable[str]) -> list[Any]:
    return [pytest.param(source, marks=pytest.mark.slow if source == LIKE_ANOTHER else ()) for source in sources]


REGISTERS_OF_A_MULTIPROCESSOR = 65536


@pytest.fixture(scope="module", params=ARCHS)
def arch(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda source: compiled(source, name), KERNELS.keys() - {LIKE_ANOTHER}))
    return name


def aligned(source: str, arch: str) -> list[Kernel]:
    """The kernels for aligned rows: of their template arguments, kVector is the first bool."""
    return [kernel for kernel in compiled(source, arch) if arguments(kernel)[1:2] == ["true"]]


def arguments(kernel: Kernel) -> list[str]:
    name = kernel.name.split("(cone::cuda")[0]
    return name[name.index("<") + 1 : name.rindex(">")].split(", ") if "<" in name else []


@pytest.mark.parametrize("source", each(KERNELS))
def test_nothing_is_kept_in_local_memory(source: str, arch: str) -> None:
    kernels = compiled(source, arch)
    assert len(kernels) == KERNELS[source]
    for kernel in kernels:
        assert kernel.registers <= 255, kernel.name
        local = (kernel.stack_frame, kernel.spill_stores, kernel.spill_loads, kernel.count("LDL"), kernel.count("STL"))
        assert local == (0, 0, 0, 0, 0), kernel.name
        assert kernel.static_shared == 0, kernel.name  # all of it is asked for at the launch


@pytest.mark.parametrize("source", READS_ROWS)
def test_aligned_rows_are_read_by_16_bytes(source: str, arch: str) -> None:
    kernels = aligned(source, arch)
    assert len(kernels) == (KERNELS[source] - (source == "moment_partials.cu")) // 2
    for kernel in kernels:
        assert kernel.count("LDG", "128") > 0, kernel.name


def test_rows_of_a_batch_are_all_read_before_the_first_is_needed(arch: str) -> None:
    for source in ("row_moments.cu", "pool_moments.cu"):
        for kernel in aligned(source, arch):
            assert kernel.count("LDG", "128") >= 8, kernel.name  # 128 bytes a thread


def test_aligned_gradients_are_written_by_16_bytes(arch: str) -> None:
    for source in ("mean_pairwise_cosine_backward.cu", "masked_mean_pool_backward.cu", "masked_mean_pool.cu"):
        kernels = aligned(source, arch)
        assert len(kernels) == KERNELS[source] // 2
        for kernel in kernels:
            assert kernel.count("STG", "128") > 0, kernel.name


def test_four_blocks_of_128_threads_fit_a_multiprocessor(arch: str) -> None:
    for source in ("row_moments.cu", "pool_moments.cu"):
        for kernel in aligned(source, arch):
            assert kernel.registers * 4 * 128 <= REGISTERS_OF_A_MULTIPROCESSOR, kernel.name


def octets(kernel: Kernel) -> int:
    """How many times eight columns a lane of a kernel of warp_moments has."""
    return int(arguments(kernel)[1])


@pytest.mark.parametrize("source", each(WARPS))
def test_rows_of_a_warp_are_copied_by_16_bytes(source: str, arch: str) -> None:
    for kernel in compiled(source, arch):
        pieces = octets(kernel) * (2 if "float32" in source else 1)
        assert kernel.count("LDGSTS", "128") == 2 * pieces, kernel.name  # once before the loop, once in it


@pytest.mark.parametrize("source", each(WARPS))
def test_instructions_of_a_row(source: str, arch: str) -> None:
    """For 16 bytes a lane memory takes as long as a GPU issues some 126 instructions, these and those of no arithmetic.

    To add a row takes six operations an element with its conversion, 48 for 16 bytes of two-byte elements; its norm
    takes two.
    """
    for kernel in compiled(source, arch):
        elements, rows = 8 * octets(kernel), 2 if "float32" in source else 4
        sums = {"FMUL": elements, "FADD": 2 * elements, "FFMA": 2 * elements}
        (adding,) = [
            sum(block.values())
            for block in kernel.blocks
            if all(block.get(opcode, 0) >= n for opcode, n in sums.items())
        ]
        (norms,) = [
            sum(block.values())
            for block in kernel.blocks
            if block.get("FFMA", 0) >= rows * elements and block.get("FMUL", 0) < elements
        ]
        assert adding <= 6 * elements + 16, kernel.name
        assert norms / rows <= 2 * elements + 16, kernel.name


@pytest.mark.parametrize("source", each(KERNELS))
def test_blocks_as_large_as_the_launcher_makes_them_can_be_launched(source: str, arch: str) -> None:
    wide = {"row_moments.cu", "pool_moments.cu", "mean_pairwise_cosine_backward.cu"}
    for kernel in compiled(source, arch):
        threads = 512 if source in wide and arguments(kernel)[1:2] == ["true"] else 256
        if source == "mean_pairwise_cosine_backward.cu":
            threads = 512
        if source == "list_sentences.cu":
            threads = 1024
        if source in WARPS:
            threads = 32 * (12 if octets(kernel) == 1 else 8)
        assert kernel.registers * threads <= REGISTERS_OF_A_MULTIPROCESSOR, kernel.name


def test_no_sum_is_atomic(arch: str) -> None:
    for source in KERNELS.keys() - {LIKE_ANOTHER}:
        for kernel in compiled(source, arch):
            assert not any(opcode.startswith(("ATOM", "RED")) for opcode in kernel.opcodes), kernel.name
