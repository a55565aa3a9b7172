"""Builds the C++ and CUDA extensions. Metadata is in pyproject.toml; torch is neither imported nor linked.

CONE_CUDA=auto|0|1         build cone_kernels._cuda where nvcc is found (auto), never (0), or fail without nvcc (1)
CONE_ISAS=all|native|best  build cone_kernels._cpu for every instruction set (all), those that this processor has, or
                           the best of these alone
CONE_CUDA_ARCHS            the compute capabilities to build for, default "80;90"; GPUs beyond the highest run its PTX
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CSRC = Path("csrc")
FLAGS = ["-std=c++17", "-O3", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-g0", "-Wall"]

# Every op's source in csrc/cpu/ is compiled once per instruction set; csrc/cpu/isa.h chooses among them at run time.
BASELINE: dict[str, list[str]] = {"baseline": []}
X86_ISAS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}
OP_SOURCES = sorted(path.name for path in (ROOT / CSRC / "cpu").glob("*.cpp") if path.name != "isa.cpp")
COMMON_SOURCES = ["cpu/isa.cpp", "bindings/cpu.cpp"]


def cuda_wanted() -> str | None:
    """The nvcc to build `_cuda` with, or None, as CONE_CUDA asks."""
    choice = os.environ.get("CONE_CUDA", "auto")
    if choice not in {"auto", "0", "1"}:
        sys.exit(f"CONE_CUDA: got {choice!r}; it must be auto, 0 or 1")
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=str(Path(home) / "bin") if home else None)
    if choice == "1" and nvcc is None:
        sys.exit(
            "CONE_CUDA: got 1, but no nvcc was found; it must be 0 or auto, or CUDA_HOME or PATH must lead to nvcc"
        )
    return None if choice == "0" else nvcc


class BuildExtensions(build_ext):
    """Compiles each op's source per instruction set, and the CUDA sources with nvcc."""

    def build_extension(self, ext: Extension) -> None:
        if ext.name.endswith("_cuda"):
            self.build_cuda(ext)
            return
        isas = self.wanted_isas()
        # These know which instruction sets there are; the first one's have each op's entry, which calls one of them.
        have = [(f"CONE_HAVE_{isa.upper()}", "1") for isa in isas]
        first = next(iter(isas))
        macros = {isa: [("CONE_ISA", isa)] for isa in isas} | {"common": have}
        macros[first] += [*have, ("CONE_DEFINES_FORWARDS", "1")]
        openmp = ["-fopenmp"] if self.accepts(["-fopenmp"]) else []
        if not openmp:
            print("cone_kernels: the compiler has no OpenMP; the CPU kernels will run on one thread")
        # What needs no instruction set comes first: inline functions that several objects share are taken from the
        # first one that has them.
        jobs: list[tuple[Path, str, list[str]]] = [(CSRC / name, "common", []) for name in COMMON_SOURCES]
        jobs += [(CSRC / "cpu" / name, isa, flags) for isa, flags in isas.items() for name in OP_SOURCES]
        changed = last_change("*.h")

        def build(job: tuple[Path, str, list[str]]) -> list[str]:
            source, isa, flags = job
            among = f"-of-{'-'.join(isas)}" if isa in ("common", first) else ""
            folder = self.objects() / f"cpu-{isa}{among}"
            targets = self.compiler.object_filenames([str(source)], output_dir=str(folder))
            if not self.force and is_newer(Path(targets[0]), changed, source):
                return targets
            return self.compiler.compile(
                [str(source)],
                output_dir=str(folder),
                macros=macros[isa],
                include_dirs=[str(CSRC / "include"), str(CSRC), *ext.include_dirs, *self.include_dirs],
                extra_postargs=[*FLAGS, *openmp, *flags],
            )

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = [obj for objs in pool.map(build, jobs) for obj in objs]
        target = self.get_ext_fullpath(ext.name)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, target, extra_postargs=openmp, target_lang="c++")

    def objects(self) -> Path:
        """Where objects stay from build to build; `pip install --editable` builds in a folder that it throws away."""
        return ROOT / "build" / f"{sys.implementation.cache_tag}-pybind11-{pybind11.__version__}"

    def wanted_isas(self) -> dict[str, list[str]]:
        """The compiler's flags of every instruction set to build for, the best one last, as CONE_ISAS asks."""
        choice = os.environ.get("CONE_ISAS", "all")
        if choice not in {"all", "native", "best"}:
            sys.exit(f"CONE_ISAS: got {choice!r}; it must be all, native or best")
        if platform.machine().lower() not in {"x86_64", "amd64"}:
            return BASELINE
        isas = BASELINE | {isa: flags for isa, flags in X86_ISAS.items() if self.accepts(flags)}
        if choice != "all":
            isas = {isa: flags for isa, flags in isas.items() if not flags or self.runs(flags)}
        return dict([isas.popitem()]) if choice == "best" else isas

    def accepts(self, flags: list[str]) -> bool:
        """Whether the compiler builds and links an empty program with these flags."""
        return self.builds("int main() { return 0; }", [*flags, "-shared", "-fPIC"])

    def runs(self, flags: list[str]) -> bool:
        """Whether this processor has the instructions that these flags let the compiler use."""
        known = " && ".join(f'__builtin_cpu_supports("{flag.removeprefix("-m")}")' for flag in flags)
        return self.builds(f"int main() {{ return !({known}); }}", [], run=True)

    def builds(self, program: str, flags: list[str], *, run: bool = False) -> bool:
        """Whether a program builds and, where asked, runs and exits with 0."""
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "probe.cpp", str(Path(folder) / "probe")
            source.write_text(program + "\n")
            commands = [[*self.compiler.compiler_so, *flags, str(source), "-o", target], *([[target]] if run else [])]
            return all(subprocess.run(one, capture_output=True, check=False).returncode == 0 for one in commands)

    def build_cuda(self, ext: Extension) -> None:
        nvcc = str(cuda_wanted())
        archs = os.environ.get("CONE_CUDA_ARCHS", "80;90").split(";")
        folder = self.objects() / f"cuda-{'-'.join(archs)}"
        folder.mkdir(parents=True, exist_ok=True)
        gencode = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        newest = max(archs, key=lambda arch: int(arch.rstrip("af")))
        gencode.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")  # PTX, for GPUs to come
        includes = [f"-I{path}" for path in (CSRC / "include", CSRC, *ext.include_dirs, *self.include_dirs)]
        changed = last_change("*.h", "*.cuh")

        def build(source: str) -> str:
            """The object of one source, compiled anew where it or a header has changed."""
            target = folder / f"{Path(source).stem}-{Path(source).suffix[1:]}.o"
            if not self.force and is_newer(target, changed, Path(source)):
                return str(target)
            partial = target.with_suffix(".partial.o")  # an interrupted build leaves no object that looks finished
            command = [nvcc, "-std=c++17", "-O3", "-c", "-Xcompiler=-fPIC,-fvisibility=hidden", *gencode, *includes]
            print(" ".join([*command, source]))
            subprocess.run([*command, source, "-o", str(partial)], check=True)
            partial.rename(target)
            return str(target)

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(build, ext.sources))
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([nvcc, "-shared", "-cudart=static", *gencode, *objects, "-o", str(target)], check=True)


