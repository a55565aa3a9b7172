"""What labelled pairs say of vectors: their quality as they are and after each method, and whether to centre them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from cone_kernels.experiments.result import finite
from cone_kernels.names import POOLINGS, QUALITY_METHODS, Layer, label_of, listed_words, measure_phrase, numbered, place
from cone_kernels.statistics.claims import Claim

if TYPE_CHECKING:
    from cone_kernels.statistics.estimates import Estimates

Decision: TypeAlias = Literal["centre", "do not", "undecided"]


class Place(NamedTuple):
    """Which vectors: a layer, and how they are pooled; the output is pooled in its own way, and has None here."""

    layer: Layer
    pooling: str | None

    def words(self, several: bool = False) -> str:
        """In a sentence, after "at"; with the pooling where there are several."""
        if not several or self.pooling is None:
            return place(self.layer)
        return f"{place(self.layer)} ({label_of(POOLINGS, self.pooling)})"


@dataclass(frozen=True)
class MethodQuality:
    """What a method does to one layer's vectors.

    Attributes:
        value: the measure after it, on pairs that it was not fitted on; NaN where it cannot be fitted.
        claim: after less before; all layers and methods are judged together.
        stderr: of that difference alone, by groups of pairs that share a text.
        also: other measures after it.
        reason: why it cannot be fitted, or None.
    """

    value: float
    claim: Claim
    stderr: float
    also: dict[str, float]
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        reason = {} if self.reason is None else {"reason": self.reason}
        return {
            "value": finite(self.value),
            "difference": finite(self.claim.estimate),
            "stderr": None if self.reason else finite(self.stderr),
            "verdict": self.claim.verdict,
            **self.also_dict(),
            **reason,
        }

    def also_dict(self) -> dict[str, Any]:
        """The other measures, where there are some."""
        return {"also": {name: finite(value) for name, value in self.also.items()}} if self.also else {}


@dataclass(frozen=True)
class QualityLayer:
    """One layer's vectors, or those of the output.

    Attributes:
        layer, pooling: which.
        raw, raw_stderr: the measure of the vectors as they are.
        also: other measures of them.
        methods: what each of `QUALITY_METHODS` does.
        components: how many directions all-but-the-top projected out, for each fold.
    """

    layer: Layer
    pooling: str | None
    raw: float
    raw_stderr: float
    also: dict[str, float]
    methods: Mapping[str, MethodQuality]
    components: tuple[int | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "layer": self.layer,
            "pooling": self.pooling,
            "raw": finite(self.raw),
            "raw_stderr": finite(self.raw_stderr),
            **({"also": {name: finite(value) for name, value in self.also.items()}} if self.also else {}),
            "methods": {name: found.to_dict() for name, found in self.methods.items()},
            "components": list(self.components),
        }


@dataclass(frozen=True)
class Fit:
    """What methods do that were fitted on other texts than those of three quarters of the pairs.

    Attributes:
        layer, pooling: which vectors.
        source: "pairs", texts of other groups than those that are tested; or "corpus".
        rows: vectors they were fitted on.
        differences: for each method after less before, and the standard error of that after one such fit: that of the
            pairs, and that of which texts it gets.
        overlap: of the corpus, how many texts of the pairs are in it; None where that is not known.
    """

    layer: Layer
    pooling: str | None
    source: Literal["pairs", "corpus"]
    rows: int
    differences: Mapping[str, tuple[float, float]]
    overlap: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        methods = {
            name: {
                "difference": finite(difference),
                "stderr": finite(stderr) if finite(difference) is not None else None,
            }
            for name, (difference, stderr) in self.differences.items()
        }
        found = {name: getattr(self, name) for name in ("layer", "pooling", "source", "rows")}
        return {**found, **({"overlap": self.overlap} if self.source == "corpus" else {}), "methods": methods}


@dataclass(frozen=True)
class Verdict:
    """Whether to centre, and how.

    Attributes:
        decision: "centre": the best method at the best layer serves better than the vectors in use as they are, and
            than every layer as it is; "do not": it serves worse than those in use, or better where a layer as it is
            serves as well; else "undecided".
        layer, pooling, method: the best of all methods and layers.
        value: the measure there.
        claim: the difference to the vectors in use as they are; all layers and methods are judged together.
        stderr: of that difference alone.
        in_use: the vectors in use now.
        in_use_value: the measure of these as they are.
        best_raw: the layer that is best as it is.
        raw_claim: its difference to the vectors in use; of these themselves 0.
    """

    decision: Decision
    layer: Layer
    pooling: str | None
    method: str
    value: float
    claim: Claim
    stderr: float
    in_use: Place
    in_use_value: float
    best_raw: Place
    raw_claim: Claim

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        found = {name: getattr(self, name) for name in ("decision", "layer", "pooling", "method")}
        return {
            **found,
            "value": finite(self.value),
            "difference": finite(self.claim.estimate),
            "stderr": finite(self.stderr),
            "verdict": self.claim.verdict,
            "in_use": {**self.in_use._asdict(), "value": finite(self.in_use_value)},
            "best_raw": {
                **self.best_raw._asdict(),
                "difference": finite(self.raw_claim.estimate),
                "verdict": self.raw_claim.verdict,
            },
        }


@dataclass(frozen=True)
class Quality:
    """How well the cosines of labelled pairs go with their labels.

    Attributes:
        measure: "auc", "spearman", "mrr" or "recall@K".
        pairs: how many were judged by.
        items: what a score is of: pairs, or queries.
        groups: of items that share a text, which errors are counted by.
        folds: of groups, each tested after a fit on the others.
        file: the pairs' file: name, columns, what was left out.
        layers: every layer under each pooling, and the output.
        fits: what fits on fewer texts, and on the corpus, do at the vectors in use and at the best ones.
        verdict: whether to centre.
        manifest: times and bytes.
    """

    measure: str
    pairs: int
    items: int
    groups: int
    folds: int
    file: dict[str, Any]
    layers: tuple[QualityLayer, ...]
    fits: tuple[Fit, ...]
    verdict: Verdict
    manifest: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As strict JSON data."""
        names = ("measure", "pairs", "items", "groups", "folds", "file")
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        return {
            **found,
            "layers": [layer.to_dict() for layer in self.layers],
            "fits": [fit.to_dict() for fit in self.fits],
            "verdict": self.verdict.to_dict(),
            "summary": list(self.summary()),
            "manifest": self.manifest,
        }

    @property
    def several_poolings(self) -> bool:
        """Whether layers are pooled in more than one way."""
        return len({layer.pooling for layer in self.layers if layer.pooling}) > 1

    def summary(self) -> tuple[str, ...]:
        """The verdict in plain sentences, each said only where the data says it."""
        return tuple(_summary(self))


