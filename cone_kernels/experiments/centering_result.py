"""What `center` finds: the anisotropy before and after a centering, and that in plain sentences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from cone_kernels.experiments.dependence import Dependence
from cone_kernels.experiments.held_out import Judged
from cone_kernels.experiments.level import Level
from cone_kernels.experiments.quality_result import Quality
from cone_kernels.experiments.result import Estimate, ExperimentResult
from cone_kernels.names import QUALITY_NOT_MEASURED, Layer, place, prompt_in_words
from cone_kernels.statistics.claims import Claim

if TYPE_CHECKING:
    from cone_kernels.centering import Centering

SCHEMA = "cone_kernels/centering/1"

# Standard errors that tell a mean cosine from 0.
_ERRORS = 2.0

_NO_VECTORS = "after: a saved state has no sentence vectors to apply the centering to; give a model and a corpus too"
_NO_GIVEN_VECTORS = "after: a saved state has none of its vectors to apply the centering to; give the vectors too"


@dataclass(frozen=True)
class CenteringResult(ExperimentResult):
    """What `center` found.

    Attributes:
        model: what `before` and `after` were measured on.
        corpus: the sentences; of a state without a corpus, how many it holds.
        layer, layer_name: the layer's number or "output", and the module or modules.
        before, after: the sentence level without and with the centering; `after` is None where there are no vectors.
        fitted_on: the state that the centering was fitted on, and how many vectors that held; "state" is None where it
            was fitted on the very sentences that `before` and `after` were measured on.
        cone: whether there was a cone before.
        held_out: what it does to rows that it was not fitted on; why that is not known, in words; None where there are
            no vectors.
        file: where the centering was written, or None.
        manifest: versions, device, backend, times and options of the run.
        centering: what was fitted.
        dependence: whether neighbouring rows are alike over long stretches; None where that was not looked at.
        quality: whether centring helps, by labelled pairs; where that is said, in words; None without such.
    """

    table: ClassVar[str | None] = None
    model: dict[str, Any]
    corpus: dict[str, Any]
    layer: Layer
    layer_name: str
    before: Level
    after: Level | None
    fitted_on: dict[str, Any]
    cone: Claim
    held_out: Judged | str | None
    file: str | None
    manifest: dict[str, Any]
    centering: Centering = field(repr=False)
    dependence: Dependence | None = None
    quality: Quality | str | None = None

    @property
    def rows(self) -> str:
        """What was measured: "sentences" of a model, or "vectors" that were given."""
        return "vectors" if "vectors" in self.model else "sentences"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why numbers are not defined."""
        found = [f"before: {self.before.reason}"] if self.before.reason else []
        if self.after is None:
            found.append(_NO_VECTORS if self.rows == "sentences" else _NO_GIVEN_VECTORS)
        elif self.after.reason:
            found.append(f"after: {self.after.reason}")
        if isinstance(self.held_out, str):
            found.append(f"held_out: {self.held_out}")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """The result as strict JSON data."""
        reason = "; ".join(self.reasons)
        return {
            "schema": SCHEMA,
            "experiment": "centering",
            "model": self.model,
            "corpus": self.corpus,
            "layer": self.layer,
            "layer_name": self.layer_name,
            "method": self.centering.method,
            "components": self.centering.components,
            "shrinkage": self.centering.shrinkage,
            "file": self.file,
            "fitted_on": self.fitted_on,
            "before": _estimate(self.before).to_dict(),
            "after": None if self.after is None else _estimate(self.after).to_dict(),
            "held_out": self.held_out.to_dict() if isinstance(self.held_out, Judged) else None,
            "dependence": self.dependence.to_dict() if self.dependence else None,
            **({"quality": self.quality.to_dict()} if isinstance(self.quality, Quality) else {}),
            **({"reason": reason} if reason else {}),
            "summary": list(self.summary()),
            "manifest": self.manifest,
        }

    def summary(self) -> tuple[str, ...]:
        """What the centering does to the cone in plain sentences, each said only where the data says it."""
        found = _summary(self)
        if isinstance(self.quality, Quality):
            found += self.quality.summary()
        elif found and self.after:
            found.append(self.quality or QUALITY_NOT_MEASURED)
        return (*found, *(self.dependence.summary(self.rows) if self.dependence else ()))

    def __repr__(self) -> str:
        after = "not measured" if self.after is None else f"{self.after.anisotropy:.4f} ({self.after.stderr:.4f})"
        before = f"{self.before.anisotropy:.4f} ({self.before.stderr:.4f})"
        return f"CenteringResult({self.centering!r}, mean cosine before {before}, after {after})"


def _estimate(level: Level) -> Estimate:
    return Estimate(level.anisotropy, level.stderr)


def _summary(result: CenteringResult) -> list[str]:
    before, after = result.before, result.after
    if before.reason or (after and after.reason):
        return []
    how = _in_words(result.centering)
    at = f" at {place(result.layer)}" if result.rows == "sentences" else ""
    cone = f"the mean cosine of two {result.rows}{at}"
    fitted = f"{result.fitted_on['sentences']:,} {result.rows}"
    if after is None:
        return [f"The centering was fitted on {fitted}; {cone} is {before.anisotropy:.3f} without it."]
    judged = result.held_out
    if not isinstance(judged, Judged):
        where = f"measured on the {fitted} that it was fitted on, which proves nothing"
        return [f"{how} takes {cone} from {before.anisotropy:.3f} to {after.anisotropy:.3f}, {where}: {judged}."]
    where = f"measured on {after.count:,} {result.rows}, fitted on the {fitted} of {result.fitted_on['state']}"
    if judged.folds > 1:
        where = (
            f"measured on {result.rows} that it was not fitted on (each quarter of {fitted}, fitted on the other three)"
        )
    lines = [f"{how} takes {cone} from {judged.before:.3f} to {judged.value:.3f} ± {judged.stderr:.3f}, {where}."]
    fitted_prompt, prompt = result.fitted_on.get("prompt"), result.model.get("prompt")
    if fitted_prompt != prompt:
        lines.append(f"It was fitted {prompt_in_words(fitted_prompt)}, and measured {prompt_in_words(prompt)}.")
    return [*lines, _opens(result, judged)]


def _opens(result: CenteringResult, judged: Judged) -> str:
    """What it does to the cone, as far as it is told from noise."""
    if result.cone.verdict != "greater":
        return "No cone was told from noise before."
    if judged.change.verdict == "greater":
        return f"It makes the cone tighter: {judged.fitted_on:,} {result.rows} are too few to fit it on."
    if judged.change.verdict == "undecided":
        needed = judged.change.needed(result.before.count)
        more = "" if needed is None else f"; about {needed:,} {result.rows} would decide it"
        return f"Whether it opens the cone is undecided{more}."
    if judged.value < -_ERRORS * judged.stderr:
        return f"Two {result.rows} point apart on average now."
    if judged.value <= _ERRORS * judged.stderr:
        return "It opens the cone: what is left is not told from 0."
    return f"It opens the cone: {judged.value / judged.before:.1%} of it is left."


def _in_words(centering: Centering) -> str:
    if centering.components is not None:
        directions = f"top {centering.components} directions" if centering.components > 1 else "top direction"
        return f"Subtracting the mean and projecting out the {directions}"
    if centering.shrinkage is not None:
        return f"Whitening with shrinkage {centering.shrinkage:.3g}"
    return "Subtracting the mean"
