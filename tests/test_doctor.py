"""`cone doctor` tells what is there and why something is missing, and never fails for it."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from click.testing import CliRunner

import cone_kernels
from cone_kernels import _cpu, backends, doctor
from cone_kernels.backends import capabilities
from cone_kernels.cli import main


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "BANDWIDTH_BYTES", 1 << 20)


def test_json_alone_on_stdout(quick: None) -> None:
    done = CliRunner().invoke(main, ["doctor", "--json", "-"])
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["schema"] == "cone_kernels/doctor/1"
    assert found["versions"]["torch"] == version("torch")
    assert found["cpu"]["isa"] == _cpu.isa()
    assert found["cpu"]["supported_isas"] == _cpu.supported_isas()
    assert found["cpu"]["torch_threads"] == torch.get_num_threads()
    assert found["bandwidth"]["gb_per_s"] > 0
    for backend in found["backends"]:
        capability = capabilities()[backend["backend"]]
        assert (backend["available"], backend["reason"]) == (capability.available, capability.reason)
        assert backend["available"] or backend["reason"]


def test_what_is_printed(quick: None) -> None:
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 0
    for capability in capabilities().values():
        line = next(line for line in done.stdout.splitlines() if line[6:].startswith(f"{capability.backend} "))
        assert line.split()[0] == ("yes" if capability.available else "no")
        assert capability.reason in line
    assert f"torch {version('torch')}" in done.stdout
    assert "GB/s (torch.sum, bytes read)" in done.stdout


def test_bandwidth_is_that_of_the_bytes_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_best_seconds", lambda work: 0.5)
    monkeypatch.setattr(doctor, "BANDWIDTH_BYTES", 1 << 20)
    assert doctor.bandwidth()["gb_per_s"] == (1 << 20) / 0.5 / 1e9


def test_without_torch_and_without_the_extension() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'cone_kernels._cpu', 'cone_kernels._cuda'): sys.modules[name] = None\n"
        "from cone_kernels.cli import main\n"
        "main(['doctor', '--json', '-'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert not any(backend["available"] for backend in found["backends"])
    reasons = {backend["backend"]: backend["reason"] for backend in found["backends"]}
    assert "torch is not installed" in reasons["cpu"]
    assert "torch is not installed" in reasons["reference"]
    assert "torch is not installed" in found["bandwidth"]["method"]
    assert (found["cpu"]["torch_threads"], found["cpu"]["isa"], found["gpus"]) == (None, None, [])


def test_an_extension_that_does_not_load_is_told_and_does_not_end_the_command(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unloadable(importlib.abc.Loader, importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
            return importlib.machinery.ModuleSpec(name, self) if name == "cone_kernels._cpu" else None

        def exec_module(self, _: object) -> NoReturn:
            raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "cone_kernels._cpu")
    monkeypatch.delattr(cone_kernels, "_cpu")
    monkeypatch.setattr(sys, "meta_path", [Unloadable(), *sys.meta_path])
    monkeypatch.setattr(backends, "capabilities", backends.capabilities.__wrapped__)
    done = CliRunner().invoke(main, ["doctor", "--json", "-"])
    found = json.loads(done.stdout)
    reasons = {backend["backend"]: backend["reason"] for backend in found["backends"]}
    said = "the extension cone_kernels._cpu does not load: libgomp.so.1: cannot open shared object file"
    assert (reasons["cpu"], found["cpu"]["isa"], found["cpu"]["supported_isas"]) == (said, None, [])


def test_memory_is_the_systems(tmp_path: Path) -> None:
    found = doctor.memory()
    assert found["total_bytes"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < found["available_bytes"] <= found["total_bytes"]
