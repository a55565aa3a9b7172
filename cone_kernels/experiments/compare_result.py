"""What a comparison of two states found: the change of every statistic at every layer, and what the changes say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from cone_kernels.experiments.cone_change import ConeChange
from cone_kernels.experiments.dependence import Dependence
from cone_kernels.experiments.result import ExperimentResult, finite
from cone_kernels.names import OUTPUT, Layer, numbered, place, prompt_in_words
from cone_kernels.statistics.claims import Claim

if TYPE_CHECKING:
    from cone_kernels.statistics.subspaces import Overlap

SCHEMA = "cone_kernels/compare/1"

Turn: TypeAlias = Literal["turned", "same", "undecided"]
"""What may be said of a direction in two states."""

# The float32 kernels are right to 1e-6: two runs of one model on two machines may differ by as much.
RESOLUTION = 1e-6

# |cos| of axes or means from which they are called the same (of spaces the root of their overlap); sin² that sampling
# may give and they are still compared.
_SAME_DIRECTION, _KNOWN = 0.95, 0.5


@dataclass(frozen=True)
class Change:
    """One statistic of one layer in both states.

    Attributes:
        a, b: its values.
        difference: b − a.
        stderr: standard error of the difference.
        degrees_of_freedom: of the t distribution, rounded down; one less than there are groups where they are alike.
        p_value: two-sided.
        p_adjusted: the same for all layers together, by the largest |t| of layers that go together as these do.
        significant: `p_adjusted` ≤ alpha, and the difference is larger than what rounding makes (1e-6).
        reason: why a number is NaN, or None.
    """

    a: float
    b: float
    difference: float
    stderr: float
    degrees_of_freedom: int
    p_value: float
    p_adjusted: float
    significant: bool
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The change as JSON data: NaN becomes null, and "reason" says why."""
        names = ("a", "b", "difference", "stderr", "p_value", "p_adjusted")
        found: dict[str, Any] = {name: finite(getattr(self, name)) for name in names}
        found |= {"degrees_of_freedom": self.degrees_of_freedom, "significant": self.significant}
        return found | ({"reason": self.reason} if self.reason else {})


@dataclass(frozen=True)
class DirectionChange:
    """A direction of one layer in both states.

    Attributes:
        cosine: |cos| of the two; NaN where one is not known.
        sampling: the mean sin² between them that the choice of sentences alone would give, at most; near 1 or above it
            the sentences do not determine the direction, and `cosine` says nothing.
        overlap: of the spaces of the top axes, as many as stand apart from the rest; of means that of the vectors at
            length 1.
        bound: half the width of its interval, which holds for all layers together.
    """

    cosine: float
    sampling: float
    overlap: Overlap | None = None
    bound: float = math.nan

    @property
    def known(self) -> bool:
        """Whether the sentences determine the direction well enough to compare it."""
        return self.overlap is not None and self.overlap.noise < _KNOWN

    @property
    def verdict(self) -> Turn:
        """turned or same, where the interval of the overlap lies on one side of that of one direction."""
        if self.overlap is None or not self.known:
            return "undecided"
        # What turns the axes of both alike is no noise of their overlap, and how much that is may not be known: the
        # overlap as it is and the one without noise are the ends.
        if Claim(self.overlap.corrected, null=_SAME_DIRECTION**2, bound=self.bound).verdict == "less":
            return "turned"
        same = Claim(self.overlap.value, null=_SAME_DIRECTION**2, bound=self.bound).verdict == "greater"
        return "same" if same else "undecided"

    @property
    def turned(self) -> bool:
        """Whether it turned, by more than the choice of sentences does."""
        return self.verdict == "turned"

    def to_dict(self, name: str) -> dict[str, Any]:
        """The change as JSON data, its keys beginning with `name`."""
        found = self.overlap
        overlap = None
        if found is not None:
            numbers = {key: getattr(found, key) for key in ("value", "corrected", "stderr", "noise")}
            bounds = {"low": found.value - self.bound, "high": found.corrected + self.bound}
            overlap = {"axes": found.axes, **{key: finite(value) for key, value in (numbers | bounds).items()}}
        return {f"{name}_overlap": overlap, f"{name}_verdict": self.verdict}


