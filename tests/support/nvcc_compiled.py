"""CUDA kernels compiled by nvcc without a GPU: what the compiler says of each, and what its machine code is made of."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from tests.support.built_once import built_once, cache_folder
from tests.support.places import ROOT

CSRC = ROOT / "csrc"
# What differs between the two shows seldom: `make test-slow` has the older one.
ARCHS = (pytest.param("sm_80", marks=pytest.mark.slow), "sm_90")
# As setup.py compiles them; -v makes ptxas tell registers, stack and shared memory.
FLAGS = ["-std=c++17", "-O3", "-cubin", "-Xptxas", "-v"]
INCLUDES = ["-I", str(CSRC / "include"), "-I", str(CSRC)]

_PROPERTIES = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?\w+\s+)?(?P<opcode>[A-Z][A-Z0-9_.]*)")

_BRANCHES = ("BRA", "BRX", "EXIT", "RET", "CALL", "JMP")
# What is worth keeping of a block: so many operations of float32, copies into shared memory, products of matrices.
_MUCH = 16
_ALWAYS = ("LDGSTS", "HMMA")


@dataclass(frozen=True)
class Kernel:
    """One kernel of a .cu file, compiled for one architecture."""

    name: str
    """Demangled: with template arguments and parameters."""
    registers: int
    stack_frame: int
    spill_stores: int
    spill_loads: int
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


def disassembler() -> str | None:
    """nvdisasm of the toolkit, or the one that triton brings."""
    compiler, triton = nvcc(), importlib.util.find_spec("triton")
    places = [os.environ.get("PATH", ""), str(Path(compiler).parent) if compiler else ""]
    if triton is not None and triton.origin is not None:
        places.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    return shutil.which("nvdisasm", path=os.pathsep.join(filter(None, places)))


def compiled(source: str, arch: str, *options: str) -> list[Kernel]:
    """The kernels of csrc/cuda/`source`; what was compiled of the same text before, in any checkout, is taken again."""
    compiler, tool = nvcc(), disassembler()
    assert compiler is not None
    assert tool is not None
    digest = hashlib.sha256(repr((FLAGS, arch, options)).encode())
    digest.update(subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout)
    headers = sorted([*CSRC.rglob("*.h"), *CSRC.rglob("*.cuh")])
    for path in (_file(source), *headers, Path(__file__)):
        digest.update(path.read_bytes())
    kept = cache_folder("nvcc") / f"{Path(source).stem}-{arch}-{digest.hexdigest()[:20]}.json"

    def build(path: Path) -> None:
        path.write_text(json.dumps([asdict(kernel) for kernel in _compile(compiler, tool, source, arch, options)]))

    built_once(kept, build)
    return [Kernel(**kernel) for kernel in json.loads(kept.read_text())]


def _file(source: str) -> Path:
    """The source of that name, whatever room of csrc/cuda it is in."""
    return next((CSRC / "cuda").rglob(source))


def _compile(compiler: str, tool: str, source: str, arch: str, options: tuple[str, ...]) -> list[Kernel]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = str(Path(folder) / "kernels.cubin")
        command = [compiler, *FLAGS, *INCLUDES, f"-arch={arch}", *options, str(_file(source)), "-o", cubin]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stderr
        code = subprocess.run([tool, "-c", cubin], capture_output=True, text=True, check=True).stdout
    blocks = _blocks(code)
    found = [match.groupdict() for match in _PROPERTIES.finditer(told.stdout + told.stderr)]
    names = _demangled([match["name"] for match in found])
    return [
        Kernel(
            name=name,
            registers=int(match["registers"]),
            stack_frame=int(match["stack"]),
            spill_stores=int(match["stores"]),
            spill_loads=int(match["loads"]),
            static_shared=int(match["shared"] or 0),
            opcodes=dict(sum(blocks[match["name"]], Counter())),
            blocks=[dict(block) for block in blocks[match["name"]] if _is_kept(block)],
        )
        for name, match in zip(names, found, strict=True)
    ]


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
    arithmetic = sum(n for opcode, n in block.items() if opcode.split(".")[0] in ("FADD", "FMUL", "FFMA"))
    return arithmetic >= _MUCH or any(opcode.startswith(_ALWAYS) for opcode in block)


def _demangled(names: list[str]) -> list[str]:
    result = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True)
    return result.stdout.splitlines() if names else []
