"""The notes below a result: how fast it went, and what was left out, cut or replaced, where anything was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console

from cone_kernels.names import BASELINES
from cone_kernels.terminal.progress import rates_of

if TYPE_CHECKING:
    from cone_kernels.experiments.modality_gap_result import ModalityGapResult
    from cone_kernels.experiments.rows_result import RowsResult


class Shown(Protocol):
    """What a command can show of a result."""

    @property
    def corpus(self) -> dict[str, Any]:
        """What was measured on, and what of it was dropped, replaced or left out."""

    @property
    def manifest(self) -> dict[str, Any]:
        """Times and options of the run."""

    @property
    def n_bad(self) -> int:
        """How many sentences, lines and records are in no sum."""

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON data."""


def print_notes(console: Console, result: Shown) -> None:
    """Prints them; of a result from a saved state there are none."""
    corpus, manifest = result.corpus, result.manifest
    seconds = manifest.get("seconds", {}).get("run")
    if seconds is None:
        return
    if "truncated" not in corpus:
        note_vectors(console, corpus["sentences"], seconds)
        return
    ran = f"{corpus['sentences']:,} sentences, {corpus['tokens']:,} tokens in {seconds:.1f} s"
    console.print(f"{ran}: {rates_of(corpus['sentences'], corpus['tokens'], seconds)}", style="dim")
    for baseline in dict.fromkeys(model["baseline"] for model in _models(result) if model.get("baseline")):
        console.print(f"baseline: {BASELINES.get(baseline, baseline)}, in place of the model", style="yellow")
    print_losses(console, corpus)
    if manifest.get("prompt"):
        console.print(f"prompt: “{manifest['prompt']}” before every sentence", style="dim", markup=False)
    if corpus["truncated"]:
        limit = f" at {manifest['max_length']} tokens" if "max_length" in manifest else ""
        console.print(f"truncated: {corpus['truncated']:,} sentences{limit}", style="yellow")
    if corpus["unknown_tokens"]:
        left_out = bool(manifest.get("drops_unknown"))
        tokens = corpus["tokens"] + left_out * corpus["unknown_tokens"]
        what = f"{corpus['unknown_tokens']:,} of {tokens:,} tokens ({corpus['unknown_tokens'] / tokens:.1%})"
        console.print(f"unknown to the tokenizer{' and left out' * left_out}: {what}", style="yellow")
    _note_left_out(console, result, "sentence vectors")
    if manifest.get("out_of_memory"):
        budget = manifest["token_budget"]
        console.print(f"out of memory: batches were halved down to {budget:,} tokens", style="yellow")


def print_losses(console: Console, corpus: dict[str, Any]) -> None:
    """Prints what of a corpus was dropped or replaced, with examples."""
    for what in ("dropped", "replaced"):
        counts = {reason: count for reason, count in corpus[what].items() if count}
        if counts:
            listed = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts.items())
            console.print(f"{what}: {listed}", style="yellow", soft_wrap=True)
    for example in corpus["examples"]:
        console.print(f"  {example}", style="yellow", soft_wrap=True, markup=False)


def print_towers_notes(console: Console, result: ModalityGapResult) -> None:
    """Prints those of a measurement of images and texts."""
    corpus, seconds = result.corpus, result.manifest["seconds"]["run"]
    counts = (f"{tower.output.count:,} {name}" for name, tower in (("images", result.images), ("texts", result.texts)))
    console.print(f"{' and '.join(counts)} in {seconds:.1f} s", style="dim")
    print_losses(console, corpus)
    if corpus["truncated"]:
        console.print(f"truncated: {corpus['truncated']:,} texts, at the model's longest input", style="yellow")
    _note_left_out(console, result, "vectors of images or texts")


def print_rows_notes(console: Console, result: RowsResult) -> None:
    """Prints those of a comparison row by row."""
    note_vectors(console, result.a["rows"], result.manifest["seconds"], "pairs")
    if result.n_left_out:
        console.print(f"left out: {result.n_left_out:,} pairs of which one is zero or not finite", style="yellow")


def _note_left_out(console: Console, result: Shown, vectors: str) -> None:
    """Prints how many vectors were left out, and what helps."""
    if not result.corpus["left_out"]:
        return
    what = f"left out: up to {result.corpus['left_out']:,} {vectors} of a layer, zero or not finite"
    console.print(what, style="yellow")
    if "float16" in _dtypes(result):
        console.print("float16 ends at 65,504, beyond which all is infinite: try --dtype bfloat16", style="yellow")


def _dtypes(result: Shown) -> set[str | None]:
    """What the models have computed in."""
    return {model.get("dtype") for model in _models(result)}


def _models(result: Shown) -> list[dict[str, Any]]:
    return [one["model"] for one in result.manifest.get("models", ())] or [getattr(result, "model", {})]


def note_vectors(console: Console, rows: int, seconds: float, unit: str = "vectors") -> None:
    """How fast vectors, or pairs of them, were read."""
    console.print(f"{rows:,} {unit} in {seconds:.1f} s: {rows / max(seconds, 1e-3):,.0f} {unit}/s", style="dim")
