"""Every place that has one entry for each op has the same ops, and what two languages say twice is the same."""

from __future__ import annotations

import inspect
import re
from types import ModuleType

import pytest
import torch

from cone_kernels import _cpu, backends
from cone_kernels.backends import Backend
from cone_kernels.kernels import cpu, reference
from cone_kernels.kernels.pointers import DTYPE_NUMBERS, GPU_DTYPES
from tests.support.places import ROOT

CSRC = ROOT / "csrc"
OPS = set(backends.ops_of(Backend.REFERENCE))
# Several ops in one call, for small batches; a backend need not have them.
OF_SEVERAL_OPS = {"pooled_cosine", "pooled_cosine_backward"}
# What ops need beside their kernels and torch is slow at on a CPU.
BESIDE_OPS = {"asymmetry", "mean_of_rows"}


@pytest.mark.parametrize("module", [reference, cpu], ids=["reference", "cpu"])
def test_a_backend_of_one_module_names_what_it_defines(module: ModuleType) -> None:
    functions = inspect.getmembers(module, inspect.isfunction)
    defined = {name for name, function in functions if function.__module__ == module.__name__ and name[0] != "_"}
    assert set(module.__all__) == defined - OF_SEVERAL_OPS - BESIDE_OPS


def test_every_backend_has_every_op() -> None:
    """An op may come without GPU kernels at first; then this test says so, and `auto` takes another backend."""
    assert set(cpu.__all__) == OPS
    assert set(backends.ops_of(Backend.TRITON)) == OPS
    text = (ROOT / "cone_kernels" / "kernels" / "cuda" / "__init__.py").read_text()
    assert set(re.findall(r'^    "(\w+)",$', text, re.MULTILINE)) == OPS


def test_every_source_of_the_cpu_kernels_forwards_what_it_is_named_after() -> None:
    """setup.py compiles each of them for every instruction set; the forward is what the binding calls."""
    forwards = {
        path.stem: re.findall(r"^CONE_FORWARD\((\w+), \w+\)$", path.read_text(), re.MULTILINE)
        for path in (CSRC / "cpu").glob("*.cpp")
        if path.name != "isa.cpp"
    }
    assert forwards == {name: [name] for name in OPS | BESIDE_OPS}


def test_every_op_has_a_contract_and_a_binding() -> None:
    contracts = "".join(path.read_text() for path in (CSRC / "include" / "cone").glob("*.h"))
    for op in OPS | BESIDE_OPS:
        assert re.search(rf"^void {op}\(const \w+Args& args\);$", contracts, re.MULTILINE), op
        assert callable(getattr(_cpu, op)), op


def test_the_safe_range_of_squared_norms_is_one() -> None:
    row_sums = pytest.importorskip("cone_kernels.kernels.triton.row_sums")
    text = (CSRC / "include" / "cone" / "moments.h").read_text()
    (found,) = re.findall(r"kLeastSafeNormSq = (\S+)f, kMostSafeNormSq = (\S+)f;", text)
    least, most = map(float.fromhex, found)
    assert (row_sums.SAFE_LEAST.value, row_sums.SAFE_MOST.value) == (least, most)


def test_status_bits_are_the_same_everywhere() -> None:
    row_sums = pytest.importorskip("cone_kernels.kernels.triton.row_sums")
    text = (CSRC / "include" / "cone" / "moments.h").read_text()
    (body,) = re.findall(r"enum Status : uint8_t \{(.*?)\};", text)
    bits = {name: int(bit) for name, bit in re.findall(r"k(\w+) = (\d+)", body)}
    assert bits == {
        "Used": reference._USED,
        "Zero": reference._ZERO,
        "Nonfinite": reference._NONFINITE,
        "Empty": reference._EMPTY,
    }
    assert [bits["Zero"], bits["Nonfinite"], bits["Empty"]] == [
        bit.value for bit in (row_sums.ZERO, row_sums.NONFINITE, row_sums.EMPTY)
    ]


def test_dtypes_have_the_numbers_of_the_kernels() -> None:
    (body,) = re.findall(r"enum class DType : int \{(.*?)\};", (CSRC / "include" / "cone" / "types.h").read_text())
    numbers = {name.lower(): int(number) for name, number in re.findall(r"k(\w+) = (\d+)", body)}
    assert {str(dtype).removeprefix("torch."): number for dtype, number in DTYPE_NUMBERS.items()} == numbers
    assert set(GPU_DTYPES) == set(DTYPE_NUMBERS) - {torch.float64}


def test_the_range_of_safe_products_of_a_column_is_one() -> None:
    gram_product = pytest.importorskip("cone_kernels.kernels.triton.gram_product")
    text = (CSRC / "cuda" / "matrices" / "moment_tiles.cuh").read_text()
    (found,) = re.findall(r"kSafeLeast = (\S+), kSafeMost = (\S+);", text)
    least, most = map(float.fromhex, found)
    assert (gram_product._SAFE_LEAST.value, gram_product._SAFE_MOST.value) == (least, most)
