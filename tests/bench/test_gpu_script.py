"""`make gpu` where there is no GPU: its processes, its results, and its checks, tried with the CPU's kernels."""

from __future__ import annotations

import functools
import importlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.gpu import cases as gpu_cases
from bench.gpu import kernels as gpu_kernels
from bench.gpu import run as gpu
from bench.gpu import small_case as gpu_small_case
from bench.gpu import timing as gpu_timing
from bench.gpu.process import Ended, run, toolkit
from tests.support.forked import run_python
from tests.support.places import ROOT
from tests.support.processes import alive

CPU = torch.device("cpu")
# A child that leaves a child of its own, which holds the output open.
LEAVES_A_CHILD = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True)"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: `make gpu` would run")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    result = run_python("-m", "bench.gpu.run", "--results", tmp_path, "bench")
    assert result.returncode == 2
    assert result.stdout.strip() == "gpu: torch finds no GPU on this machine; nothing was run"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_stage_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "deploy"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert "invalid choice: 'deploy'" in capsys.readouterr().err


def test_all_stages_are_under_eight_minutes() -> None:
    assert list(gpu.LIMIT_SECONDS) == list(gpu.STAGES)
    assert sum(gpu.LIMIT_SECONDS.values()) <= 8 * 60 - 20


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(("then", "code", "ok"), [("; import time; time.sleep(60)", None, False), ("", 0, True)])
def test_a_limit_holds_for_grandchildren(then: str, code: int | None, ok: bool) -> None:
    start = time.perf_counter()
    found = run([sys.executable, "-c", LEAVES_A_CHILD + then], 1)
    assert time.perf_counter() - start < 10
    assert (found.code, found.ok) == (code, ok)
    grandchild = int(found.printed.split()[0])
    deadline = time.perf_counter() + 5
    while alive(grandchild) and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert not alive(grandchild)
    assert ("stopped after 1 s" in found.printed) == (not ok)


