"""The tables of docs/benchmarks.md, made of what bench/results/ keeps.

python -m bench.tables    # writes them into the page anew, after a file of bench/results/ has changed

A test holds the page to them, so a measurement that is not copied into the page is noticed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "bench" / "results"
GPU = "gpu-nvidia-h200"
TABLE = re.compile(r"(?P<begin><!-- table: (?P<name>[\w-]+) -->\n).*?(?P<end><!-- end of table -->)", re.DOTALL)


@dataclass(frozen=True)
class Ratio:
    """One figure of a benchmark.

    Attributes:
        key: its name in the JSON file.
        of: what it is a ratio of, as it follows the number.
        target: the name of its target in the file; empty for none.
        less: a smaller number is the better one.
    """

    key: str
    of: str
    target: str = ""
    less: bool = False

    def shown(self, figures: dict[str, Any]) -> str:
        value = f"{two_digits(figures[self.key])} {self.of}"
        if not self.target:
            return value
        target, found = figures[self.target], figures[self.key]
        reached = found <= target if self.less else found >= target
        return f"{value} (target {target:g}, {'reached' if reached else '**missed**'})"


COSINE, POOL = "bench/bench_mean_pairwise_cosine.py::test_", "bench/bench_pool_moments.py::test_"
MOMENT, AXES = "bench/bench_second_moment.py::test_", "bench/bench_top_eigenvectors.py::test_"
GRADIENT, WHOLE = "bench/bench_gradients.py::test_", "bench/bench_end_to_end.py::test_"
MM = (Ratio("times_torch_mm", "× `torch.mm` of the whole product"),)
SUM = Ratio("bandwidth_share_of_torch_sum", "of `torch.sum`'s bandwidth")
DTYPE = (Ratio("bandwidth_share_of_float32_sum_of_the_same_bytes", "of `torch.sum`'s bandwidth in float32"),)
RESIDUAL = Ratio("residual", "of λ₁ is the residual")
EIGH = (Ratio("times_torch_eigh", "× `torch.linalg.eigh`", "target_times_torch_eigh"), RESIDUAL)
PCA = (
    Ratio("times_sklearn_pca", "× scikit-learn's PCA(1)", "target_times_sklearn_pca"),
    RESIDUAL,
    Ratio("sklearn_residual", "of λ₁ is scikit-learn's"),
)
NAIVE_RUN = (Ratio("times_naive", "× the naive script", "target_times_naive"),)
STEP = (
    Ratio("times_bare_step_at_the_default_rate", "× the bare step",
          "target_times_bare_step_at_the_default_rate", less=True),
    Ratio("times_bare_step_every_step", "× where every step is watched"),
    Ratio("own_time_at_the_default_rate", "of a step is the probe's own time"),
)  # fmt: skip

CASES: dict[str, tuple[str, tuple[Ratio, ...]]] = {
    COSINE + "mean_pairwise_cosine": ("mean pairwise cosine, 300,000 × 1024, float32", (
        Ratio("bandwidth_share_of_torch_sum", "of `torch.sum`'s bandwidth", "target_bandwidth_share"),
        Ratio("times_naive_normalize_mean", "× `normalize` and `mean`", "target_times_naive"),
        Ratio("times_naive_cosine_matrix_extrapolated", "× the cosine matrix, extrapolated"),
        Ratio("row_moments_bandwidth_share", "of `torch.sum`'s bandwidth for all moments of rows"),
    )),
    COSINE + "dtypes[torch.bfloat16]": ("the same, 100,000 × 1024, bfloat16", DTYPE),
    COSINE + "dtypes[torch.float16]": ("the same, 100,000 × 1024, float16", DTYPE),
    COSINE + "dtypes[torch.float64]": ("the same, 100,000 × 1024, float64", DTYPE),
    POOL + "pool_moments": ("pooling and moments of tokens, 2048 × 32 × 1024, ragged", (
        Ratio("bandwidth_share_of_torch_sum", "of `torch.sum`'s bandwidth", "target_bandwidth_share"),
        Ratio("times_naive", "× plain torch", "target_times_naive"),
        Ratio("times_strong_torch_pooling_and_unit_sum_only", "× the strongest torch, which makes less"),
        Ratio("masked_mean_pool_bandwidth_share", "of `torch.sum`'s bandwidth for the pooling alone"),
    )),
    POOL + "many_layers": ("the same, 25 layers of 64 × 16 × 1024 in one call", (SUM,)),
    **{
        f"{MOMENT}second_moment[{d}-torch.{dtype}]": (f"second moment of 4096 × {d}, {dtype}", MM)
        for d in (384, 1024) for dtype in ("float32", "bfloat16", "float64")
    },
    MOMENT + "many_layers": ("second moments of 25 layers of 512 × 1024", (
        Ratio("times_torch_bmm", "× `torch.bmm` of the whole products"),
    )),
    AXES + "covariances[0.5]": ("top eigenvector of 25 covariances 1024², eigenvalues falling as k^−½", EIGH),
    AXES + "covariances[1.0]": ("the same, falling as k^−1", EIGH),
    AXES + "data[0.5]": ("top eigenvector of 20,000 × 1024 data, eigenvalues falling as k^−½", PCA),
    AXES + "data[1.0]": ("the same, falling as k^−1", PCA),
    WHOLE + "probe_against_the_bare_forward": ("MiniLM on 3,000 sentences, all layers, both levels, second moments", (
        Ratio("times_bare_forward", "× the time of the bare forward", "target_times_bare_forward", less=True),
        Ratio("times_bare_forward_without_second_moments", "× without second moments"),
    )),
    WHOLE + "run_against_the_naive_script": ("a run over the same against the naive script", NAIVE_RUN),
    WHOLE + "all_of_snli": ("a run over the whole SNLI dev set", (
        *NAIVE_RUN, Ratio("share_of_sgemm", "of the rate of a float32 matrix product"),
    )),
    "bench/bench_training.py::test_cost_of_a_step": ("a step of a small BERT's training, watched every 10 steps", STEP),
    **{
        f"bench/bench_training.py::test_cost_of_a_step[{name}]": (f"a step of {about}, watched every 10 steps", (
            *STEP[:1],
            Ratio("times_bare_step_every_step", "× where every step is watched",
                  "target_times_bare_step_every_step", less=True),
            Ratio("own_time_of_a_counted_step", "of a watched step is the probe's own time"),
        ))
        for name, about in (("MiniLM", "MiniLM's shape, 16 × 48"), ("BERT-Small", "BERT-Small, 4 × 8"))
    },
    "bench/bench_vectors.py::test_a_file_in_the_page_cache": ("a file of vectors in the page cache, 200,000 × 384", (
        Ratio("share_of_read", "× `read` of the file by one thread", "target_share"),
        Ratio("share_of_mapped_sum", "of `torch.sum` of the file as a map", "target_share"),
        Ratio("share_of_rows_in_memory", "of the same sums of rows in memory"),
    )),
    **{
        f"{GRADIENT}mean_pairwise_cosine_backward[torch.{dtype}]": (f"backward of the cosine, 50,000 × 1024, {dtype}", (
            Ratio("share_of_copy", "of a copy's bandwidth"),
            Ratio("times_autograd_of_normalize_mean", "× autograd of `normalize` and `mean`"),
        ))
        for dtype in ("float32", "bfloat16")
    },
    **{
        f"{GRADIENT}masked_mean_pool_backward[torch.{dtype}]": (f"backward of the pooling, 1024 × 32 × 1024, {dtype}", (
            Ratio("share_of_fill", "of a fill's bandwidth"),
            Ratio("times_autograd_of_masked_mean", "× autograd of a masked mean"),
        ))
        for dtype in ("float32", "bfloat16")
    },
    GRADIENT + "isotropy_loss_of_a_training_batch": ("`isotropy_loss`, forward and backward, 32 × 32 × 768", (
        Ratio("times_autograd_of_torch", "× autograd of plain torch"),
    )),
    **{
        f"{GRADIENT}isotropy_loss_of_a_training_batch[({b}, {t}, {d})]": (
            f"`isotropy_loss`, forward and backward, {b} × {t} × {d}", (
                Ratio("times_autograd_of_torch", "× autograd of plain torch"),
                Ratio("times_autograd_of_few_calls", "× that of as few calls as there can be"),
                Ratio("times_autograd_of_bmm", "× that of a `bmm` pool"),
            ))
        for b, t, d in ((4, 8, 64), (8, 16, 384), (32, 32, 768), (32, 64, 384), (128, 128, 768))
    },
}  # fmt: skip


def cpu_table(name: str) -> str:
    """A row for each benchmark of a file; one that this module does not know raises KeyError."""
    found = read(name)
    versions = f"torch {found['torch']}, Python {found['python_version']}"
    machine = f"{found['processor']}, {found['threads']} threads, {found['isa']}, {versions}"
    rows = ["| work | read or written | median time | measured |", "|---|---|---|---|"]
    for benchmark, figures in found["benchmarks"].items():
        work, ratios = CASES[benchmark]
        size = f"{figures['bytes'] / 1e6:,.0f} MB" if "bytes" in figures else ""
        measured = "; ".join(ratio.shown(figures) for ratio in ratios)
        rows.append(f"| {work} | {size} | {duration(figures['median_seconds'])} | {measured} |")
    return headed(machine, found, rows)


def gpu_table() -> str:
    """A row for each case that the GPU's bench stage has timed with a kernel of this package."""
    found = read(GPU)
    stage = next(stage for name, stage in found.items() if name.startswith("bench"))
    copy = f"copies {stage['machine']['copy_gigabytes_per_second']:,.0f} GB/s"
    rows = ["| work | backend | device time | of a copy's bandwidth | × plain torch | target |", f"|{'---|' * 6}"]
    for case in stage["cases"]:
        if case["backend"] not in ("cuda", "triton"):
            continue
        targets = [
            f"{key.replace('_', ' ')} {target['target']:g}, {'reached' if target['reached'] else '**missed**'}"
            for key, target in case["targets"].items()
        ]
        share, times = case.get("share_of_copy"), case.get("times naive torch")
        ratios = ["" if ratio is None else two_digits(ratio) for ratio in (share, times)]
        if "share of forward" in case:
            targets[0] = f"{100 * case['share of forward']:.1f}% of the forward; {targets[0]}"
        cells = [case["case"], case["backend"], duration(case["seconds"]), *ratios, "; ".join(targets)]
        rows.append(f"| {' | '.join(cells)} |")
    return headed(f"{found['device']}, {copy}, {versions_of(stage)}", stage, rows)


