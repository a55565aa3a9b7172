"""Which instruction set a build of the CPU kernels takes, of those that it was compiled for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cone_kernels import _cpu
from tests.support.places import ROOT

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="not installed: g++")

PROGRAM = """
#include <cstdio>
#include <exception>
#include "cpu/isa.h"
int main() {
  try {
    std::printf("%d", int(cone::active_isa()));
  } catch (const std::exception& error) {
    std::printf("%s", error.what());
  }
  for (int isa = 0; isa < 3; ++isa) std::printf(" %d", cone::isa_supported(cone::Isa(isa)) ? isa : -1);
}
"""
NAMES = ("baseline", "avx2", "avx512")


def told(folder: Path, built: list[str]) -> str:
    """What the program says, compiled as setup.py compiles it where these sets are built."""
    (folder / "main.cpp").write_text(PROGRAM)
    macros = [f"-DCONE_HAVE_{name.upper()}=1" for name in built]
    source = [str(folder / "main.cpp"), str(ROOT / "csrc" / "cpu" / "isa.cpp")]
    subprocess.run(["g++", "-std=c++17", *macros, f"-I{ROOT / 'csrc'}", *source, "-o", str(folder / "a")], check=True)
    return subprocess.run([str(folder / "a")], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("built", [["baseline"], ["avx2"], ["baseline", "avx2"], ["baseline", "avx2", "avx512"]])
def test_the_best_that_is_built_and_known_is_taken(tmp_path: Path, built: list[str]) -> None:
    known = [at for at, name in enumerate(NAMES) if name in built and name in _cpu.supported_isas()]
    each = " ".join(str(at if at in known else -1) for at in range(3))
    if known:
        assert told(tmp_path, built) == f"{known[-1]} {each}"
    else:
        assert "build it here, or with CONE_ISAS=all" in told(tmp_path, built)


def test_a_build_for_other_processors_says_so(tmp_path: Path) -> None:
    assert told(tmp_path, []) == (
        "isa: got a build without instructions that this processor has; build it here, or with CONE_ISAS=all -1 -1 -1"
    )
