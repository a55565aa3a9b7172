"""The processes of `make gpu`, where there is no GPU: each case and each test has an outcome, whatever others do."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.process import run
from bench.gpu.product import stage
from bench.gpu.tests import run_tests
from tests.support.forked import forked_programs  # noqa: F401 - a fixture
from tests.support.processes import alive

pytestmark = pytest.mark.usefixtures("forked_programs")


def assert_ended(*files: Path) -> None:
    """The processes whose ids are in these files have ended, or do so at once."""
    deadline = time.perf_counter() + 5
    pids = [int(file.read_text()) for file in files]
    while any(map(alive, pids)) and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert not any(map(alive, pids))


# The stage's program, with cases in place of the package's, and little to import: theirs are not imported either.
PROGRAM = """
import os, subprocess, sys, time, types
from pathlib import Path

cases = sys.modules["bench.gpu.product.cases"] = types.ModuleType("bench.gpu.product.cases")
from bench.gpu.product import __main__ as program, each_case
from bench.gpu.product.case import Case

each_case.IMPORTED = ()
each_case.Place.made = lambda folder: None
kept = Path(sys.argv[0]).parent
returned = {"layers": [{"p": 0.5}]}

def passes(place, device):
    return returned

def fails(place, device):
    return {"layers": [{"p": 0.5 if device == "cpu" else 0.7}]}

def aborts(place, device):
    print("before it aborts")
    sys.stdout.flush()
    os.abort()

def exits(place, device):
    os._exit(3)

def hangs(place, device):
    (kept / "hangs").write_text(str(os.getpid()))
    time.sleep(60)

def leaves_a_child(place, device):
    (kept / device.replace(":", "")).write_text(str(subprocess.Popen(["sleep", "60"]).pid))
    return returned

def changes_the_process(place, device):
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    returned.clear()
    return 1

def sees_no_change(place, device):
    assert returned["layers"] and os.environ["TOKENIZERS_PARALLELISM"] == "false"
    return 1

cases.cases = lambda device: {
    function.__name__: Case(function.__name__, function, backend="triton" if function is asks_for_triton else "")
    for function in (passes, aborts, hangs, fails, exits, leaves_a_child, asks_for_triton, changes_the_process,
                     sees_no_change)
}

def asks_for_triton(place, device):
    return returned

sys.exit(program.main())
"""


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of `PROGRAM`, which the stage runs, and where its cases leave their processes' ids."""
    (tmp_path / "program.py").write_text(PROGRAM)
    whole = stage.run

    def run_program(command: list[str], *rest: Any, **options: Any) -> Any:
        return whole([sys.executable, str(tmp_path / "program.py"), *command[3:]], *rest, **options)

    monkeypatch.setattr(stage, "run", run_program)
    return tmp_path


