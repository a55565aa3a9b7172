"""CUDA kernels compiled by nvcc without a GPU: what the compiler says of each, and what its machine code is made of."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.built_once import built_once, cache_folder
from tests.support.places import ROOT

CSRC = ROOT / "csrc"
# What differs between the two shows seldom: `make test-slow` has the older one.
ARCHS = (pytest.param("sm_80", marks=pytest.mark.slow), "sm_90")
# Bytes of shared memory that the system takes of each block that has any, and that cuobjdump counts as the block's.
RESERVED_SHARED = {"sm_80": 0, "sm_90": 1024}
# As setup.py compiles them.
FLAGS = ["-std=c++17", "-O3", "-cubin"]
INCLUDES = ["-I", str(CSRC / "include"), "-I", str(CSRC)]

_RESOURCES = re.compile(
    r"Function (?P<name>\w+):\s*REG:(?P<registers>\d+) STACK:(?P<stack>\d+) SHARED:(?P<shared>\d+) LOCAL:(?P<local>\d+)"
)
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?\w+\s+)?(?P<opcode>[A-Z][A-Z0-9_.]*)")

_BRANCHES = ("BRA", "BRX", "EXIT", "RET", "CALL", "JMP")
# What is worth keeping of a block: much arithmetic of one precision, copies into shared memory, products of matrices.
_MUCH = 16
_ALWAYS = ("LDGSTS", "HMMA")


@dataclass(frozen=True)
class Kernel:
    """One kernel of a .cu file, compiled for one architecture."""

    name: str
    """Demangled: with template arguments and parameters."""
    registers: int
    stack_frame: int
    local: int
    """Bytes a thread has outside registers beside its stack frame."""
    static_shared: int
    opcodes: dict[str, int]
    """How many instructions there are of each opcode, modifiers included, as `LDG.E.128.CONSTANT`."""
    blocks: list[dict[str, int]]
    """The same of each run of instructions without a branch in or out, of those that copy or have much arithmetic."""

    def count(self, *parts: str) -> int:
        """Instructions whose opcode has all of these parts, in any order: count("LDG", "128"), count("HMMA")."""
        return sum(n for opcode, n in self.opcodes.items() if set(parts) <= set(opcode.split(".")))


def nvcc() -> str | None:
    """The nvcc that setup.py would take."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=str(Path(home) / "bin") if home else None)


def tool(name: str) -> str | None:
    """cuobjdump or nvdisasm: the toolkit's, or the one that triton brings."""
    compiler, triton = nvcc(), importlib.util.find_spec("triton")
    places = [os.environ.get("PATH", ""), str(Path(compiler).parent) if compiler else ""]
    if triton is not None and triton.origin is not None:
        places.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    return shutil.which(name, path=os.pathsep.join(filter(None, places)))


MISSING = [name for name in ("nvcc", "cuobjdump", "nvdisasm") if (nvcc() if name == "nvcc" else tool(name)) is None]
needs_nvcc = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@functools.cache
def compiled(source: str, arch: str) -> list[Kernel]:
    """The kernels of csrc/cuda/`source`, read from the extension's own object where that is up to date."""
    (path,) = (CSRC / "cuda").rglob(source)
    with tempfile.TemporaryDirectory() as folder:
        cubin = _taken_out(_built(path), arch, Path(folder)) or _compiled_now(path, arch)
        code = _told_by("nvdisasm", "-c", str(cubin))
        resources = _told_by("cuobjdump", "-res-usage", str(cubin))
    blocks = _blocks(code)
    found = [match.groupdict() for match in _RESOURCES.finditer(resources)]
    names = _demangled([match["name"] for match in found])
    return [
        Kernel(
            name=name,
            registers=int(match["registers"]),
            stack_frame=int(match["stack"]),
            local=int(match["local"]),
            static_shared=max(0, int(match["shared"]) - RESERVED_SHARED[arch]),
            opcodes=dict(sum(blocks[match["name"]], Counter())),
            blocks=[dict(block) for block in blocks[match["name"]] if _is_kept(block)],
        )
        for name, match in zip(names, found, strict=True)
    ]


def _headers() -> list[Path]:
    return sorted([*CSRC.rglob("*.h"), *CSRC.rglob("*.cuh")])


def _built(source: Path) -> Path | None:
    """The object that setup.py made of `source`, unless that, a header or setup.py itself was changed since."""
    changed = max(path.stat().st_mtime for path in (source, ROOT / "setup.py", *_headers()))
    objects = (ROOT / "build").glob(f"*/cuda-*/{source.stem}-cu.o")
    return next((path for path in objects if path.stat().st_mtime > changed), None)


def _taken_out(built: Path | None, arch: str, folder: Path) -> Path | None:
    """The machine code for `arch` in an object, if it has any."""
    if built is not None:
        _told_by("cuobjdump", "-arch", arch, "-xelf", "all", str(built), cwd=folder)
    return next(folder.glob("*.cubin"), None)


def _compiled_now(source: Path, arch: str) -> Path:
    """What was compiled of the same text before, in any checkout, is taken again."""
    digest = hashlib.sha256(repr((FLAGS, arch)).encode())
    digest.update(subprocess.run([str(nvcc()), "--version"], capture_output=True, check=True).stdout)
    for path in (source, *_headers()):
        digest.update(path.read_bytes())

    def build(path: Path) -> None:
        command = [str(nvcc()), *FLAGS, *INCLUDES, f"-arch={arch}", str(source), "-o", str(path)]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stderr

    return built_once(cache_folder("nvcc") / f"{source.stem}-{arch}-{digest.hexdigest()[:20]}.cubin", build)


def _told_by(name: str, *arguments: str, cwd: Path | None = None) -> str:
    return subprocess.run([str(tool(name)), *arguments], capture_output=True, text=True, check=True, cwd=cwd).stdout


def _blocks(code: str) -> dict[str, list[Counter[str]]]:
    """Of each kernel the opcodes between one label or branch and the next, in their order."""
    found: dict[str, list[Counter[str]]] = {}
    blocks: list[Counter[str]] = [Counter()]
    for line in code.splitlines():
        section = re.match(r"\s*\.section\s+\.text\.(\w+)", line)
        if section:
            blocks = found.setdefault(section[1], [Counter()])
        instruction = _INSTRUCTION.match(line)
        if instruction:
            blocks[-1][instruction["opcode"]] += 1
        if re.match(r"\s*\.L_\w+:", line) or (instruction and instruction["opcode"].startswith(_BRANCHES)):
            blocks.append(Counter())
    return found


def _is_kept(block: Mapping[str, int]) -> bool:
    many = any(
        sum(n for opcode, n in block.items() if opcode.split(".")[0] in arithmetic) >= _MUCH
        for arithmetic in (("FADD", "FMUL", "FFMA"), ("DADD", "DMUL", "DFMA"))
    )
    return many or any(opcode.startswith(_ALWAYS) for opcode in block)


def _demangled(names: list[str]) -> list[str]:
    result = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True)
    return result.stdout.splitlines() if names else []