@dataclass(frozen=True)
class ComparedLayer:
    """One layer of both states.

    Attributes:
        layer, name: its number as in Hugging Face's `hidden_states`, and the module; or "output", which has no tokens.
        sentence, token: the anisotropy at the two levels.
        gap: sentence-level less token-level anisotropy.
        within, between: the mean cosine of two tokens of one sentence, of two sentences.
        predicted: the anisotropy of sentences that averaging alone gives, of tokens at length 1.
        axis: the cone's axes; not known without second moments in both.
        mean: the means.
        cone: whether the cone turned or was removed.
    """

    layer: Layer
    name: str
    sentence: Change
    token: Change | None
    gap: Change | None
    within: Change | None
    between: Change | None
    predicted: Change | None
    axis: DirectionChange
    mean: DirectionChange
    cone: ConeChange

    def changes(self) -> dict[str, Change]:
        """Every statistic that there is, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Change)}

    def to_dict(self) -> dict[str, Any]:
        """The layer as JSON data."""
        none = dict.fromkeys(("token", "gap", "within", "between", "predicted")) if self.layer == OUTPUT else {}
        changes = {**none, **{name: change.to_dict() for name, change in self.changes().items()}}
        cosines = {"axis_cosine": finite(self.axis.cosine), "mean_cosine": finite(self.mean.cosine)}
        sampling = {"axis_sampling": finite(self.axis.sampling), "mean_sampling": finite(self.mean.sampling)}
        judged = {**self.axis.to_dict("axis"), **self.mean.to_dict("mean")}
        cone = {"cone": self.cone.to_dict()}
        return {"layer": self.layer, "name": self.name, **changes, **cosines, **sampling, **judged, **cone}


@dataclass(frozen=True)
class RandomCosine:
    """|cos| of two random directions of this width: its mean, and what it stays below in 95 of 100 pairs."""

    dim: int
    mean: float
    p95: float


@dataclass(frozen=True)
class CompareResult(ExperimentResult):
    """What `compare` found.

    Attributes:
        a, b: the states: `name`, `model`, `sentences`, `tokens`, `fields`, `state_fingerprint`.
        paired: whether the jackknife is taken on the difference, group by group.
        pairing: why it is, or is not, in words.
        layers: one entry a layer.
        random_cosine: what |cos| of two random directions would be.
        output_random_cosine: the same in the width of the outputs; None where they are not compared.
        without_output: why the models' own outputs are not compared, where there are some.
        alpha: the family-wise rate of false alarms, each statistic over all layers.
        dependence: whether neighbouring sentences are alike over long stretches, in each state.
        corpus: sentences and what was left out of them, where both states agree.
        manifest: versions and fingerprints.
    """

    a: dict[str, Any]
    b: dict[str, Any]
    paired: bool
    pairing: str
    layers: tuple[ComparedLayer, ...]
    random_cosine: RandomCosine
    alpha: float
    dependence: tuple[Dependence, Dependence]
    corpus: dict[str, Any]
    manifest: dict[str, Any]
    output_random_cosine: RandomCosine | None = None
    without_output: str | None = None

    @property
    def of_vectors(self) -> bool:
        """Whether the states are of given vectors, and have no layers."""
        return all(row.layer == OUTPUT for row in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The result as strict JSON data."""
        return {
            "schema": SCHEMA,
            "experiment": "compare",
            "a": self.a,
            "b": self.b,
            "paired": self.paired,
            "pairing": self.pairing,
            "layers": [row.to_dict() for row in self.layers],
            "random_cosine": vars(self.random_cosine),
            **({"output_random_cosine": vars(self.output_random_cosine)} if self.output_random_cosine else {}),
            "alpha": self.alpha,
            "correction": "max-t",
            "resolution": RESOLUTION,
            "dependence": [one.to_dict() for one in self.dependence],
            "summary": list(self.summary()),
            "manifest": self.manifest,
        }

    def summary(self) -> tuple[str, ...]:
        """What changed from `a` to `b`, in plain sentences; of a statistic only where its change is significant."""
        return tuple(_summary(self))

    def __repr__(self) -> str:
        lines = [
            f"CompareResult({self.a['name']} -> {self.b['name']}, {'paired' if self.paired else 'unpaired'})",
            "  layer         a         b     b - a  (stderr)   p, all        token       gap  |cos| of axes, means",
        ]
        for row in self.layers:
            one = row.sentence
            levels = f"{one.a:9.4f} {one.b:9.4f} {one.difference:+9.4f} {one.stderr:9.4f} {one.p_adjusted:9.2g}"
            rest = " ".join(f"{one.difference:+9.4f}" if one else " " * 9 for one in (row.token, row.gap))
            mark = "*" if one.significant else " "
            lines.append(f"  {row.layer:>5} {levels} {mark} {rest}  {row.axis.cosine:13.4f}, {row.mean.cosine:.4f}")
        return "\n".join(lines)


