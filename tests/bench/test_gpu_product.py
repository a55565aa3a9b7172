"""`make gpu`'s stage `product` where there is no GPU: its cases on the CPU and on the stand-in, and its judgement."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu.process import run
from bench.gpu.product import stage
from bench.gpu.product.__main__ import main
from bench.gpu.product.case import Case, Place, run_case
from bench.gpu.product.cases import cases
from bench.gpu.product.differences import (
    FLOAT32,
    SIXTEEN_BITS,
    OtherShapeError,
    largest_difference,
    printed_numbers,
)
from cone_kernels.cli.group import COMMANDS
from tests.support.forked import forked_programs  # noqa: F401 - a fixture
from tests.support.places import EXAMPLES
from tests.support.stand_in_gpu import stand_in_gpu
from tests.support.tiny_checkpoints import WORDS, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

# Those that run no model.
WITHOUT_A_MODEL = {"report", "doctor", "rows", "vectors", "completion"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Smaller models than those of a GPU, and fewer sentences."""
    found = Place.at(tmp_path_factory.mktemp("place"))
    for seed, model in enumerate(found.models):
        save_checkpoint(model, seed=seed)
    lines = (" ".join(WORDS[(i * 7 + j * 3) % 90] for j in range(1 + i * 5 % 9)) for i in range(70))
    found.corpus.write_text("\n".join(lines), encoding="utf-8")
    return found


def test_every_command_and_example_has_a_case() -> None:
    words = " ".join(cases("cuda"))
    assert [name for name in COMMANDS if name not in WITHOUT_A_MODEL and name not in words] == []
    assert [file.name for file in EXAMPLES.glob("*.py") if f"examples/{file.name}" not in cases("cuda")] == []
    assert set(cases("cuda")) - set(cases("cpu")) == {
        f"layers --second-moment --backend {name}" for name in ("cuda", "triton")
    }


# What crosses between the devices in other ways than in tests/cli/test_commands_on_a_gpu.py.
ON_THE_STAND_IN = [
    "layers --save-state of two models, then compare, show and center",
    "torchmetrics metric",
    "ConeProbe, padded on the left",
    "ConeProbe, masks on the model's device",
]


@pytest.mark.parametrize("name", ON_THE_STAND_IN)
def test_a_case_on_a_gpu(name: str, place: Place) -> None:
    with stand_in_gpu() as work:
        found = run_case(cases("cuda")[name], place, "cuda")
    assert found["outcome"] == "ok", found
    assert work.launches
    assert found["difference"] <= found["tolerance"]


def test_a_case_without_flash_attention_is_refused(place: Place) -> None:
    found = run_case(cases("cpu")["layers --packed"], place, "cpu")
    assert found["outcome"] == "refused"
    assert "flash" in found["text"].lower()


def returns(**numbers: Any) -> Any:
    return lambda place, device: numbers


def test_outcomes(place: Place) -> None:
    def raises(place: Place, device: str) -> Any:
        raise ValueError("special: got device cpu; it must be on cuda:0")

    def on_the_cpu_only(place: Place, device: str) -> Any:
        return {"anisotropy": 0.5 if device == "cpu" else 0.5001}

    wanted = returns(anisotropy=0.5, manifest={"device": "cpu"})
    found = {
        case.name: run_case(case, place, "cuda")
        for case in (
            Case("equal", returns(anisotropy=0.50004, manifest={"device": "cuda"}), wanted),
            Case("other", on_the_cpu_only),
            Case("none", returns(anisotropy=math.nan), wanted),
            Case("raises", raises),
            Case("refused", raises, refusal="special"),
            Case("missing", returns(), needs=("torch", "no_such_package")),
            Case("less", returns(), wanted),
        )
    }
    assert {name: one["outcome"] for name, one in found.items()} == {
        "equal": "ok",
        "other": "failed",
        "none": "failed",
        "raises": "failed",
        "refused": "refused",
        "missing": "not installed",
        "less": "failed",
    }
    assert found["equal"]["difference"] == pytest.approx(0.00004 / 0.50004)
    assert (found["other"]["where"], found["other"]["tolerance"]) == ("anisotropy", 1e-4)
    assert found["none"]["difference"] == math.inf
    assert found["raises"]["text"] == "ValueError: special: got device cpu; it must be on cuda:0"
    assert found["missing"]["text"] == "no_such_package"
    assert "only one of the two has ['anisotropy']" in found["less"]["text"]


