"""Builds CUDA sources for the CPU with g++: kernel bodies unchanged, CUDA itself from tests/kernels/simt."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

from tests.support.built_once import built_once, cache_folder
from tests.support.places import ROOT

SIMT = ROOT / "tests" / "kernels" / "simt"
CSRC = ROOT / "csrc"
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE", "-Wall", "-Wno-unknown-pragmas"]
# The shim's headers come first, so that they stand in for CUDA's and for csrc/cuda's own launcher.
INCLUDES = [SIMT, CSRC / "include", CSRC, Path(pybind11.get_include()), Path(sysconfig.get_path("include"))]


def shared_object(sources: list[Path], name: str) -> Path:
    """Compiles and links `sources` and the shim; what was built of the same text before is taken again."""
    patterns = ["*.h", "*.cuh", "bindings/cuda*.cpp"]
    included = sorted(path for pattern in patterns for folder in (CSRC, SIMT) for path in folder.rglob(pattern))
    compiler = os.environ.get("CXX", "g++")
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(repr((FLAGS, name, version, pybind11.__version__)).encode())
    for path in [*sources, SIMT / "simt.cpp", *included]:
        digest.update(path.read_bytes())
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    target = cache_folder("simt") / f"{name}-{digest.hexdigest()[:20]}{suffix}"
    return built_once(target, lambda path: _build(compiler, [*sources, SIMT / "simt.cpp"], path))


def _build(compiler: str, sources: list[Path], target: Path) -> None:
    options = [*FLAGS, *(f"-I{path}" for path in INCLUDES)]
    with tempfile.TemporaryDirectory() as folder:

        def compiled(source: Path) -> str:
            target = Path(folder) / f"{source.stem}-{source.parent.name}.o"
            subprocess.run([compiler, "-x", "c++", *options, "-c", str(source), "-o", str(target)], check=True)
            return str(target)

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(compiled, sources))
        subprocess.run([compiler, "-shared", *objects, "-o", str(target)], check=True)


def cuda_module() -> ModuleType:
    """cone_kernels._cuda as a module whose kernels take CPU tensors' addresses and run on the CPU."""
    path = shared_object([*sorted((CSRC / "cuda").rglob("*.cu")), SIMT / "bindings.cpp"], "_cuda")
    spec = importlib.util.spec_from_file_location("simt._cuda", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.path = path  # type: ignore[attr-defined]
    return module