def verdict_of(layers: Sequence[QualityLayer], estimates: Estimates, in_use: Place) -> Verdict:
    """The verdict on layers and methods, all judged together.

    Args:
        layers: all rows of the result.
        estimates: for each of them that of the vectors as they are, then of each method.
        in_use: the vectors that all else is compared with.
    """
    import torch

    rows = [(Place(one.layer, one.pooling), method) for one in layers for method in (None, *one.methods)]
    now = rows.index((in_use, None))
    others = [at for at in range(len(rows)) if at != now]
    found = estimates.at(torch.tensor(others)).less(estimates.at(torch.full((len(others),), now)))
    claims = dict(zip(others, found.claims(), strict=True)) | {now: Claim(0.0, 0.0, 0.0)}
    errors = dict(zip(others, found.stderr.tolist(), strict=True))
    values: list[float] = estimates.values.tolist()

    def best(of_methods: bool) -> int:
        chosen = [at for at, (_, method) in enumerate(rows) if (method is not None) == of_methods]
        # Where nothing is defined the vectors in use come first.
        return max(chosen, key=lambda at: (finite(values[at]) is not None, finite(values[at]) or 0.0, at == now))

    centred, raw = best(True), best(False)
    claim = claims[centred]
    decision: Decision = "undecided"
    if claim.verdict == "less" or (claim.verdict == "greater" and values[raw] >= values[centred]):
        decision = "do not"
    elif claim.verdict == "greater":
        decision = "centre"
    where, method = rows[centred]
    assert method is not None
    return Verdict(
        decision=decision,
        layer=where.layer,
        pooling=where.pooling,
        method=method,
        value=values[centred],
        claim=claim,
        stderr=errors[centred],
        in_use=in_use,
        in_use_value=values[now],
        best_raw=rows[raw][0],
        raw_claim=claims[raw],
    )


def _summary(quality: Quality) -> list[str]:
    if finite(quality.verdict.in_use_value) is None or finite(quality.verdict.value) is None:
        return []
    lines = [_verdict_in_words(quality), *_at_the_vectors_in_use(quality), *_where_it_helps(quality)]
    return lines + _fits_in_words(quality)