def test_each_case_has_a_process_and_an_outcome(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever another one does: abort, exit, hang, or leave a process behind."""
    result = stage.run_product("cuda", limit=60, processes=4, without=["triton"], case_seconds=5)
    outcomes = {name: known["outcome"] for name, known in result["cases"].items()}
    assert outcomes == {
        "passes": "ok",
        "aborts": "not finished",
        "hangs": "not finished",
        "fails": "failed",
        "exits": "not finished",
        "leaves_a_child": "ok",
        "changes_the_process": "ok",
        "sees_no_change": "ok",
    }
    known = result["cases"]
    assert known["passes"] == {**known["passes"], "difference": 0.0, "where": "", "tolerance": 1e-4}
    assert (known["fails"]["difference"], known["fails"]["where"]) == (pytest.approx(0.2 / 0.7), "layers[0].p")
    assert known["aborts"]["text"] == "before it aborts\n\nkilled by SIGABRT"
    assert known["hangs"]["text"] == "stopped after 5 s"
    assert known["exits"]["text"] == "ended with exit code 3"
    assert (result["ok"], result["counts"]) == (False, {"ok": 4, "not finished": 3, "failed": 1})
    assert "last" not in result
    assert "failed: fails, 2.9e-01 layers[0].p\n" in capsys.readouterr().out
    assert [file.name for file in sorted(program.iterdir())] == ["cpu", "cuda", "hangs", "program.py"]
    assert_ended(program / "cpu", program / "cuda", program / "hangs")


def test_cases_that_the_limit_leaves_no_time_for_are_not_run(program: Path) -> None:
    begin = """
chosen = {name: case for name, case in cases.cases("cuda").items() if name in ("hangs", "passes")}
each_case.run_each_case(dict(reversed(chosen.items())), kept, "cuda", processes=1, limit=3, case_seconds=60)
"""
    (program / "program.py").write_text(PROGRAM.replace("sys.exit(program.main())", begin))
    assert run([sys.executable, str(program / "program.py")], 120, stage.ENVIRONMENT).ok
    found = json.loads((program / stage.OUTCOMES_FILE).read_text())
    assert {name: known["outcome"] for name, known in found.items()} == {"hangs": "not finished", "passes": "not run"}
    assert found["hangs"]["text"].startswith("stopped after")
    assert_ended(program / "hangs")


def test_a_stopped_stage_ends_its_cases(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stage.run

    def stopped(*rest: Any, **options: Any) -> Any:
        return whole(*rest, hangs=lambda: (program / "hangs").exists(), **options)

    monkeypatch.setattr(stage, "run", stopped)
    result = stage.run_product("cuda", limit=60, processes=1, names=["passes", "hangs"])
    assert {name: known["outcome"] for name, known in result["cases"].items()} == {"passes": "ok", "hangs": "not run"}
    assert (result["ok"], "stopped: it hangs" in result["last"]) == (False, True)
    assert_ended(program / "hangs")


def test_models_that_cannot_be_written_say_why(program: Path) -> None:
    broken = PROGRAM.replace("lambda folder: None", "lambda folder: 1 / 0")
    (program / "program.py").write_text(broken)
    result = stage.run_product("cuda", limit=60, processes=1)
    assert (result["ok"], result["cases"]) == (False, {})
    assert "ZeroDivisionError" in result["last"]


def test_a_program_on_the_cpu_sees_no_gpu(tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text("import os, sys; print(os.environ.get('CUDA_VISIBLE_DEVICES'), sys.argv[1:])")
    program = f"""
from bench.gpu.product.programs import ProgramError, printed
for device in ("cuda", "cpu"):
    print(printed(device, {str(tmp_path / "shown.py")!r}, 1, "two"), end="")
try:
    printed("cpu", "cone_kernels", "layers", "--corpus", "none.txt")
except ProgramError as error:
    print(error)
"""
    ended = run([sys.executable, "-c", program], 120, {"CUDA_VISIBLE_DEVICES": "0"})
    lines = ended.printed.splitlines()
    assert lines[:2] == ["0 ['1', 'two']", " ['1', 'two']"]
    assert lines[2].startswith("cone_kernels, exit code 2: ")
    assert "--model" in ended.printed


TESTS = """
import os, time
import pytest
pytestmark = pytest.mark.gpu

def test_passes(): pass
def test_fails(): assert 1 == 2
def test_is_skipped(): pytest.skip("no such backend")
def test_aborts(): os.abort()
@pytest.fixture
def memory():
    yield
    raise RuntimeError("so does what follows")
def test_loses_the_device(memory):
    from bench.gpu import outcomes as gpu_outcomes
    gpu_outcomes.device_is_lost = lambda: True
    raise RuntimeError("illegal access")
def test_hangs(): time.sleep(60)
@pytest.mark.parametrize("n", range(3))
def test_passes_after_them(n): pass
"""


def test_every_test_has_an_outcome_whatever_the_others_do(tmp_path: Path) -> None:
    (tmp_path / "test_them.py").write_text(TESTS)
    result = run_tests(tmp_path, limit=60, processes=2, hangs_seconds=6)
    outcomes = {test.rpartition("::")[2]: known for test, known in result["tests"].items()}
    assert {name: known["outcome"] for name, known in outcomes.items()} == {
        "test_passes": "passed",
        "test_fails": "failed",
        "test_is_skipped": "skipped",
        "test_aborts": "not finished",
        "test_loses_the_device": "failed",
        "test_hangs": "not finished",
        **{f"test_passes_after_them[{n}]": "passed" for n in range(3)},
    }
    assert "assert 1 == 2" in outcomes["test_fails"]["text"]
    assert "illegal access" in outcomes["test_loses_the_device"]["text"]
    assert not result["ok"]
    assert result["counts"] == {"passed": 4, "failed": 2, "skipped": 1, "not finished": 2}


def test_a_file_that_cannot_be_collected_says_why_and_costs_no_other(tmp_path: Path) -> None:
    (tmp_path / "test_broken.py").write_text("import no_such_module")
    (tmp_path / "test_whole.py").write_text("import pytest\n@pytest.mark.gpu\ndef test_passes(): pass")
    result = run_tests(tmp_path, limit=60, processes=1)
    assert not result["ok"]
    broken, whole = (known for _, known in sorted(result["tests"].items()))
    assert "no_such_module" in broken["text"]
    assert whole["outcome"] == "passed"
