"""Progress: what a run reports of itself, on a line of the terminal and as lines of JSON."""

from __future__ import annotations

import io
import json
import math
import re
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from rich.file_proxy import FileProxy

from cone_kernels import ConeProbe, experiments
from cone_kernels.cli import main
from cone_kernels.corpora import Corpus
from cone_kernels.models import LoadedModel, load_model
from cone_kernels.runs.progress import JsonLinesProgress, Progress
from cone_kernels.runs.runner import run
from cone_kernels.terminal.progress import progress_line, told
from tests.support.tiny_checkpoints import WORDS, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

SENTENCES = [" ".join(WORDS[i % 90 : i % 90 + 1 + i % 6]) + f" w{4 + i // 90}" for i in range(240)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    save_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load_model(folder)


def test_rates_are_those_of_this_run_alone() -> None:
    done = Progress(1500, 20_000, 4500, elapsed=10.0, resumed_sentences=1000, resumed_tokens=15_000)
    assert (done.sentences_per_second, done.tokens_per_second) == (50.0, 500.0)
    assert done.remaining == 60.0
    assert Progress(10, 50, None, elapsed=1.0).remaining is None
    start = Progress(0, 0, 100)
    assert math.isnan(start.sentences_per_second)
    assert start.remaining is None
    assert Progress(110, 500, 100, elapsed=1.0).remaining == 0


def test_what_a_run_reports(loaded: LoadedModel) -> None:
    reports: list[Progress] = []
    started = time.perf_counter()
    found = run(loaded, SENTENCES, token_budget=60, shard_size=100, progress=reports.append)
    wall = time.perf_counter() - started
    last = reports[-1]
    assert (last.sentences, last.tokens, last.expected) == (240, found.tokens, 240)
    assert [one.elapsed for one in reports] == sorted(one.elapsed for one in reports)
    assert 0 < last.elapsed <= wall
    assert all(one.padding == 0 for one in reports)
    assert all(0 < one.statistics < 1 for one in reports)
    assert last.remaining == 0
    middle = reports[len(reports) // 2]
    assert middle.remaining == pytest.approx((240 - middle.sentences) * middle.elapsed / middle.sentences)


def test_a_token_that_stands_in_for_none_is_padding(loaded: LoadedModel, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, special=False)
    reports: list[Progress] = []
    run(load_model(tmp_path), ["w5 w6 w7", "nothing"], progress=reports.append)
    assert (reports[-1].tokens, reports[-1].padding) == (3, 0.25)


def test_share_of_the_statistics_is_the_time_spent_on_them(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cone_kernels.state.cone_state import ConeState

    real, slept = ConeState.add, 0.016

    def slow(self: ConeState, *args: Any) -> Any:
        time.sleep(slept)
        return real(self, *args)

    monkeypatch.setattr(ConeState, "add", slow)
    reports: list[Progress] = []
    found = run(loaded, SENTENCES[:100], progress=reports.append)
    spent = reports[-1].statistics * reports[-1].elapsed
    assert spent >= found.batches * slept  # all layers of a batch in one call
    assert reports[-1].statistics < 1


def test_timing_the_statistics_costs_next_to_nothing(loaded: LoadedModel) -> None:
    """Two readings of the clock a batch, against a layer's own sums."""
    batch = {"input_ids": torch.randint(4, 90, (16, 8))}
    with ConeProbe(loaded.model) as probe, torch.inference_mode():
        loaded.model(**batch)
        before = probe.seconds
        for _ in range(20):
            loaded.model(**batch)
        a_layer = (probe.seconds - before) / (20 * 4)
    started = time.perf_counter()
    for _ in range(10_000):
        time.perf_counter()
    readings = 2 * (time.perf_counter() - started) / 10_000
    assert readings < 0.02 * a_layer


def test_seconds_of_a_probe_outlive_a_reset(loaded: LoadedModel) -> None:
    with ConeProbe(loaded.model) as probe, torch.inference_mode():
        assert probe.seconds == 0
        loaded.model(input_ids=torch.tensor([[5, 6]]))
        spent = probe.seconds
        probe.reset()
        assert probe.seconds == spent > 0


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_log_of_a_run(loaded: LoadedModel, tmp_path: Path) -> None:
    file, reports = tmp_path / "log.jsonl", list[Progress]()
    before = datetime.now(timezone.utc)
    with JsonLinesProgress(file, interval=0, then=reports.append, also={"model": "tiny"}) as log:
        run(loaded, SENTENCES, token_budget=60, progress=log)
    found = lines_of(file)
    assert len(found) == len(reports) > 5
    for line, done in zip(found, reports, strict=True):
        assert (line["sentences"], line["tokens"], line["expected"]) == (done.sentences, done.tokens, 240)
        assert line["sentences_per_second"] == pytest.approx(done.sentences_per_second, abs=0.06)
        assert line["tokens_per_second"] == pytest.approx(done.tokens_per_second, abs=0.06)
        assert line["elapsed"] == pytest.approx(done.elapsed, abs=6e-4)
        assert line["remaining"] == pytest.approx(done.remaining, abs=6e-4)
        assert (line["padding"], line["model"]) == (0, "tiny")
        assert line["statistics"] == pytest.approx(done.statistics, abs=6e-5)
    stamps = [datetime.fromisoformat(line["timestamp"]) for line in found]
    assert stamps == sorted(stamps)
    assert abs((stamps[0] - before).total_seconds()) < 30


def test_log_has_few_lines_and_the_last(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text('{"sentences": -1}\n')
    with JsonLinesProgress(file, interval=3600) as log:
        for done in range(1, 101):
            log(Progress(done, done, None, elapsed=done))
        assert [line["sentences"] for line in lines_of(file)] == [-1, 1]
    assert [line["sentences"] for line in lines_of(file)] == [-1, 1, 100]
    assert lines_of(file)[-1]["remaining"] is None


def test_the_last_report_before_a_failure_is_logged(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"

    def interrupted() -> None:
        with JsonLinesProgress(file, interval=3600) as log:
            log(Progress(1, 1, None))
            log(Progress(2, 2, None))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [line["sentences"] for line in lines_of(file)] == [1, 2]
    assert lines_of(file)[0]["sentences_per_second"] is None


def test_log_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        JsonLinesProgress(tmp_path / "missing" / "log.jsonl")
    with pytest.raises(ValueError, match=r"interval: got -1"):
        JsonLinesProgress(tmp_path / "log.jsonl", interval=-1)


def test_log_as_a_flag_and_as_a_keyword(folder: Path, tmp_path: Path) -> None:
    corpus, log = tmp_path / "corpus.txt", tmp_path / "log.jsonl"
    corpus.write_text("\n".join(SENTENCES))
    arguments = ["layers", "--model", str(folder), "--corpus", str(corpus), "--log-json"]
    done = CliRunner().invoke(main, [*arguments, str(log)])
    assert done.exit_code == 0, done.output
    assert lines_of(log)[-1]["sentences"] == 240
    experiments.layers(folder, SENTENCES[:50], log_json=log)
    assert [lines_of(log)[-1][name] for name in ("sentences", "expected", "model")] == [50, 50, str(folder)]
    done = CliRunner().invoke(main, [*arguments, "-", "--json", "-"])
    assert json.loads(done.stdout)["corpus"]["sentences"] == 240
    logged = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert logged[-1]["sentences"] == 240


@pytest.mark.parametrize(
    ("log", "code", "words"),
    [("{folder}/missing/log", 1, "there is no folder"), ("{folder}/same", 2, "is named twice")],
)
def test_the_log_is_checked_before_the_run(tmp_path: Path, log: str, code: int, words: str) -> None:
    same = str(tmp_path / "same")
    arguments = ["layers", "--model", "m", "--corpus", "c.txt", "--json", same]
    done = CliRunner().invoke(main, [*arguments, "--log-json", log.format(folder=tmp_path)])
    assert (done.exit_code, done.stdout) == (code, "")
    assert words in done.stderr


def test_a_log_together_with_a_state_is_refused(folder: Path, tmp_path: Path) -> None:
    state = experiments.layers(folder, SENTENCES[:5]).state
    with pytest.raises(ValueError, match="log_json: got a value together with a state"):
        experiments.layers(state=state, log_json=tmp_path / "log.jsonl")


DONE = Progress(1_234_567, 20_000_000, 10_000_000, elapsed=6000.0, statistics=0.031)


def test_the_line_says_all_of_it() -> None:
    wanted = "206 sentences/s, 3,333 tokens/s, 0% padding, 3% statistics, 11:50:00 left"
    assert told(DONE) == wanted
    assert told(DONE, 80) == "206 sent/s, 3,333 tok/s, 0% pad, 3% stat, 11:50:00 left"
    assert told(DONE, 60) == "206 sent/s, 11:50:00 left"
    assert told(Progress(5, 9, None, elapsed=2.0)) == "2 sentences/s, 4 tokens/s, 0% padding, 0% statistics"
    assert told(Progress(0, 0, None)) == ""
    assert told(Progress(90, 0, 180, elapsed=3.0, unit="vectors"), 60) == "30 vectors/s, 0:00:03 left"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_line_is_one_line(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, highlight=False)
    with progress_line(console) as report:
        report(DONE)
    assert isinstance(console.file, io.StringIO)
    shown = re.sub(r"\x1b\[[?0-9]*[a-zA-Z]", "", console.file.getvalue())
    drawn = [line for line in re.split(r"[\r\n]", shown) if "1,234,567" in line]
    assert drawn
    assert all(len(line) <= width for line in drawn)
    assert told(DONE, width) in drawn[-1]


def test_the_line_leaves_room_for_the_bars_of_a_download() -> None:
    """rich stands in for stderr while it redraws; before the first report and after the last one it does not."""
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress_line(console) as report:
        assert isinstance(console.file, io.StringIO)
        assert "loading the model" in console.file.getvalue()
        for _ in range(2):
            assert not isinstance(sys.stderr, FileProxy)
            report(Progress(1, 5, 10, elapsed=1.0))
            assert isinstance(sys.stderr, FileProxy)
            report(Progress(10, 50, 10, elapsed=2.0))
        assert not isinstance(sys.stderr, FileProxy)


def test_nothing_is_drawn_where_there_is_no_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with progress_line(console) as report:
        report(DONE)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().strip() == ""


def test_a_corpus_says_how_many_are_expected(loaded: LoadedModel) -> None:
    reports: list[Progress] = []
    run(loaded, Corpus.from_sentences(SENTENCES, limit=30), progress=reports.append)
    assert (reports[-1].sentences, reports[-1].expected, reports[-1].remaining) == (30, 30, 0)