def _verdict_in_words(quality: Quality) -> str:
    verdict, several = quality.verdict, quality.several_poolings
    used, best = verdict.in_use.words(several), Place(verdict.layer, verdict.pooling).words(several)
    by = f"by {measure_phrase(quality.measure)} of {quality.pairs:,} labelled pairs"
    change = _change(verdict.claim.estimate, verdict.stderr)
    method = f"{label_of(QUALITY_METHODS, verdict.method)} at {best}"
    to = f"{verdict.in_use_value:.3f} to {verdict.value:.3f} ({change})"
    tested = "tested on pairs that it was not fitted on"
    if verdict.decision == "centre":
        return f"Centre: {by}, {method} serves best and takes it from {used} as it is, {to}, {tested}."
    if verdict.decision == "undecided":
        needed = verdict.claim.needed(quality.pairs)
        more = "" if needed is None else f"; about {needed:,} pairs would decide it"
        return f"Whether to centre is undecided: {by}, the best is {method}, from {used} as it is {to}, {tested}{more}."
    if verdict.claim.verdict == "greater":
        raw = verdict.best_raw.words(several)
        return (
            f"Do not centre: {by}, {raw} as it is serves best, {_signed(verdict.raw_claim.estimate)} against {used}; "
            f"no method at any layer reaches that, {method} comes next with {change}."
        )
    return f"Do not centre: {by}, even the best, {method}, takes it from {used} as it is, {to}, {tested}."


def _at_the_vectors_in_use(quality: Quality) -> list[str]:
    """What each method does to the vectors that are in use."""
    row = next(one for one in quality.layers if (one.layer, one.pooling) == quality.verdict.in_use)
    words = {"less": "harm", "greater": "help", "undecided": "are not told from doing nothing", "equal": "do nothing"}
    parts = []
    for verdict, what in words.items():
        found = [
            f"{label_of(QUALITY_METHODS, name)} ({_change(one.claim.estimate, one.stderr)})"
            for name, one in row.methods.items()
            if one.claim.verdict == verdict and one.reason is None
        ]
        if found:
            parts.append(f"{listed_words(found)} {what if len(found) > 1 else _singular(what)}")
    return [f"At {quality.verdict.in_use.words(quality.several_poolings)} {'; '.join(parts)}."] if parts else []


def _singular(what: str) -> str:
    return {"are not told from doing nothing": "is not told from doing nothing", "do nothing": "does nothing"}.get(
        what, f"{what}s"
    )


def _where_it_helps(quality: Quality) -> list[str]:
    """The other layers at which some method helps, and the one where it helps most."""
    used = quality.verdict.in_use
    helped = [
        (found.claim.estimate, name, found, one)
        for one in quality.layers
        for name, found in one.methods.items()
        if found.claim.verdict == "greater" and Place(one.layer, one.pooling) != used
    ]
    if not helped:
        return []
    numbers = sorted({one.layer for *_, one in helped if isinstance(one.layer, int)})
    every = sorted({one.layer for one in quality.layers if isinstance(one.layer, int)})
    at = [numbered(numbers, every)] if numbers else []
    at += ["the output"] if any(one.layer == "output" for *_, one in helped) else []
    _, name, most, layer = max(helped, key=lambda one: one[0])
    where = Place(layer.layer, layer.pooling).words(quality.several_poolings)
    return [
        f"Some method helps at {listed_words(at)}, most {label_of(QUALITY_METHODS, name)} at {where}: "
        f"{layer.raw:.3f} to {most.value:.3f} ({_change(most.claim.estimate, most.stderr)})."
    ]


def _fits_in_words(quality: Quality) -> list[str]:
    """What the best method does at its layer, fitted on fewer texts, and on the corpus."""
    verdict = quality.verdict
    mine = [fit for fit in quality.fits if (fit.layer, fit.pooling) == (verdict.layer, verdict.pooling)]
    found = [(fit, *fit.differences[verdict.method]) for fit in mine]
    found = [one for one in found if finite(one[1]) is not None]
    of_pairs = [f"{_change(d, e)} from {fit.rows:,}" for fit, d, e in found if fit.source == "pairs"]
    if not of_pairs:
        return []
    where = Place(verdict.layer, verdict.pooling).words(quality.several_poolings)
    method = label_of(QUALITY_METHODS, verdict.method)
    line = f"How many texts {method} is fitted on: at {where} it changes the quality by {listed_words(of_pairs)}"
    for fit, difference, error in found:
        if fit.source == "corpus":
            line += f"; fitted on {fit.rows:,} sentences of the corpus by {_change(difference, error)}"
            if fit.overlap:
                line += f", which has {fit.overlap:,} of the pairs' {quality.file['texts']:,} texts in it"
    return [f"{line}."]


def _change(value: float, error: float) -> str:
    return f"{_signed(value)} ± {error_in_words(error)}"


def error_in_words(error: float) -> str:
    """A standard error with three decimals, or one significant digit where it would show as zero.

    Examples:
        >>> error_in_words(0.0123), error_in_words(0.00026)
        ('0.012', '0.0003')
    """
    return f"{error:.3f}" if error >= 0.0005 or not error > 0 else f"{error:.1g}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
