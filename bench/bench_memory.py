"""Peak memory (RSS) of runs of 10 thousand sentences and up: flat within 5%. Each run is a process of its own.

A corpus that is deduplicated has a table of 32 MiB, whose pages are first written to in the course of its first 100
thousand sentences: such runs are flat from there. As a script: `python bench/bench_memory.py corpus|dedup|state N
[FILE]` prints the peak in MiB.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

WORDS = 96
FLAT = 1.05

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")


def sentences(count: int) -> Iterator[str]:
    """Distinct sentences of 4 to 9 words: the digits of their index, and more words after them."""
    for index in range(count):
        digits = [index // WORDS**place % WORDS for place in range(4)]
        extra = [(index * 31 + place) % WORDS for place in range(index % 6)]
        yield " ".join(f"w{digit + 4}" for digit in digits + extra)


def write_corpus(file: Path, count: int) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for sentence in sentences(count):
            lines.write(sentence + "\n")


def run_corpus(file: Path, count: int, dedup: bool) -> None:
    """A tiny BERT over a file of `count` sentences: all layers, both levels, second moments."""
    from cone_kernels.corpora import Corpus
    from cone_kernels.models import load_model
    from cone_kernels.runs.runner import run
    from tests.support.tiny_checkpoints import save_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder))
        result = run(load_model(folder, device="cpu"), Corpus(file, dedup=dedup), second_moment=True)
    assert result.sentences == count


def run_state(count: int) -> None:
    """The state alone on `count` generated vectors of four layers, 64 wide, second moments kept."""
    import torch

    from cone_kernels.state.cone_state import Moments

    moments = Moments.empty("sentence", range(4), 64, second_moment=True)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 1000, 64, generator=generator)
    for _ in range(count // len(rows[0])):
        moments.update(rows)
        rows.add_(1e-3)
    assert moments.rows_seen(0) == count


def peak_mib() -> float:
    """Of this process since it began: `ru_maxrss` would also count that of the process it was forked from."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def measured(kind: str, count: int, file: Path | None = None) -> float:
    """The peak of a process that does it."""
    command = [sys.executable, "-m", __name__, kind, str(count), *([str(file)] if file else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


@pytest.mark.parametrize(
    ("kind", "base", "count"),
    [
        ("corpus", 10_000, 100_000),
        pytest.param("corpus", 10_000, 1_000_000, marks=pytest.mark.slow),
        pytest.param("dedup", 100_000, 1_000_000, marks=pytest.mark.slow),
    ],
)
def test_a_run_over_a_corpus(
    benchmark: Any, report: Callable[..., None], tmp_path: Path, kind: str, base: int, count: int
) -> None:
    files = {size: tmp_path / f"{size}.txt" for size in (base, count)}
    for size, file in files.items():
        write_corpus(file, size)
    judge(benchmark, report, {size: measured(kind, size, file) for size, file in files.items()})


@pytest.mark.parametrize("count", [100_000, pytest.param(10_000_000, marks=pytest.mark.slow)])
def test_the_state_alone(benchmark: Any, report: Callable[..., None], count: int) -> None:
    judge(benchmark, report, {size: measured("state", size) for size in (10_000, count)})


def judge(benchmark: Any, report: Callable[..., None], peaks: dict[int, float]) -> None:
    """Keeps the figures, and asserts that memory did not grow."""
    benchmark.pedantic(lambda: None, rounds=1)  # memory is what is measured; pytest-benchmark wants a time
    base, grown = peaks.values()
    report(**{f"peak_mib_{size}": peak for size, peak in peaks.items()}, times_base=grown / base, target=FLAT)
    assert grown <= FLAT * base


def main(kind: str, count: str, file: str = "") -> None:
    import torch

    torch.set_num_threads(1)  # threads cost a tiny model more time than they save
    if kind == "state":
        run_state(int(count))
    else:
        run_corpus(Path(file), int(count), dedup=kind == "dedup")
    print(peak_mib())


if __name__ == "__main__":
    main(*itertools.islice(sys.argv, 1, None))