def _summary(result: CompareResult) -> list[str]:
    a, b = result.a["name"], result.b["name"]
    if result.a["state_fingerprint"] == result.b["state_fingerprint"]:
        return [f"{a} and {b} are the same state, to the last bit."]
    lines = [*_cone(result, a, b), *_tokens(result.layers)]
    if not lines and any(not math.isnan(row.sentence.p_value) for row in result.layers):
        where = (
            f" ({result.alpha:.2g})"
            if result.of_vectors
            else (f" at any layer ({result.alpha:.2g} for all layers together)")
        )
        lines.append(f"From {a} to {b} the cone did not change by more than chance{where}.")
    prompts = [one["model"].get("prompt") for one in (result.a, result.b)]
    if prompts[0] != prompts[1]:
        said = [prompt_in_words(prompt) for prompt in prompts]
        lines.insert(0, f"The prompts differ: {a} was measured {said[0]}, {b} {said[1]}.")
    if result.without_output:
        lines.append(f"The models' own output is left out: {result.without_output}.")
    return [*lines, *_gap(result.layers), *_turned_or_removed(result), *_directions(result), *_dependence(result)]


def _dependence(result: CompareResult) -> list[str]:
    """Of the same sentences one of the two says it."""
    rows = "vectors" if result.of_vectors else "sentences"
    names = [result.a["name"], result.b["name"]]
    if result.paired:
        return list(Dependence.worst(result.dependence).summary(rows))
    both = zip(result.dependence, names, strict=True)
    return [line for one, name in both for line in one.summary(rows, of=f" of {name}")]


def _cone(result: CompareResult, a: str, b: str) -> list[str]:
    layers, rows = result.layers, "vectors" if result.of_vectors else "sentences"
    lines, begin = [], f"From {a} to {b} the cone"
    for verb, moved, fell in (
        ("opened", _fell(layers, "sentence"), True),
        ("tightened", _rose(layers, "sentence"), False),
    ):
        if not moved:
            continue
        most = max(moved, key=lambda row: abs(row.sentence.difference))
        most_at = f", most at {place(most.layer)}" if len(moved) > 1 else ""
        where, there = ("", "") if result.of_vectors else (f" at {_at(moved, layers)}{most_at}", " there")
        values = f"{most.sentence.a:.4f} to {most.sentence.b:.4f}"
        lines.append(
            f"{begin} {verb}{where}: the mean cosine of two {rows} {'fell' if fell else 'rose'} from {values}{there}."
        )
        begin = "It"
    return lines


def _tokens(layers: Sequence[ComparedLayer]) -> list[str]:
    return _falls_and_rises(layers, "token", "The mean cosine of two tokens")


def _gap(layers: Sequence[ComparedLayer]) -> list[str]:
    return _falls_and_rises(layers, "gap", "What pooling adds to it")


def _falls_and_rises(layers: Sequence[ComparedLayer], name: str, subject: str) -> list[str]:
    moves = (("fell", _fell(layers, name)), ("rose", _rose(layers, name)))
    said = []
    for verb, moved in moves:
        if moved:
            largest = max((row.changes()[name].difference for row in moved), key=abs)
            said.append(f"{verb} at {_at(moved, layers)} (by up to {abs(largest):.4f})")
    return [f"{subject} {' and '.join(said)}."] if said else []


