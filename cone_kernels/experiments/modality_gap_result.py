"""What `modality_gap` found: the cone of images, that of texts, and how far apart the two are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cone_kernels.experiments.level import Level
from cone_kernels.experiments.result import Estimate, ExperimentResult, data_frame, finite
from cone_kernels.names import OUTPUT

if TYPE_CHECKING:
    from pandas import DataFrame

    from cone_kernels.state.cone_state import ConeState
    from cone_kernels.statistics.claims import Claim

SCHEMA = "cone_kernels/modality_gap/1"


@dataclass(frozen=True)
class TowerLayer:
    """One layer of a tower, as a layer of `layers`: its number, the module, both levels."""

    layer: int
    name: str
    sentence: Level
    token: Level

    def to_dict(self) -> dict[str, Any]:
        """The layer as JSON data."""
        levels = {"sentence": self.sentence.to_dict(), "token": self.token.to_dict()}
        return {"layer": self.layer, "name": self.name, **levels}


@dataclass(frozen=True)
class Tower:
    """One tower.

    Attributes:
        architecture: the class of its module.
        layers: a sentence is one text or one image, a token a position of the hidden states.
        output: the level of the vectors in the space that both towers share.
        state: the sums of its layers, and of its vectors as `output`.
    """

    architecture: str
    layers: tuple[TowerLayer, ...]
    output: Level
    state: ConeState = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The tower as JSON data."""
        output = {"sentence": self.output.to_dict()}
        return {"architecture": self.architecture, "layers": [row.to_dict() for row in self.layers], "output": output}


@dataclass(frozen=True)
class ModalityGapResult(ExperimentResult):
    """What `modality_gap` found; standard errors are of images and texts drawn independently of each other.

    Attributes:
        model: `name`, `architecture`, `dtype`.
        images, texts: the towers.
        cosine_of_means: cosine between the mean of the images' unit vectors and that of the texts'.
        gap: length of the difference of the two means, from 0 to 2 (Liang et al. 2022).
        gap_claim: the gap against that of so many images and texts of one cone, which is chance alone.
        across: mean cosine of an image and a text at random.
        corpus: the texts, what of them was dropped or replaced, how many were cut at the longest input (`truncated`),
            and how many vectors of either kind were left out (`left_out`), of the layer that has most of them.
        manifest: versions, times, device, size of a batch.
    """

    model: dict[str, Any]
    images: Tower
    texts: Tower
    cosine_of_means: Estimate
    gap: Estimate
    gap_claim: Claim
    across: Estimate
    corpus: dict[str, Any]
    manifest: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The result as strict JSON data."""
        numbers = {name: getattr(self, name).to_dict() for name in ("cosine_of_means", "gap", "across")}
        return {
            "schema": SCHEMA,
            "experiment": "modality_gap",
            "model": self.model,
            "corpus": self.corpus,
            "images": self.images.to_dict(),
            "texts": self.texts.to_dict(),
            **numbers,
            "gap_by_chance": {
                "expected": finite(self.gap_claim.null),
                "at_most": finite(self.gap_claim.null + self.gap_claim.bound),
                "verdict": self.gap_claim.verdict,
            },
            "summary": list(self.summary()),
            "manifest": self.manifest,
        }

    def to_pandas(self) -> DataFrame:
        """A row for each layer of each tower, its number as `layer`, and one for its vectors, the layer `output`.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        rows = []
        for name, tower in (("images", self.images), ("texts", self.texts)):
            found = tower.to_dict()
            about = {"model": self.model["name"], "tower": name}
            rows += [about | row for row in found["layers"]] + [about | {"layer": OUTPUT} | found["output"]]
        return data_frame(rows)

    def summary(self) -> tuple[str, ...]:
        """The answer in plain sentences."""
        both = {"images": self.images.output.anisotropy, "texts": self.texts.output.anisotropy}
        inside = {name: value for name, value in both.items() if math.isfinite(value)}  # a single one has no other
        pairs, across = " and ".join(f"two {name} at random" for name in inside).capitalize(), _said(self.across)
        cosines = " and ".join(f"{value:.3f}" for value in inside.values())
        return (
            f"The mean of the images and that of the texts have a cosine of {_said(self.cosine_of_means)}, and lie "
            f"{_said(self.gap)} apart.",
            f"{pairs} have a mean cosine of {cosines}; an image and a text one of {across}."
            if inside
            else f"An image and a text at random have a mean cosine of {across}.",
            self._against_chance(),
        )

    def _against_chance(self) -> str:
        """Whether there is a gap, in a sentence."""
        claim, n = self.gap_claim, (self.images.output.count, self.texts.output.count)
        drawn = f"{n[0]:,} {'image' if n[0] == 1 else 'images'} and {n[1]:,} {'text' if n[1] == 1 else 'texts'}"
        if not math.isfinite(claim.bound):
            return f"Whether there is a gap is undecided: {drawn} are too few."
        chance = f"the means of {drawn} of one cone lie up to {claim.null + claim.bound:.3f} apart in 19 of 20 draws"
        if claim.verdict == "greater":
            return f"The gap is more than chance: {chance}."
        return f"Whether there is a gap is undecided: {chance}."


def _said(estimate: Estimate) -> str:
    return f"{estimate.value:.3f}" + (f" ± {estimate.stderr:.3f}" if math.isfinite(estimate.stderr) else "")
