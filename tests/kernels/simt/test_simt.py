"""The shim that runs CUDA kernels on the CPU, before anything is tested with it."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch

from tests.support.simt_build import SIMT, shared_object


@pytest.fixture(scope="module")
def shim() -> ctypes.CDLL:
    library = ctypes.CDLL(str(shared_object([SIMT / "self_test.cpp"], "self_test")))
    for name in (
        "run_sum_rows",
        "run_some_threads_skip_a_barrier",
        "run_two_barriers_at_once",
        "run_half_a_warp_shuffles",
        "run_reads_shared_memory_before_writing",
        "run_lanes",
        "run_one_buffer_for_two_turns",
        "run_threads",
        "run_one_and_small_products",
        "run_adds",
        "run_grid",
    ):
        getattr(library, name).restype = ctypes.c_char_p
    return library


def address(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.mark.parametrize("order", [0, 1, 7])
@pytest.mark.parametrize("threads", [32, 128, 1024])
def test_block_sums(shim: ctypes.CDLL, threads: int, order: int) -> None:
    rows = torch.arange(5 * 300, dtype=torch.float32).reshape(5, 300)
    sums = torch.full((5,), torch.nan)
    shim.simt_order(order)
    assert shim.run_sum_rows(address(rows), 5, 300, address(sums), threads) == b""
    shim.simt_order(0)
    assert torch.equal(sums, rows.sum(1))


def test_shuffles_and_ballot(shim: ctypes.CDLL) -> None:
    down, from_third = torch.zeros(32, dtype=torch.int32), torch.zeros(32, dtype=torch.int32)
    ballot = torch.zeros(1, dtype=torch.int32)
    assert shim.run_lanes(address(down), address(from_third), address(ballot)) == b""
    assert down.tolist() == [lane + 3 if lane + 3 < 32 else lane for lane in range(32)]
    assert from_third.tolist() == [lane // 8 * 8 + 3 for lane in range(32)]
    assert int(ballot) & 0xFFFFFFFF == sum(1 << lane for lane in range(0, 32, 3))


def test_two_threads_that_add_to_one_number_are_an_error(shim: ctypes.CDLL) -> None:
    sums = torch.zeros(32, dtype=torch.float64)
    for _ in range(2):  # another launch may add to it again
        assert shim.run_adds(address(sums), 32) == b""
    assert torch.equal(sums, torch.full((32,), 2.0, dtype=torch.float64))
    assert b"two threads of a launch add to one number" in shim.run_adds(address(sums), 31)


def test_divergent_barriers_are_errors(shim: ctypes.CDLL) -> None:
    told = shim.run_some_threads_skip_a_barrier().decode()
    assert "self_test: divergent barrier: thread 0 waits at line" in told
    assert "thread 40 has ended" in told
    assert b"thread 32 waits at line" in shim.run_two_barriers_at_once()
    values = torch.zeros(32, dtype=torch.int32)
    assert b"for its warp; thread 16 has ended" in shim.run_half_a_warp_shuffles(address(values))


def test_a_race_shows_where_one_warp_runs_ahead(shim: ctypes.CDLL) -> None:
    found = set()
    for order in range(2, 8):
        seen = torch.full((4,), -1, dtype=torch.int32)
        shim.simt_order(order)
        assert shim.run_one_buffer_for_two_turns(address(seen)) == b""
        found.add(tuple(seen.tolist()))
    shim.simt_order(0)
    assert any(seen != (0, 1, 0, 1) for seen in found)


def test_shared_memory_is_poisoned(shim: ctypes.CDLL) -> None:
    value = torch.zeros(1)
    assert shim.run_reads_shared_memory_before_writing(address(value)) == b""
    assert math.isnan(float(value))


@pytest.mark.parametrize("threads", [0, 33, 2048])
def test_impossible_blocks_are_refused(shim: ctypes.CDLL, threads: int) -> None:
    assert f"a block of {threads} threads".encode() in shim.run_threads(threads)


@pytest.mark.parametrize("grid", [(1, 65536, 1), (1, 1, 65536)])
def test_impossible_grids_are_refused(shim: ctypes.CDLL, grid: tuple[int, int, int]) -> None:
    x, y, z = grid
    assert f"self_test: a grid of {x} x {y} x {z} blocks".encode() in shim.run_grid(*grid)
    assert shim.run_grid(3, 2, 1) == b""


@pytest.mark.parametrize(("exponent", "wanted"), [(-12, 2.0**-20), (-13, 0.0)])
def test_products_below_the_accumulator_are_cut_off_one_by_one(shim: ctypes.CDLL, exponent: int, wanted: float) -> None:
    """16 products of 2^-24 beside 1 are all kept, of 2^-25 none, although they add up to more than a rounding."""
    total = torch.zeros(1)
    assert shim.run_one_and_small_products(exponent, address(total)) == b""
    assert float(total) - 1 == wanted