def _turned_or_removed(result: CompareResult) -> list[str]:
    """What became of the cone, layers of one verdict together; with the layer where most of it is gone or new."""
    said = {
        "removed": "was removed, wholly or in part, and did not turn",
        "turned": "turned: part of it is gone, and another is there in its place",
        "grew": "grew along its old direction",
        "added": "is as before, and another is there across it",
    }
    space = {"turned": "turned", "same": "is the same", "undecided": "is not told to have turned"}
    lines = []
    for verdict, words in said.items():
        rows = [row for row in result.layers if row.cone.verdict == verdict]
        if not rows:
            continue
        most = max(rows, key=lambda row: abs(row.cone.removed.estimate) + abs(row.cone.new.estimate))
        at_most = f"at {place(most.layer)} " if len(rows) > 1 else ""
        where = "" if result.of_vectors else f"At {_at(rows, result.layers)} the cone {words}; {at_most}"
        axes = "" if most.axis.overlap is None else f"; the space of the top axes {space[most.axis.verdict]} there"
        begin = where or f"The cone {words}; "
        lines.append(f"{begin}{most.cone.in_words()}{axes}.")
    return lines


def _directions(result: CompareResult) -> list[str]:
    lines = []
    named: tuple[tuple[str, Callable[[ComparedLayer], DirectionChange]], ...] = (
        ("cone's axis", lambda row: row.axis),
        ("mean", lambda row: row.mean),
    )
    for what, direction in named:
        there = {row.layer: direction(row) for row in result.layers if not math.isnan(direction(row).cosine)}
        least = min((one.cosine for one in there.values()), default=math.nan)
        turned = {layer: one for layer, one in there.items() if one.turned}
        # Directions that agree do so by no accident.
        if least >= _SAME_DIRECTION:
            lines.append(f"The {what} points the same way in both: |cos| is at least {least:.3f}.")
        elif turned:
            layer = min(turned, key=lambda layer: turned[layer].overlap.corrected)  # type: ignore[union-attr]
            lines.append(_turned(result, what, layer, turned[layer]))
        elif there and all(one.verdict == "same" for one in there.values()):
            overlap = min(one.overlap.value for one in there.values() if one.overlap is not None)
            lines.append(f"The space of the top axes is the same in both: overlap at least {overlap:.3f}.")
    return lines


def _turned(result: CompareResult, what: str, layer: Layer, change: DirectionChange) -> str:
    assert change.overlap is not None
    where, there = ("", "") if result.of_vectors else (f" most at {place(layer)}", " there")
    if change.overlap.axes > 1:
        space = f"The space of the top {change.overlap.axes} axes"
        low, high = change.overlap.value - change.bound, change.overlap.corrected + change.bound
        return (
            f"{space} turned{where}: overlap {change.overlap.value:.3f}{there} (from {max(low, 0):.2f} to {high:.2f} "
            "with its error)."
        )
    by_chance = result.output_random_cosine if layer == OUTPUT else result.random_cosine
    assert by_chance is not None
    chance = by_chance.p95
    random = f", no more than two random directions may have (95% are below {chance:.3f})"
    return f"The {what} turned{where}: |cos| is {change.cosine:.3f}{there}{random if change.cosine <= chance else ''}."


def _fell(layers: Sequence[ComparedLayer], name: str) -> list[ComparedLayer]:
    return [row for row in layers if _significant(row, name) < 0]


def _rose(layers: Sequence[ComparedLayer], name: str) -> list[ComparedLayer]:
    return [row for row in layers if _significant(row, name) > 0]


def _significant(row: ComparedLayer, name: str) -> float:
    """The difference of a statistic, 0 where it is not significant or the row has none."""
    change = row.changes().get(name)
    return change.difference if change and change.significant else 0.0


def _at(moved: Sequence[ComparedLayer], layers: Sequence[ComparedLayer]) -> str:
    """The layers in words, runs of neighbours as one: "layers 1, 3 and 9 to 12", or "layer 6 and the output"."""
    chosen, numbers = ([row.layer for row in rows if isinstance(row.layer, int)] for rows in (moved, layers))
    output = [place(OUTPUT)] if len(chosen) < len(moved) else []
    return " and ".join([*([numbered(chosen, numbers)] if chosen else []), *output])
