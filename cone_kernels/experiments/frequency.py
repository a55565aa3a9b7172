"""Whether an axis goes with how common words are: in the vocabulary and in the sentences, against other directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from cone_kernels.experiments.result import finite
from cone_kernels.statistics.claims import Claim

if TYPE_CHECKING:
    from torch import Tensor

    from cone_kernels.experiments.vocabulary import TokenEmbeddings

FrequencyOf: TypeAlias = Literal["tokens", "sentences"]

# Directions that an axis is compared with; ranks of fewer tokens tell nothing.
_RANDOM, _RANDOM_SEED, _LEAST_TOKENS = 64, 18, 8


@dataclass(frozen=True)
class FrequencyRelation:
    """How projections on an axis go with frequency in the corpus.

    Attributes:
        rows: how many tokens, or sentences.
        correlation: of tokens Spearman's ρ of the projected embeddings with the counts, of sentences Pearson's r with
            the mean log frequency of their tokens.
        stderr: its standard error, over tokens or sentences.
        bound: half the width of its interval; that holds for all axes together.
        random_mean, random_p95: |correlation| of directions drawn from the covariance of the sentence vectors: on
            average, and what one in twenty exceeds.
    """

    rows: int
    correlation: float
    stderr: float
    bound: float
    random_mean: float
    random_p95: float

    @property
    def claim(self) -> Claim:
        """|correlation| against what one direction in twenty exceeds."""
        return Claim(abs(self.correlation), null=self.random_p95, bound=self.bound)

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "rows": self.rows,
            "correlation": finite(self.correlation),
            "stderr": finite(self.stderr),
            "bound": finite(self.bound),
            "random": {"mean": finite(self.random_mean), "p95": finite(self.random_p95)},
            "verdict": self.claim.verdict,
        }

    def in_words(self, of: FrequencyOf) -> str:
        """What it says, after the axis: "it is carried by common words: …"."""
        symbol, rows = ("rho", "tokens") if of == "tokens" else ("r", "sentences")
        number = f"{symbol} = {self.correlation:+.2f} (s.e. {self.stderr:.2f}) over {self.rows:,} {rows}"
        random = f"directions drawn from the covariance have |{symbol}| {self.random_mean:.2f} on average"
        against = f"{number}, where {random} and one in twenty more than {self.random_p95:.2f}"
        where = "upper" if self.correlation > 0 else "lower"
        what = "common words lie" if of == "tokens" else "sentences of common words lie"
        said = {
            "greater": f"{what} at its {where} end, more than at those of other directions",
            "less": f"{what} at its ends no more than at those of other directions",
        }
        unknown = f"whether {what} at its ends more than at those of other directions is undecided"
        return f"{said.get(self.claim.verdict, unknown)}: {against}"


def drawn_directions(covariance: Tensor) -> Tensor:
    """(r, d) directions drawn from a covariance (d, d), at length 1, always the same ones."""
    import torch

    values, vectors = torch.linalg.eigh(covariance.double())
    generator = torch.Generator().manual_seed(_RANDOM_SEED)
    normal = torch.randn(_RANDOM, len(values), dtype=torch.float64, generator=generator)
    # Rounding leaves eigenvalues below zero where there are fewer vectors than dimensions.
    drawn = (normal * values.clamp_min(0).sqrt()) @ vectors.mT
    return torch.nn.functional.normalize(drawn, dim=1)


def of_tokens(embeddings: TokenEmbeddings, counts: Tensor, axes: Tensor, drawn: Tensor) -> list[FrequencyRelation]:
    """The relation of each axis (k, d) over the tokens that the corpus has; none of fewer than eight.

    Args:
        embeddings: the model's.
        counts: (V,) int64 how often each token occurs, up to the largest id that does.
        axes, drawn: (k, d) and (r, d) float64.
    """
    import torch

    from cone_kernels.statistics.estimates import Estimates
    from cone_kernels.statistics.ranking import spearman

    ids = counts.nonzero()[:, 0]
    found = embeddings.projected(ids, torch.cat([axes, drawn]))  # (n, k + r)
    finite_rows = found.isfinite().all(1)
    found, often = found[finite_rows], counts[ids][finite_rows].double()
    if len(often) < _LEAST_TOKENS:
        return []
    values, influences = spearman(found.mT.contiguous(), often)
    k = len(axes)
    own = Estimates.of_influences(values[:k], influences[:k], torch.arange(len(often)))
    return _relations(len(often), values, own.stderr.tolist(), own.bounds().tolist())


def of_sentences(rows: int, correlations: Tensor, k: int) -> list[FrequencyRelation]:
    """The relation of each of the k axes, whose correlations (k + r,) come before those of the directions drawn.

    Errors are those of independent sentences; none of fewer than three, or of frequencies that do not vary.
    """
    from cone_kernels.statistics.significance import correlation_claims

    values = correlations.tolist()
    if rows < 3 or any(math.isnan(value) for value in values):
        return []
    claims = correlation_claims({str(at): values[at] for at in range(k)}, rows, 0.0)
    stderrs = [(1 - value**2) / math.sqrt(rows - 2) for value in values[:k]]
    return _relations(rows, correlations, stderrs, [claim.bound for claim in claims.values()])


def _relations(rows: int, values: Tensor, stderrs: Sequence[float], bounds: Sequence[float]) -> list[FrequencyRelation]:
    random = values[len(stderrs) :].abs()
    null = float(random.mean()), float(random.quantile(0.95))
    both = zip(values.tolist(), stderrs, bounds, strict=False)
    return [FrequencyRelation(rows, value, stderr, bound, *null) for value, stderr, bound in both]