def test_the_largest_difference() -> None:
    wanted = {"layers": [{"name": "a", "p": 0.2, "n": 3}], "vectors": torch.tensor([4.0, 1e-9]), "seconds": 1.0}
    got = {"layers": [{"name": "a", "p": 0.2 + 1e-6, "n": 3}], "vectors": torch.tensor([4.0, 2e-5]), "seconds": 9.0}
    found = largest_difference(got, wanted, FLOAT32)
    assert (found.relative, found.where) == (pytest.approx(5e-6, rel=1e-3), "layers[0].p")
    assert largest_difference(wanted, wanted, FLOAT32).relative == 0
    # Near zero an absolute difference of 1e-6 passes, and no more.
    assert largest_difference(1e-6, 0.0, FLOAT32).relative == pytest.approx(FLOAT32.relative)
    assert largest_difference([math.nan], [math.nan], FLOAT32).relative == 0
    assert largest_difference([0.0], [math.inf], FLOAT32).relative == math.inf
    assert largest_difference(torch.tensor([math.nan]), torch.tensor([1.0]), FLOAT32).relative == math.inf


@pytest.mark.parametrize(
    ("got", "wanted", "message"),
    [
        ({"a": [1, 2]}, {"a": [1]}, "a: got 2 entries; it must be 1"),
        ({"a": "up"}, {"a": "down"}, "a: got 'up'; it must be 'down'"),
        ({"a": None}, {"a": 0.1}, "a: got None; it must be 0.1"),
        ({"a": True}, {"a": False}, "a: got True; it must be False"),
        (torch.zeros(2), torch.zeros(3), "got shape"),
    ],
)
def test_results_of_another_form(got: Any, wanted: Any, message: str) -> None:
    with pytest.raises(OtherShapeError, match=message):
        largest_difference(got, wanted, FLOAT32)


def test_rounding_may_change_a_text_in_16_bits() -> None:
    assert largest_difference({"a": "up"}, {"a": "down"}, SIXTEEN_BITS).relative == 0


def test_numbers_that_a_program_prints() -> None:
    assert printed_numbers("layer 3: 0.25 ± -1.5, 12.5% of w45 and v1.0 ###") == [3, 0.25, -1.5, 12.5]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for threads in /proc")
def test_what_the_cases_are_forked_from_has_one_thread_and_asks_nothing_of_cuda() -> None:
    program = """
import importlib, os, torch
from bench.gpu.product.each_case import IMPORTED

def asked(*_):
    raise AssertionError("an import asks CUDA")

for name in ("is_available", "device_count", "_lazy_init"):
    setattr(torch.cuda, name, asked)
for name in IMPORTED:
    importlib.import_module(name)
print(len(os.listdir("/proc/self/task")), torch.cuda.is_initialized())
"""
    ended = run([sys.executable, "-c", program], 120, {**stage.ENVIRONMENT, "OMP_NUM_THREADS": "2"})
    assert ended.printed.strip() == "1 False"


@pytest.mark.usefixtures("forked_programs")
def test_the_program(tmp_path: Path) -> None:
    """It writes the models and runs a case, and an example in two processes, in ones that are forked from it."""
    names = ["isotropy loss and its gradient", "examples/layers.py"]
    command = [sys.executable, "-m", "bench.gpu.product", "--device", "cpu", "--place", str(tmp_path), *names]
    ended = run(command, 300, stage.ENVIRONMENT)
    assert ended.ok, ended.printed
    assert [line for line in ended.printed.splitlines() if line.startswith("ok: ")] == [
        f"ok: {name}, 0.0e+00" for name in names
    ]
    found = json.loads((tmp_path / stage.OUTCOMES_FILE).read_text())
    assert {name: (known["outcome"], known["difference"]) for name, known in found.items()} == dict.fromkeys(
        names, ("ok", 0.0)
    )
    tokens = [2 + len(line.split()) for line in Place.at(tmp_path).corpus.read_text().splitlines()]
    assert len(tokens) == 400
    assert 11.5 < sum(tokens) / len(tokens) < 13.5
    assert len(set(tokens)) > 20


def test_an_unknown_case_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["product", "--device", "cpu", "deploy"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "CASE: got 'deploy'; it must be one of layers" in capsys.readouterr().err
