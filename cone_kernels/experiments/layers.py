"""Experiment 1: the anisotropy of every layer of a model over a corpus, at the sentence and the token level."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from cone_kernels.corpora import Corpus, Encoding, Malformed

if TYPE_CHECKING:
    import torch

    from cone_kernels.models import LoadedModel
    from cone_kernels.moments import ConeState, Moments
    from cone_kernels.runner import Progress, Run

SCHEMA = "cone_kernels/layers/1"


@dataclass(frozen=True)
class Level:
    """One layer at one level.

    Attributes:
        anisotropy: mean cosine over distinct pairs of vectors; NaN where there is no pair.
        stderr: its grouped-jackknife standard error; NaN with fewer than two groups of sentences.
        count: vectors used.
        n_zero, n_nonfinite: vectors left out.
        mean_norm: mean length of the vectors used.
        reason: why a number is NaN, or None.
    """

    anisotropy: float
    stderr: float
    count: int
    n_zero: int
    n_nonfinite: int
    mean_norm: float
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The level as JSON data: NaN becomes null, and "reason" says why."""
        numbers = {"anisotropy": self.anisotropy, "stderr": self.stderr, "mean_norm": self.mean_norm}
        found: dict[str, Any] = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        found |= {"count": self.count, "n_zero": self.n_zero, "n_nonfinite": self.n_nonfinite}
        return found | ({"reason": self.reason} if self.reason else {})


@dataclass(frozen=True)
class Layer:
    """One layer: its number as in Hugging Face's `hidden_states`, what it is, and both levels."""

    layer: int
    name: str
    sentence: Level
    token: Level

    def to_dict(self) -> dict[str, Any]:
        """The layer as JSON data."""
        levels = {"sentence": self.sentence.to_dict(), "token": self.token.to_dict()}
        return {"layer": self.layer, "name": self.name, **levels}