def run_table() -> str:
    """Whole passes over sentences on the GPU, against the bare forwards of the same sentences."""
    rows = ["| model's shape | pass | seconds | beside the bare forwards |", "|---|---|---|---|"]
    found = read(GPU)
    stage = found["end_to_end"]
    for shape, measured in stage["shapes"].items():
        for name, seconds in measured["seconds"].items():
            more, speed = measured["over_bare"].get(name), measured["run_speed"].get(name)
            beside = f"{100 * more:.0f}% more time" if more is not None else ""
            beside = f"{two_digits(speed)} of their speed" if speed is not None else beside
            rows.append(f"| {shape} | {name} | {seconds:.2f} | {beside} |")
    return headed(f"{found['device']}, {versions_of(stage)}", stage, rows)


def headed(machine: str, found: dict[str, Any], rows: list[str]) -> str:
    """A table under what ran it, when, and at which commit."""
    return f"\n{machine}, {found['date'][:10]}, commit {found['commit'][:7]}:\n\n" + "\n".join(rows) + "\n\n"


def versions_of(stage: dict[str, Any]) -> str:
    return f"driver {stage['driver']}, torch {stage['torch']}, Triton {stage['triton']}"


def read(name: str) -> dict[str, Any]:
    """The JSON of a file of bench/results/."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def two_digits(value: float) -> str:
    """A number to two significant digits, three from 1 to 2, with its thousands apart.

    Examples:
        >>> two_digits(0.699), two_digits(0.9973), two_digits(25373.6), two_digits(0.00052)
        ('0.70', '1.0', '25,000', '0.00052')
    """
    shown = f"{value:#.{3 if 1 <= value < 2 else 2}g}".removesuffix(".")
    return f"{float(shown):,.0f}" if value >= 99.5 else shown.replace("e-0", "e-")


def duration(seconds: float) -> str:
    """Seconds in the unit that leaves a number from 1 to 1000."""
    units = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
    unit, size = next((pair for pair in units if seconds >= pair[1]), units[-1])
    return f"{float(f'{seconds / size:.3g}'):g} {unit}"


def with_tables(page: str) -> str:
    """The text of a page with every table that it has a place for written anew."""
    return TABLE.sub(lambda place: place["begin"] + table(place["name"]) + place["end"], page)


def table(name: str) -> str:
    """The table of a file's benchmarks by the file's name; of a GPU the name, and `-runs` for its whole passes."""
    if name == GPU:
        return gpu_table()
    return run_table() if name == f"{GPU}-runs" else cpu_table(name)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
