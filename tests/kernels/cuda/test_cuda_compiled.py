"""What nvcc makes of the CUDA kernels, for each architecture that is built for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import nvcc_compiled
from tests.support.nvcc_compiled import ARCHS, Kernel, compiled, needs_nvcc

pytestmark = needs_nvcc

# Files and how many kernels they have: for three element types, aligned rows or not, and what else there is.
KERNELS = {
    "row_moments.cu": 3 * 2 * 2,  # all sums or those of the cosine
    "pool_moments.cu": 3 * 2,
    "masked_mean_pool.cu": 3 * 2,
    "mean_pairwise_cosine.cu": 3 * 4 + 1,  # one for each number of octets
    "mean_pairwise_cosine_backward.cu": 3 * 2 * 2,  # rows wider than a block or not
    "warp_cosine_backward.cu": 3 * 4,  # one for each number of octets
    "masked_mean_pool_backward.cu": 3 * 2,
    "moment_partials.cu": 3 * 2 + 1,
    "sentence_directions.cu": 1,
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
COSINE, COSINE_BACKWARD = "mean_pairwise_cosine.cu", "warp_cosine_backward.cu"
WARPS = [name for name in KERNELS if name.startswith("warp_moments_")]
REGISTERS_OF_A_MULTIPROCESSOR = 65536


@pytest.fixture(scope="module", params=ARCHS)
def arch(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda source: compiled(source, name), KERNELS))
    return name


def aligned(source: str, arch: str) -> list[Kernel]:
    """The kernels for aligned rows: of their template arguments, kVector is the first bool."""
    return [kernel for kernel in compiled(source, arch) if arguments(kernel)[1:2] == ["true"]]


def arguments(kernel: Kernel) -> list[str]:
    name = kernel.name.split("(cone::cuda")[0]
    return name[name.index("<") + 1 : name.rindex(">")].split(", ") if "<" in name else []


def test_an_object_older_than_what_it_is_made_of_is_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvcc_compiled, "ROOT", tmp_path)
    monkeypatch.setattr(nvcc_compiled, "CSRC", tmp_path / "csrc")
    built, source = tmp_path / "build" / "py" / "cuda-80-90" / "a-cu.o", tmp_path / "csrc" / "cuda" / "a.cu"
    made_of = [source, tmp_path / "csrc" / "a.cuh", tmp_path / "csrc" / "a.h", tmp_path / "setup.py"]
    for path in (built, *made_of):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1000, 1000))
    os.utime(built, (2000, 2000))
    assert nvcc_compiled._built(source) == built
    for path in made_of:
        os.utime(path, (3000, 3000))
        assert nvcc_compiled._built(source) is None
        os.utime(path, (1000, 1000))


@pytest.mark.parametrize("source", KERNELS)
def test_nothing_is_kept_in_local_memory(source: str, arch: str) -> None:
    kernels = compiled(source, arch)
    assert len(kernels) == KERNELS[source]
    for kernel in kernels:
        assert kernel.registers <= 255, kernel.name
        assert (kernel.stack_frame, kernel.local, kernel.count("LDL"), kernel.count("STL")) == (0, 0, 0, 0), kernel.name
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
    """How many times eight columns a lane of a kernel has that takes whole rows by warps."""
    return int(arguments(kernel)[1])


def among(block: Mapping[str, int], name: str) -> int:
    """How many instructions of a block are of that name, whatever their modifiers."""
    return sum(n for opcode, n in block.items() if opcode.split(".")[0] == name)


def by_warps(source: str, arch: str) -> list[Kernel]:
    """The kernels of a file that take whole rows by warps."""
    return [kernel for kernel in compiled(source, arch) if arguments(kernel)]


def of_floats(kernel: Kernel) -> bool:
    return arguments(kernel)[0] == "float"


@pytest.mark.parametrize("source", [*WARPS, COSINE])
def test_rows_of_a_warp_are_copied_by_16_bytes(source: str, arch: str) -> None:
    for kernel in by_warps(source, arch):
        pieces = octets(kernel) * (2 if of_floats(kernel) else 1)
        assert kernel.count("LDGSTS", "128") == 2 * pieces, kernel.name  # once before the loop, once in it
        # What is loaded for a row would be waited for at the next branch: 0.6 µs of latency a row, a sixth of the time.
        copying = [block for block in kernel.blocks if among(block, "LDGSTS")]
        assert len(copying) == 2, kernel.name
        assert all(among(block, "LDG") == 0 for block in copying), kernel.name


@pytest.mark.parametrize("source", [*WARPS, COSINE])
def test_instructions_of_a_row(source: str, arch: str) -> None:
    """For 16 bytes a lane memory takes as long as a GPU issues some 126 instructions, these and those of no arithmetic.

    To add a row takes six operations an element with its conversion, 48 for 16 bytes of two-byte elements, and two for
    the cosine; its norm takes two, or a matrix product for four rows at once.
    """
    for kernel in by_warps(source, arch):
        if octets(kernel) == 1:
            continue  # too little to be told from what is around it
        elements, rows = 8 * octets(kernel), 2 if of_floats(kernel) else 4
        sums = {"FMUL": elements, "FADD": 2 * elements, "FFMA": 2 * elements}
        if source == COSINE:
            sums = {"FFMA": elements}
        adding = min(
            sum(block.values())
            for block in kernel.blocks
            if all(block.get(opcode, 0) >= n for opcode, n in sums.items())
        )
        copying = max(sum(block.values()) for block in kernel.blocks if among(block, "LDGSTS"))
        assert adding + copying <= (2 if source == COSINE else 6) * elements + 48, kernel.name
        if of_floats(kernel):
            norms = min(sum(block.values()) for block in kernel.blocks if block.get("FFMA", 0) >= rows * elements)
            assert norms / rows <= 2 * elements + 16, kernel.name
        else:
            # Sixteen products of matrices make the squares of an octet of four rows.
            (octet,) = [sum(block.values()) for block in kernel.blocks if among(block, "HMMA") == 16]
            assert octet / rows <= 10, kernel.name


def test_instructions_of_a_gradient(arch: str) -> None:
    """Conversions from and to float64 are the slowest of them, 16 a clock of a multiprocessor: two an element are made.

    Memory takes as long as 28 instructions an element of two bytes, which is read and written.
    """
    for kernel in compiled(COSINE_BACKWARD, arch):
        pieces = octets(kernel) * (2 if of_floats(kernel) else 1)
        assert kernel.count("LDG", "128") == 2 * pieces, kernel.name  # once before the loop, once in it
        assert kernel.count("STG", "128") == 2 * pieces, kernel.name  # of rows of usual length and of others
        elements = 8 * octets(kernel)
        # Of the sums, and of the gradient of other rows; the inverse root of a norm.
        assert kernel.opcodes["F2F.F64.F32"] == 2 * elements + 1, kernel.name
        assert kernel.opcodes["F2F.F32.F64"] == 2 * elements + 1, kernel.name  # of the two gradients; a norm
        if octets(kernel) == 1 or of_floats(kernel):
            continue  # too little to be told from what is around it, or in a block for each octet
        (gradient,) = [block for block in kernel.blocks if block.get("F2F.F32.F64", 0) > elements]
        assert gradient["F2F.F64.F32"] == 1, kernel.name
        assert sum(gradient.values()) <= 8 * elements + 12, kernel.name


def test_as_many_blocks_fit_a_multiprocessor_as_are_launched_for_it(arch: str) -> None:
    for kernel in compiled(COSINE_BACKWARD, arch):
        few, many = (6, (4, 3, 2)) if of_floats(kernel) else (8, (5, 4, 3))
        blocks = few if octets(kernel) == 1 else many[octets(kernel) - 2]
        assert -(-kernel.registers // 8) * 8 * 128 * blocks <= REGISTERS_OF_A_MULTIPROCESSOR, kernel.name


@pytest.mark.parametrize("source", KERNELS)
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
        if source == COSINE and arguments(kernel):
            threads = 32 * 12
        assert kernel.registers * threads <= REGISTERS_OF_A_MULTIPROCESSOR, kernel.name


def test_no_sum_is_shared(arch: str) -> None:
    """What threads add to without waiting for it is their own, as the stand-in for launches finds out; one counts."""
    adds_alone = {"warp_moments.cu", "moment_partials.cu", *WARPS}
    for source in KERNELS:
        for kernel in compiled(source, arch):
            atomic = {
                opcode.split(".")[0].removesuffix("G")  # as sm_90 names those of global memory
                for opcode in kernel.opcodes
                if opcode.startswith(("ATOM", "RED"))
            }
            counts = "finish_cosine_kernel" in kernel.name
            assert atomic <= ({"ATOM"} if counts else {"RED"} if source in adds_alone else set()), kernel.name
