"""Triton kernels compiled without a GPU, and what their machine code is made of.

The tests run Triton's interpreter, which is chosen when triton is imported; so kernels are compiled in another
process: `in_subprocess("module:function")` runs a function of a module there, which returns what can be pickled. In
it, `code_of_launches` compiles the kernels that a call launches, specialised as Triton itself does it.
"""

from __future__ import annotations

import functools
import importlib
import json
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.built_once import cache_folder

# What one block can have, in bytes.
SHARED_MEMORY_LIMIT = {80: 163 * 1024, 90: 227 * 1024}


@dataclass(frozen=True)
class MachineCode:
    """What ptxas made of one kernel."""

    kernel: str
    capability: int
    registers: int
    stack: int
    """Bytes of stack frame of a thread: spilled registers and arrays that found no register."""
    spills: int
    """Loads and stores of local memory."""
    shared: int
    """Bytes of shared memory of a block."""
    loads: dict[str, int]
    """Load instructions of global memory by width in bits."""
    stores: dict[str, int]
    """Store instructions of global memory by width in bits."""
    matrix: int
    """Matrix instructions: mma and wgmma."""


def machine_code(
    function: Any,
    signature: dict[str, str],
    constexprs: dict[Any, Any],
    attrs: dict[Any, Any],
    capability: int,
    **options: Any,
) -> MachineCode:
    """Compiles one JITFunction for sm_`capability`; the arguments are those of `triton.compiler.ASTSource`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(function, signature, constexprs=constexprs, attrs=attrs)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    resources, sass = _disassembled(kernel.asm["cubin"])
    usage = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", resources)}
    instructions = Counter(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([A-Z][\w.]*)", sass, re.MULTILINE))

    def total(*names: str) -> int:
        return sum(n for instruction, n in instructions.items() if instruction.split(".")[0] in names)

    return MachineCode(
        kernel=function.__name__,
        capability=capability,
        registers=usage["REG"],
        stack=usage["STACK"],
        spills=total("LDL", "STL"),
        shared=kernel.metadata.shared,
        loads=_widths(instructions, "LDG", "LDGSTS"),
        stores=_widths(instructions, "STG"),
        matrix=total("HMMA", "IMMA", "DMMA", "HGMMA", "IGMMA", "QGMMA"),
    )


def code_of_launches(call: Callable[[], object], capability: int) -> list[MachineCode]:
    """Compiles what `call` launches on tensors of the CPU, in the order of the launches; nothing of it runs."""
    names = ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg")
    return [
        machine_code(*kernel, capability, **{name: options[name] for name in names})
        for *kernel, options in _launches(call, capability)
    ]


def parsed_launches(call: Callable[[], object], capability: int) -> list[str]:
    """Takes what `call` launches through Triton's front end alone, where types are settled; returns the kernels."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend

    target, parsed = GPUTarget("cuda", capability, 32), []
    backend = make_backend(target)
    for function, signature, constexprs, attrs, _ in _launches(call, capability):
        source, context = (
            ASTSource(function, signature, constexprs=constexprs, attrs=attrs),
            triton._C.libtriton.ir.context(),
        )
        triton._C.libtriton.ir.load_dialects(context)
        backend.load_dialects(context)
        options = backend.parse_options({"enable_fp_fusion": True, **source.parse_options()})
        source.make_ir(target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context)
        parsed.append(function.__name__)
    return parsed


def _launches(
    call: Callable[[], object], capability: int
) -> list[tuple[Any, dict[str, str], dict[Any, Any], dict[Any, Any], dict[str, Any]]]:
    """What `call` launches, as Triton specialises it: function, signature, constants, attributes and options."""
    from triton import knobs
    from triton.runtime import driver

    launched: list[tuple[Any, dict[str, str], dict[Any, Any], dict[Any, Any], dict[str, Any]]] = []

    def noted_instead_of_launched(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:  # noqa: A002
        options = json.loads(compile["specialization_data"])["options"]
        launched.append((fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0], options))
        return True

    before = knobs.runtime.jit_cache_hook
    knobs.runtime.jit_cache_hook = noted_instead_of_launched
    driver.set_active(_NoDevice(capability))
    try:
        call()
    finally:
        knobs.runtime.jit_cache_hook = before
    return launched


def in_subprocess(function: str, *arguments: object) -> Any:
    """What `module:function` returns in a process without Triton's interpreter."""
    return _results(function, arguments)[0]


def in_subprocesses(function: str, *jobs: tuple[object, ...]) -> list[Any]:
    """The lists that `module:function` returns for the arguments of each job, one after the other; two run at once."""
    return [each for found in _results(function, *jobs) for each in found]


def _results(function: str, *jobs: tuple[object, ...]) -> list[Any]:
    try:
        return [job.result() for job in [_compilers().submit(_called, function, job) for job in jobs]]
    except BrokenProcessPool:
        _compilers.cache_clear()
        raise


@functools.cache
def _compilers() -> ProcessPoolExecutor:
    """Processes that stay for the tests that follow: each takes seconds to import what it needs."""
    return ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), _begin_compiling)


def _begin_compiling() -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    # Triton finds compiled code again by its source, constants, options and compiler.
    os.environ["TRITON_CACHE_DIR"] = str(cache_folder("triton"))


def _called(function: str, arguments: tuple[object, ...]) -> Any:
    module, name = function.split(":")
    return getattr(importlib.import_module(module), name)(*arguments)


class _NoDevice:
    """As much of a driver as Triton asks for before it launches."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


@functools.cache
def _disassembled(cubin: bytes) -> tuple[str, str]:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return (
            subprocess.check_output([tools / "cuobjdump", "-res-usage", file.name], text=True),
            subprocess.check_output([tools / "nvdisasm", "-c", file.name], text=True),
        )


def _widths(instructions: Counter[str], *names: str) -> dict[str, int]:
    widths: Counter[str] = Counter()
    for instruction, n in instructions.items():
        name, *modifiers = instruction.split(".")
        if name in names:
            width = next((m.lstrip("US") for m in modifiers if m in ("U8", "S8", "U16", "S16", "64", "128")), "32")
            widths[width] += n
    return dict(widths)