def test_a_terminated_script_ends_what_it_started(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from bench.gpu.process import *; end_with_children(); "
        f"run([sys.executable, '-c', \"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); "
        'time.sleep(60)"], 60)'
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.perf_counter() + 20
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.perf_counter() < deadline:
        time.sleep(0.01)
    process.terminate()
    assert process.wait(timeout=10) == 128 + 15
    deadline = time.perf_counter() + 5
    while alive(int((tmp_path / "pid").read_text())) and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert not alive(int((tmp_path / "pid").read_text()))


def test_toolkit_looks_in_cuda_home_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("home", "path"):
        (tmp_path / folder / "bin").mkdir(parents=True)
        (tmp_path / folder / "bin" / "compute-sanitizer").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert toolkit("compute-sanitizer") == str(tmp_path / "home" / "bin" / "compute-sanitizer")
    monkeypatch.delenv("CUDA_HOME")
    assert toolkit("compute-sanitizer") == str(tmp_path / "path" / "bin" / "compute-sanitizer")
    assert toolkit("no-such-program") is None


def test_the_tests_need_no_plugin() -> None:
    options = ["-o", "addopts=--strict-markers", "-p", "no:benchmark", "-p", "no:hypothesispytest", "-m", "gpu"]
    result = run_python("-m", "pytest", "--collect-only", "-q", *options, ROOT / "tests" / "kernels" / "gpu")
    assert result.returncode == 0, result.stdout
    assert "test_a_side_stream_changes_no_bit" in result.stdout
    sources = "".join(file.read_text() for file in (ROOT / "tests" / "kernels" / "gpu").glob("*.py"))
    assert not re.search("hypothesis|pytest_benchmark", sources)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that has never been."""
    device = {"device": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0"}
    monkeypatch.setattr(gpu, "described_device", lambda: device)
    monkeypatch.setattr(gpu, "end_with_children", lambda: None)


def test_stages_keep_what_they_were_run_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: None) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(gpu.STAGES, "build", lambda file: {"ok": True})
    monkeypatch.setitem(gpu.STAGES, "test", lambda file: {"ok": False, "counts": {"failed": 1}})
    for commit, stages, code in (("aaa", ["build", "test"], 1), ("bbb", ["test"], 1), ("ccc", ["build"], 0)):
        monkeypatch.setenv("COMMIT", commit)
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--results", "found", *stages])
        assert gpu.main() == code
    (file,) = (tmp_path / "found").iterdir()
    found = json.loads(file.read_text())
    assert file.name == "gpu-nvidia-h100-80gb-hbm3.json"
    assert (found["build"]["commit"], found["test"]["commit"]) == ("ccc", "bbb")
    assert found["test"]["counts"] == {"failed": 1}
    assert found["test"]["torch"] == torch.__version__
    assert set(found) == {"device", "compute_capability", "build", "test"}


def test_a_part_of_the_benchmark_is_kept_beside_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: None
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--results", str(tmp_path), "bench"])
    for result in ({"ok": True, "cases": [1, 2]}, {"ok": True, "cases": [1], "only": "pooling"}):
        monkeypatch.setitem(gpu.STAGES, "bench", lambda file, result=result: result)
        assert gpu.main() == 0
    (file,) = tmp_path.iterdir()
    found = json.loads(file.read_text())
    assert (found["bench"]["cases"], found["bench of pooling"]["cases"]) == ([1, 2], [1])


def test_what_a_test_says_names_no_folder_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONE_GPU_OUTCOMES", str(tmp_path / "outcomes"))
    monkeypatch.setenv("CONE_GPU_PART", "0/1")
    monkeypatch.delitem(sys.modules, "bench.gpu.outcomes", raising=False)
    outcomes = importlib.import_module("bench.gpu.outcomes")
    monkeypatch.delitem(sys.modules, "bench.gpu.outcomes")
    file = ROOT / "tests" / "kernels" / "gpu" / "test_gpu_ops.py"
    assert outcomes._told(SimpleNamespace(longreprtext=f"{file}:7: no")) == "tests/kernels/gpu/test_gpu_ops.py:7: no"


def ended(ok: bool) -> Ended:
    return Ended(0 if ok else 9, 1.0, "========= fault")


@pytest.mark.parametrize("nvcc", ["/opt/cuda/bin/nvcc", None])
def test_what_cannot_be_built_is_not_tried_as_it_was_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nvcc: str | None
) -> None:
    (tmp_path / "cone_kernels").mkdir()
    (tmp_path / "cone_kernels" / "_cuda.cpython-312-x86_64-linux-gnu.so").touch()
    asked = []

    def setup(command: list[str], limit: float, environment: dict[str, str]) -> Ended:
        asked.append((environment["CONE_CUDA"], environment["CONE_CUDA_ARCHS"], environment.get("CUDA_HOME")))
        return ended(ok=nvcc is None or environment["CONE_CUDA"] == "0")

    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "toolkit", lambda program: nvcc)
    monkeypatch.setattr(gpu, "run", setup)
    monkeypatch.setattr(gpu, "missing", functools.cache(lambda: {"triton": "", "cuda": "not built", "cpu": ""}))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    result = gpu.build(tmp_path / "gpu.json")
    assert list((tmp_path / "cone_kernels").iterdir()) == []
    # Without the CUDA sources the other extension can still be built.
    assert asked == ([("auto", "90", "/opt/cuda"), ("0", "90", "/opt/cuda")] if nvcc else [("auto", "90", None)])
    assert (result["ok"], result["missing"]["cuda"]) == (False, "not built")
    assert ("last" in result) == (nvcc is not None)  # what a compiler that succeeded printed is not kept


def test_a_missing_backend_fails_the_stage_and_not_the_other_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def small_case(command: list[str], limit: float, environment: dict[str, str]) -> Ended:
        commands.append(" ".join(command))
        return ended("memcheck" not in commands[-1])

    monkeypatch.setattr(gpu, "missing", lambda: {"triton": "", "cuda": "not built", "cpu": ""})
    monkeypatch.setattr(gpu, "toolkit", lambda program: f"/opt/{program}")
    monkeypatch.setattr(gpu, "run", small_case)
    result = gpu.sanitize(tmp_path / "gpu.json")
    assert not result["ok"]
    assert result["missing"]["cuda"] == "not built"
    assert len(result["unchecked"]) == len(gpu_small_case.CASES) + len(gpu_small_case.FEW_CASES)
    assert not result["memcheck"]["triton all"]["ok"]
    assert result["memcheck"]["triton all"]["reported"] == ["========= fault"]
    for checker in ("racecheck", "initcheck"):
        assert list(result[checker]) == [f"triton {case}" for case in gpu_small_case.FEW_CASES]
        assert all(found["ok"] for found in result[checker].values())
    assert not any(" cuda " in command for command in commands)
    checked = [command for command in commands if "--tool" in command]
    assert all("--target-processes application-only" in command for command in checked)
    # What torch's kernels write counts as written only where they are watched, too.
    assert ["initcheck" in command for command in checked] == ["kns=at6native" not in command for command in checked]


def test_a_stage_of_the_product_leaves_out_a_backend_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def run_product(device: str, limit: float, processes: int, without: set[str]) -> dict[str, Any]:
        asked.append((device, limit, without))
        return {"ok": True, "counts": {"ok": 3}}

    monkeypatch.setattr(gpu, "missing", lambda: {"triton": "", "cuda": "not built", "cpu": ""})
    monkeypatch.setattr(gpu, "run_product", run_product)
    result = gpu.product(tmp_path / "gpu.json")
    assert asked == [("cuda", gpu.LIMIT_SECONDS["product"], {"cuda"})]
    assert (result["ok"], result["missing"]["cuda"], result["counts"]) == (False, "not built", {"ok": 3})


@pytest.mark.parametrize("stopped", [False, True])
def test_figures_end_to_end_are_kept_though_the_rest_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    def measure(command: list[str], limit: float) -> Ended:
        assert command[2] == "bench.end_to_end"
        Path(command[command.index("--out") + 1]).write_text('{"BERT-large": {"sentences": 16384}}')
        return Ended(None if stopped else 0, limit, "BERT-large")

    monkeypatch.setattr(gpu, "run", measure)
    result = gpu.end_to_end(tmp_path / "gpu.json")
    assert result["shapes"] == {"BERT-large": {"sentences": 16384}}
    assert result["ok"] != stopped
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", [*gpu_small_case.CASES, *gpu_small_case.FEW_CASES])
def test_what_the_sanitizer_watches_runs(case: str) -> None:
    gpu_small_case.run("cpu", case, CPU)


class FakeEvent:
    def __init__(self, **_: Any) -> None:
        self.time = 0.0

    def record(self) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: FakeEvent) -> float:
        return 1e3 * (other.time - self.time) + 1e-6


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark on the CPU, at sizes that take no time; what only a GPU has is left out."""
    for module in (gpu_timing, gpu_cases):
        monkeypatch.setattr(module, "GPU", CPU)
        monkeypatch.setattr(module, "MEGABYTES", (1, 2, 3))
    monkeypatch.setattr(gpu_cases, "LAYERS", 3)
    monkeypatch.setattr(gpu_cases, "WIDTH", 64)
    monkeypatch.setattr(gpu_cases, "SENTENCES", 32)
    monkeypatch.setattr(gpu_cases, "PRODUCTS", [(300, 64)])
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    monkeypatch.setattr(gpu_cases, "BERT_LARGE", sizes)
    monkeypatch.setattr(gpu_kernels, "available", lambda: ("cpu",))
    limits = {"copy_gigabytes_per_second": 10.0, "matrix_teraflops": 10.0}
    monkeypatch.setattr(gpu_kernels, "machine_limits", lambda: limits)
    monkeypatch.setattr(gpu_timing, "_SECONDS", 1e-4)
    monkeypatch.setattr(gpu_timing, "_CACHE_BYTES", 1 << 10)
    monkeypatch.setattr(gpu_kernels, "kernel_times", lambda call: {"kernel ×1": 2.0})
    for name in ("synchronize", "_sleep", "empty_cache", "get_device_name"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def test_the_benchmark_checks_and_times_every_case(tmp_path: Path, small: None) -> None:
    measured, table = tmp_path / "measured.json", tmp_path / "table.md"
    gpu_kernels.main(str(measured), str(table))
    found = json.loads(measured.read_text())
    names = [name for name, _ in gpu_cases.measurements()]
    assert found["begun"] == names + [name + ", kernels" for name in names]
    # A graph is the one thing that cannot be tried here.
    assert [what for what in found["failed"] if "as a graph" not in what] == []
    cases = {(case["case"], case["backend"]): case for case in found["cases"]}
    ours = [case for case in found["cases"] if case["backend"] == "cpu"]
    assert len(ours) == len(names)
    assert all(case["host_seconds"] > 0 and case["seconds"] > 0 for case in ours)
    without = [case["case"] for case in ours if not {"share_of_copy", "share_of_matrix_peak"} & set(case)]
    assert {re.split(" of |,", case)[0] for case in without} == {"top_eigenvectors", "ConeState.add", "forward"}
    assert cases["pool_moments, 3 layers, 1 MB", "cpu"]["kernel_microseconds"] == {"kernel ×1": 2.0}
    (probed,) = [case for case in ours if "BERT" in case["case"]]
    assert "share of forward" in probed
    assert table.read_text().count("\n| ") >= len(names)


def test_some_cases_alone_are_kept_apart(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = tmp_path / "measured.json"
    gpu_kernels.main(str(measured), str(tmp_path / "table.md"), "pooling,small_pool")
    kinds = {name.split(" ")[0].removesuffix(",") for name in json.loads(measured.read_text())["begun"]}
    assert kinds == {"pooling", "small_pool"}
    for only in ("poling", "pooling,", "pooling, small_pool"):
        with pytest.raises(ValueError, match=r"ONLY: got '( small_pool|poling|)'; it must be"):
            gpu_kernels.main(str(measured), str(tmp_path / "table.md"), only)

    def run_whole(command: list[str], *_: Any) -> Ended:
        Path(command[3]).write_text(json.dumps({"cases": [command[5]]}))
        return Ended(0, 1.0, "")

    monkeypatch.setattr(gpu, "run", run_whole)
    monkeypatch.setattr(gpu, "missing", dict)
    monkeypatch.setenv("ONLY", "pooling")
    found = gpu.bench(tmp_path / "gpu.json")
    assert (found["only"], found["cases"]) == ("pooling", ["pooling"])
    monkeypatch.delenv("ONLY")
    assert "only" not in gpu.bench(tmp_path / "gpu.json")


def test_the_benchmark_goes_on_after_what_ended_it(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, table = str(tmp_path / "measured.json"), str(tmp_path / "table.md")
    monkeypatch.setattr(gpu_kernels, "measurements", lambda: gpu_cases.measurements()[:2])

    def wrong(*_: Any) -> float:
        raise RuntimeError("illegal access")

    def leave(code: int) -> None:
        raise SystemExit(code)

    with monkeypatch.context() as patch:
        patch.setattr(gpu_cases.exact, "pool_moments_error", wrong)
        patch.setattr(gpu_kernels, "device_is_lost", lambda: True)
        patch.setattr(gpu_kernels.os, "_exit", leave)
        with pytest.raises(SystemExit, match="75"):
            gpu_kernels.main(measured, table)
    assert gpu_kernels.main(measured, table) == 1
    found = json.loads(Path(measured).read_text())
    assert found["failed"] == ["pool_moments, 3 layers, 1 MB, cpu: RuntimeError: illegal access"]
    assert {case["case"] for case in found["cases"]} == {"pool_moments, 3 layers, 2 MB"}


def test_a_wrong_result_is_not_timed(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = gpu_cases.pool_moments

    def wrong(*args: Any, **options: Any) -> Any:
        found = right(*args, **options)
        found.sums["sq_sum"][-1, -1] *= 1 + 1e-5
        return found

    monkeypatch.setattr(gpu_cases, "pool_moments", wrong)
    monkeypatch.setattr(gpu_kernels, "measurements", lambda: gpu_cases.measurements()[:1])
    assert gpu_kernels.main(str(tmp_path / "measured.json"), str(tmp_path / "table.md")) == 1
    found = json.loads((tmp_path / "measured.json").read_text())
    assert found["cases"] == []
    assert "it must be 1e-06 or less" in found["failed"][0]


def test_the_table_says_which_targets_are_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    case = {"case": "cosine", "backend": "cuda", "seconds": 3e-3, "share_of_copy": 0.9, "share of forward": 0.02}
    case["targets"] = gpu_kernels.verdicts({"share_of_copy": 0.85, "seconds": 2e-3, "share of forward": 0.03}, case)
    assert {name: found["reached"] for name, found in case["targets"].items()} == {
        "share_of_copy": True,
        "seconds": False,
        "share of forward": True,
    }
    row = gpu_kernels.markdown({"copy": 1.0}, [case]).splitlines()[-1]
    said = "share of copy 0.9 of 0.85: reached; seconds 0.003 of 0.002: missed; share of forward 0.02 of 0.03: reached"
    assert row.endswith(f"| {said} |")
    assert "targets" not in row