@dataclass(frozen=True)
class LayersResult:
    """What `layers` found.

    Attributes:
        model: what was measured; `name`, `architecture`, `weights_sha256`, `final_norm`, ...
        corpus: what it was measured on, and what was left out.
        layers: one entry a layer, 0 the embeddings.
        manifest: versions, device, backend, times and options of the run.
        state: the sums that all of it was computed from.
    """

    model: dict[str, Any]
    corpus: dict[str, Any]
    layers: tuple[Layer, ...]
    manifest: dict[str, Any]
    state: ConeState = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The result as strict JSON data."""
        return {
            "schema": SCHEMA,
            "experiment": "layers",
            "model": self.model,
            "corpus": self.corpus,
            "layers": [layer.to_dict() for layer in self.layers],
            "manifest": self.manifest,
        }

    @property
    def n_bad(self) -> int:
        """Sentences, lines and records that are in no sum of some layer: dropped, or left out as zero or not finite."""
        left_out = [row.sentence.n_zero + row.sentence.n_nonfinite for row in self.layers]
        return int(sum(self.corpus["dropped"].values())) + max(left_out)

    def summary(self) -> tuple[str, ...]:
        """The shape of the curve in plain sentences, each said only where the data says it.

        Differences below three standard errors are not spoken of.
        """
        return tuple(_summary(self.layers))

    def __repr__(self) -> str:
        corpus = f"{self.corpus['sentences']} sentences of {self.corpus['name']}"
        lines = [
            f"LayersResult({self.model['architecture']}, {corpus})",
            "  layer  sentence  (stderr)     token  (stderr)",
        ]
        for row in self.layers:
            levels = (f"{level.anisotropy:9.4f} {level.stderr:9.4f}" for level in (row.sentence, row.token))
            lines.append(f"  {row.layer:>5} {' '.join(levels)}")
        return "\n".join(lines)


def layers(
    model: str | os.PathLike[str] | LoadedModel,
    corpus: str | os.PathLike[str] | Corpus | Iterable[str],
    *,
    limit: int | None = None,
    field: Sequence[str] | None = None,
    errors: Encoding = "replace",
    malformed: Malformed = "drop",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    backend: str = "auto",
    token_budget: int | None = None,
    save_state: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> LayersResult:
    """Measures the cone at every layer, in one pass over the corpus.

    Args:
        model: a folder, a hub id, or what `load_model` returned.
        corpus: a file, a `Corpus`, or sentences.
        limit, field, errors, malformed: as in `Corpus`; `field` names the fields to read.
        device, dtype, revision, trust_remote_code: as in `load_model`.
        backend: "auto", "reference", "cpu", "triton" or "cuda".
        token_budget: tokens of a batch at most.
        save_state: where to write the state.
        progress: called after every batch.

    Raises:
        FileNotFoundError, IsADirectoryError, CorpusError: the corpus cannot be read.
        ModuleNotFoundError, ModelError: the model cannot be loaded.
        BackendUnavailable: the backend asked for cannot run here.
        ValueError: an option is out of range, or the corpus has no sentence.

    Example:
        >>> result = layers("sentence-transformers/all-MiniLM-L6-v2", "snli_dev.jsonl", limit=300)
        >>> result.layers[2].sentence.anisotropy
        0.7207...
    """
    read = _corpus(corpus, limit, field, errors, malformed)

    from cone_kernels.models import LoadedModel, load_model
    from cone_kernels.runner import run

    started, clock = datetime.now(timezone.utc), time.perf_counter()
    if isinstance(model, LoadedModel) and (device, dtype, revision, trust_remote_code) != (
        None,
        "float32",
        None,
        False,
    ):
        raise ValueError("model: got a LoadedModel and options of load_model; give device, dtype, ... to load_model")
    loaded = model if isinstance(model, LoadedModel) else load_model(model, device, dtype, revision, trust_remote_code)
    load_seconds = time.perf_counter() - clock
    ran = run(loaded, read, token_budget=token_budget, backend=backend, progress=progress)
    fingerprint = ran.state.fingerprint() if save_state is None else ran.state.save(save_state)
    options = {"backend": backend, "token_budget": token_budget, "errors": read.errors, "malformed": read.malformed}
    seconds = {"load": round(load_seconds, 3), "run": round(ran.seconds, 3)}
    summary = read.summary.to_dict()
    summary["dropped"]["no_token"] = ran.no_token
    return LayersResult(
        model={**loaded.info, "final_norm": ran.final_norm},
        corpus={**summary, "tokens": ran.tokens, "truncated": ran.truncated},
        layers=_rows(ran.state, ran.layer_names),
        manifest={
            "versions": _versions(),
            "started": started.isoformat(timespec="seconds"),
            "seconds": seconds,
            "options": options,
            **_machine(loaded, ran),
            "state_fingerprint": fingerprint,
        },
        state=ran.state,
    )


def _corpus(
    corpus: str | os.PathLike[str] | Corpus | Iterable[str],
    limit: int | None,
    field: Sequence[str] | None,
    errors: Encoding,
    malformed: Malformed,
) -> Corpus:
    if isinstance(corpus, Corpus):
        if (limit, field, errors, malformed) != (None, None, "replace", "drop"):
            raise ValueError("corpus: got a Corpus and options of one; give limit, field, errors, malformed to it")
        return corpus
    if isinstance(corpus, (str, os.PathLike)):
        return Corpus(corpus, fields=field, limit=limit, errors=errors, malformed=malformed)
    if field:
        raise ValueError(f"field: got {', '.join(field)}; sentences given in Python have no fields")
    return Corpus.from_sentences(corpus, limit=limit, errors=errors)


def _rows(state: ConeState, names: Sequence[str]) -> tuple[Layer, ...]:
    sentence, token = _levels(state.sentence), _levels(state.token)
    rows = zip(state.layers, names, sentence, token, strict=True)
    return tuple(Layer(number, name, at_sentence, at_token) for number, name, at_sentence, at_token in rows)


def _levels(moments: Moments) -> list[Level]:
    from cone_kernels import metrics

    anisotropy, stderr = metrics.anisotropy(moments).tolist(), metrics.anisotropy_stderr(moments).tolist()
    mean_norm = metrics.mean_norm(moments).tolist()
    counts = {name: moments.sums[name].sum(1).tolist() for name in ("count", "n_zero", "n_nonfinite")}
    groups = (moments.count > 0).sum(1).tolist()
    levels = []
    for at in range(len(moments.layers)):
        reason = metrics.undefined_reason(moments, at)
        if reason is None and math.isnan(stderr[at]):
            reason = f"stderr: the jackknife has {groups[at]} groups; it needs two that leave pairs behind"
        numbers = {name: values[at] for name, values in counts.items()}
        levels.append(Level(anisotropy[at], stderr[at], mean_norm=mean_norm[at], reason=reason, **numbers))
    return levels


def _versions() -> dict[str, str]:
    import numpy
    import torch
    import transformers

    from cone_kernels import __version__

    return {
        "cone_kernels": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
    }


def _machine(loaded: LoadedModel, ran: Run) -> dict[str, Any]:
    import torch

    device = loaded.device
    isa = None
    if "cpu" in ran.backends.values():
        from cone_kernels import _cpu

        isa = _cpu.isa()
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "dtype": loaded.info["dtype"],
        "threads": torch.get_num_threads(),
        "backend": ", ".join(sorted(set(ran.backends.values()))),
        "ops": ran.backends,
        "isa": isa,
        "batches": ran.batches,
        "token_budget": ran.token_budget,
        "out_of_memory": ran.out_of_memory,
    }


def _summary(rows: Sequence[Layer]) -> list[str]:
    known = [row for row in rows if math.isfinite(row.sentence.stderr) and math.isfinite(row.token.stderr)]
    if len(known) < 2:
        return []
    lines = []
    peak = max(known, key=lambda row: row.sentence.anisotropy)
    at_peak = peak.sentence.anisotropy
    lines.append(
        f"The cone is tightest at layer {peak.layer}: two sentences picked at random have a mean cosine of "
        f"{at_peak:.2f} there."
    )
    before, last = known[-2], known[-1]
    if _differ(before.sentence, last.sentence, by=0.1):
        change = "opens" if last.sentence.anisotropy < before.sentence.anisotropy else "closes"
        lines.append(
            f"It {change} in the last layer: from {before.sentence.anisotropy:.2f} at layer {before.layer} to "
            f"{last.sentence.anisotropy:.2f} at layer {last.layer}."
        )
    gap = at_peak - peak.token.anisotropy
    if _differ(peak.sentence, peak.token, by=0.05):
        effect = "makes the cone look tighter" if gap > 0 else "makes the cone look wider"
        lines.append(
            f"Averaging tokens into sentences {effect}: at layer {peak.layer} two tokens have a mean cosine of "
            f"{peak.token.anisotropy:.2f}, two sentences one of {at_peak:.2f}."
        )
    return lines


def _differ(a: Level, b: Level, by: float) -> bool:
    """Whether the two differ by at least `by`, and by three standard errors."""
    difference = abs(a.anisotropy - b.anisotropy)
    return difference >= max(by, 3 * math.hypot(a.stderr, b.stderr))
