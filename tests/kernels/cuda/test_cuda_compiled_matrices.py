"""The matrix kernels as nvcc compiles them: nothing spills, and tensor cores and asynchronous copies are there."""

from __future__ import annotations

import pytest

from tests.support.nvcc_compiled import ARCHS, Kernel, compiled, needs_nvcc

pytestmark = needs_nvcc

# Threads of a block, which share 65536 registers.
THREADS = {"begin_layers": 512, "step_layers": 512}
OPS = {
    "second_moment.cu": {"find_largest": 3, "write_planes": 3, "copy_rows": 2, "multiply_tiles": 4, "add_raw_tiles": 2}
    | {"add_plane_tiles": 1},
    "top_eigenvectors.cu": {"sum_columns": 3, "begin_layers": 3, "multiply_covariance": 3, "multiply_data": 3}
    | {"add_segments": 1, "step_layers": 1},
}


def named(kernels: list[Kernel], name: str, element: str = "") -> list[Kernel]:
    return [kernel for kernel in kernels if f"::{name}" in kernel.name and element in kernel.name]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("source", OPS)
def test_nothing_is_kept_outside_registers(source: str, arch: str) -> None:
    kernels = compiled(source, arch)
    assert len(kernels) == sum(OPS[source].values())
    for name, variants in OPS[source].items():
        assert len(named(kernels, name)) == variants, name
        for kernel in named(kernels, name):
            assert kernel.stack_frame == kernel.local == 0, kernel.name
            assert kernel.count("LDL") == kernel.count("STL") == 0, kernel.name
            assert kernel.static_shared == 0, kernel.name
            assert kernel.registers * THREADS.get(name, 256) <= 65536, kernel.name


@pytest.mark.parametrize("arch", ARCHS)
def test_tiles_are_multiplied_by_tensor_cores(arch: str) -> None:
    tiles = named(compiled("second_moment.cu", arch), "multiply_tiles")
    for kernel in tiles:
        products = 48 if "TwoPlanes" in kernel.name else 16  # of 16 rows, three for each pair of two planes
        assert kernel.count("HMMA", "16816", "F32") == products, kernel.name
        assert kernel.count("LDSM", "MT88", "4") > 0, kernel.name
        assert kernel.count("LDSM") == kernel.count("LDSM", "MT88", "4"), kernel.name
        assert kernel.count("LDGSTS", "128") > 0, kernel.name
        assert kernel.count("LDGSTS") == kernel.count("LDGSTS", "128"), kernel.name
        assert kernel.count("FADD") >= 256, kernel.name  # of 64 entries, compensated
        assert kernel.count("F2F") == 0, kernel.name  # conversions to float64 take long
        assert kernel.count("STG", "128") == 32, kernel.name
    assert sum(kernel.count("HMMA", "BF16") > 0 for kernel in tiles) == 1


@pytest.mark.parametrize("arch", ARCHS)
def test_rows_are_loaded_and_planes_stored_together(arch: str) -> None:
    kernels = compiled("second_moment.cu", arch)
    for name in ("find_largest", "write_planes"):
        for element, width in (("float>", "128"), ("BFloat16>", "64"), ("::Float16>", "64")):
            (kernel,) = named(kernels, name, element)
            assert kernel.count("LDG", width) > 0, kernel.name
    for kernel in named(kernels, "write_planes"):
        assert kernel.count("STG", "64") >= 2, kernel.name


@pytest.mark.parametrize("arch", ARCHS)
def test_products_of_vectors_are_fused_and_loaded_in_pairs(arch: str) -> None:
    kernels = compiled("top_eigenvectors.cu", arch)
    for element, width in (("float>", "64"), ("BFloat16>", "32"), ("::Float16>", "32")):
        (covariance,) = named(kernels, "multiply_covariance", element)
        assert covariance.count("DFMA") >= 64, covariance.name
        assert covariance.count("LDS", "128") > 0, covariance.name
        (data,) = named(kernels, "multiply_data", element)
        assert data.count("FFMA") >= 64, data.name
        if width == "64":
            assert covariance.count("LDG", width) >= 4, covariance.name
            assert data.count("LDG", width) >= 4, data.name