def last_change(*headers: str) -> float:
    """When a header or this file was last changed."""
    paths = [ROOT / "setup.py", *(path for ending in headers for path in CSRC.rglob(ending))]
    return max(path.stat().st_mtime for path in paths)


def is_newer(target: Path, changed: float, source: Path) -> bool:
    """Whether an object is there and newer than its source and the last change of a header."""
    return target.exists() and target.stat().st_mtime > max(changed, source.stat().st_mtime)


def extensions() -> list[Extension]:
    include = [pybind11.get_include()]
    found = [Extension("cone_kernels._cpu", [str(CSRC / "bindings" / "cpu.cpp")], include, language="c++")]
    if cuda_wanted() is None:
        print("cone_kernels: no CUDA extension (nvcc was not found, or CONE_CUDA=0)")
    else:
        found_sources = [*(ROOT / CSRC / "bindings").glob("cuda*.cpp"), *(ROOT / CSRC / "cuda").rglob("*.cu")]
        sources = sorted(str(path.relative_to(ROOT)) for path in found_sources)
        found.append(Extension("cone_kernels._cuda", sources, include, language="c++"))
    return found


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtensions},
    # An editable install is then a path, which type checkers follow; they cannot follow the import hook of the default.
    options={"editable_wheel": {"mode": "compat"}},
)
