"""What `tokens` finds: what each class of tokens makes of the cone, and that in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from cone_kernels.experiments.level import Level
from cone_kernels.experiments.result import Estimate, ExperimentResult, finite
from cone_kernels.names import TOKEN_DIVISIONS, numbered
from cone_kernels.statistics.claims import Claim

SCHEMA = "cone_kernels/tokens/1"

# A hundredth of the cone, or of a mean cosine, is nothing to speak of.
SHOWN = 0.01
# More than eight times the median.
MASSIVE = TOKEN_DIVISIONS["norm"].classes[-1]


@dataclass(frozen=True)
class TokenClass:
    """One class of tokens at one layer. All classes of all layers are judged together.

    Attributes:
        layer: the layer's number.
        by: of `cone_kernels.names.TOKEN_DIVISIONS`: by what the tokens are divided.
        name: of the class.
        tokens: how many are in it.
        tokens_share: of all tokens.
        share: what it makes of the cone: its part of the cosines of all pairs.
        excess: share less tokens_share, against 0: a class of tokens like any others makes its share of the tokens.
        within: the mean cosine of two tokens of the class.
        across: of a token of the class and one of another class.
        without: the mean cosine of all other tokens.
        opens: the mean cosine of all tokens less `without`, against 0.
    """

    layer: int
    by: str
    name: str
    tokens: int
    tokens_share: float
    share: Estimate
    excess: Claim
    within: Estimate
    across: Estimate
    without: Estimate
    opens: Claim

    def to_dict(self) -> dict[str, Any]:
        """The class as JSON data."""
        estimates = {name: getattr(self, name).to_dict() for name in ("share", "within", "across", "without")}
        return {
            "layer": self.layer,
            "by": self.by,
            "name": self.name,
            "tokens": self.tokens,
            "tokens_share": finite(self.tokens_share),
            **estimates,
            "excess": _of_claim(self.excess),
            "opens": _of_claim(self.opens),
        }


def _of_claim(claim: Claim) -> dict[str, Any]:
    return {"value": finite(claim.estimate), "bound": finite(claim.bound), "verdict": claim.verdict}


@dataclass(frozen=True)
class WordSimilarity:
    """Ethayarajh's measures of one layer, of the tokens of the texts. NaN where there is no word to measure.

    Attributes:
        baseline: the mean cosine of two tokens of different sentences.
        self_similarity: the mean cosine of a word's occurrences in different sentences, over words.
        self_adjusted: the same less the baseline.
        intra_sentence: the mean cosine of a sentence's tokens with their mean, over sentences of two or more.
        intra_adjusted: the same less the baseline.
        intra_of_drawn: of sentences as long whose tokens are drawn from all.
        explained: the share of the first singular direction of a word's occurrences, over words.
        explained_adjusted: the same less that of as many tokens drawn from all.
    """

    baseline: Estimate
    self_similarity: Estimate
    self_adjusted: Estimate
    intra_sentence: Estimate
    intra_adjusted: Estimate
    intra_of_drawn: float
    explained: Estimate
    explained_adjusted: Estimate

    def to_dict(self) -> dict[str, Any]:
        """The measures as JSON data."""
        values = vars(self).items()
        return {name: value.to_dict() if isinstance(value, Estimate) else finite(value) for name, value in values}


@dataclass(frozen=True)
class TokensLayer:
    """One layer.

    Attributes:
        layer, name: its number as in Hugging Face's `hidden_states`, and the module.
        token: all its tokens.
        cone: whether there is a cone to share: the mean cosine of tokens of different sentences against 0.
        typical_norm: at which the class of norms begins that the median token is in; each class ends at twice its
            beginning.
        similarity: of words and sentences.
    """

    layer: int
    name: str
    token: Level
    cone: Claim
    typical_norm: float
    similarity: WordSimilarity

    def to_dict(self) -> dict[str, Any]:
        """The layer as JSON data."""
        return {
            "layer": self.layer,
            "name": self.name,
            "token": self.token.to_dict(),
            "cone": self.cone.verdict,
            "typical_norm": finite(self.typical_norm),
            "similarity": self.similarity.to_dict(),
        }


@dataclass(frozen=True)
class Words:
    """The words whose occurrences were compared.

    Attributes:
        names: as the tokenizer writes them; drawn among `eligible`.
        eligible: tokens of the texts that `least_sentences` sentences have, or more.
        least_sentences: see above.
        most_kept: occurrences of a word, evenly over the corpus, of which the explained variance is taken.
        drawn: tokens, drawn from all of the texts, that words and sentences are compared with.
    """

    names: tuple[str, ...]
    eligible: int
    least_sentences: int
    most_kept: int
    drawn: int

    def to_dict(self) -> dict[str, Any]:
        """The words as JSON data."""
        return {**vars(self), "names": list(self.names)}


@dataclass(frozen=True)
class TokensResult(ExperimentResult):
    """What `tokens` found.

    Attributes:
        model: what was measured; `name`, `architecture`, `weights_sha256`, `final_norm`, ...
        corpus: what it was measured on, and what was left out.
        layers: one entry a layer, 0 the embeddings.
        classes: those that have tokens, of every layer; the shares of a division add up to 1.
        contextual: by how much the adjusted self-similarity of the last layer exceeds the first one's.
        words: which words were compared.
        manifest: versions, device, backend, times and options of the run.
    """

    table: ClassVar[str | None] = "classes"
    model: dict[str, Any]
    corpus: dict[str, Any]
    layers: tuple[TokensLayer, ...]
    classes: tuple[TokenClass, ...]
    contextual: Claim
    words: Words
    manifest: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The result as strict JSON data."""
        return {
            "schema": SCHEMA,
            "experiment": "tokens",
            "model": self.model,
            "corpus": self.corpus,
            "layers": [row.to_dict() for row in self.layers],
            "classes": [one.to_dict() for one in self.classes],
            "contextual": _of_claim(self.contextual),
            "words": self.words.to_dict(),
            "summary": list(self.summary()),
            "manifest": self.manifest,
        }

    def summary(self) -> tuple[str, ...]:
        """Which tokens make the cone, in plain sentences.

        All classes of all layers are judged together: with 19 of 20 samples no difference mentioned is noise.
        """
        cones = [row.layer for row in self.layers if row.cone.verdict == "greater"]
        if not cones:
            return ("At no layer is there a cone of tokens to share: their mean cosine is not told from 0.",)
        said = [_of_division(by, [one for one in self.classes if one.by == by], self.layers) for by in TOKEN_DIVISIONS]
        return (*said, _massive(self.classes, self.layers), *_of_words(self.layers, self.contextual, self.words))

    def at(self, layer: int, by: str, name: str) -> TokenClass | None:
        """A class by its names; None where the layer has no token of it.

        Examples:
            >>> result.at(3, "special", "[CLS]").share
            Estimate(value=0.071..., stderr=...)
        """
        found = (one for one in self.classes if (one.layer, one.by, one.name) == (layer, by, name))
        return next(found, None)

    def __repr__(self) -> str:
        corpus = f"{self.corpus['sentences']} sentences of {self.corpus['name']}"
        return f"TokensResult({self.model['architecture']}, {corpus}, {len(self.layers)} layers)"


def _of_division(by: str, classes: Sequence[TokenClass], layers: Sequence[TokensLayer]) -> str:
    """The class that takes most more than its share of the tokens, and where."""
    phrase = TOKEN_DIVISIONS[by].phrase
    more = [one for one in classes if one.excess.verdict == "greater"]
    if not more:
        known = any(math.isfinite(one.excess.bound) for one in classes)
        why = "as far as can be told" if known else "for there are too few groups of sentences to tell"
        return f"By {phrase}, no tokens make more of the cone than their share of the tokens, {why}."
    most = max(more, key=lambda one: one.excess.estimate)
    numbers = [row.layer for row in layers]
    at = [one.layer for one in more if one.name == most.name]
    others = f" (more than their share at {numbered(at, numbers)})" if len(at) > 1 else ""
    layer = next(row for row in layers if row.layer == most.layer)
    verdicts = {"greater": ", a wider cone", "less": ", a tighter cone", "equal": ", about the same"}
    return (
        f"By {phrase}, {_named(most, layer.typical_norm)} exceed their share of the tokens most, at layer "
        f"{most.layer}{others}: {most.tokens_share:.1%} of the tokens make {most.share.value:.1%} ± "
        f"{most.share.stderr:.1%} of the cone. Without them the mean cosine is {most.without.value:.3f} in place of "
        f"{layer.token.anisotropy:.3f}{verdicts.get(most.opens.verdict, '')}."
    )


def _named(one: TokenClass, typical_norm: float) -> str:
    if one.name == "special":
        return "the special tokens"
    if one.by == "special":
        return "the tokens of the text" if one.name == "text" else f"the {one.name} tokens"
    if one.by == "norm":
        return f"the tokens of norms {_norms(one.name, typical_norm)}"
    return f"the tokens in place “{one.name}”" if one.by == "position" else f"the tokens of ranks {one.name}"


def _norms(name: str, typical_norm: float) -> str:
    """A class of norms in numbers; "1 to 2" begins at the typical norm."""
    classes = TOKEN_DIVISIONS["norm"].classes
    begins = typical_norm * 2.0 ** (classes.index(name) - classes.index("1 to 2"))
    if name == classes[0]:
        return f"below {2 * begins:.3g}"
    return f"of {begins:.3g} and more" if name == MASSIVE else f"from {begins:.3g} to {2 * begins:.3g}"


def _massive(classes: Sequence[TokenClass], layers: Sequence[TokensLayer]) -> str:
    found = [one for one in classes if one.by == "norm" and one.name == MASSIVE]
    if not found:
        return "No token at any layer is 16 times as long as the median one: there are no massive activations."
    at = numbered([one.layer for one in found], [row.layer for row in layers])
    there = f"Tokens more than 8 times as long as the median one, massive activations, are there at {at}"
    cones = {row.layer for row in layers if row.cone.verdict == "greater"}
    most = max((one for one in found if one.layer in cones), key=lambda one: one.share.value, default=None)
    if most is None:
        return f"{there}."
    return (
        f"{there}; at layer {most.layer} they are {most.tokens_share:.1%} of the tokens and make "
        f"{most.share.value:.1%} of the cone."
    )


def _of_words(layers: Sequence[TokensLayer], contextual: Claim, words: Words) -> list[str]:
    known = [row for row in layers if math.isfinite(row.similarity.self_adjusted.stderr)]
    if len(known) < 2:
        return []
    first, last = known[0].similarity, known[-1].similarity
    if contextual.differs:
        way = "grows" if contextual.verdict == "greater" else "falls"
        moved = f"{way} from {_shown(first.self_adjusted)} at layer {known[0].layer} to {_shown(last.self_adjusted)}"
    else:
        moved = f"is {_shown(first.self_adjusted)} at layer {known[0].layer} and, not told from that, "
        moved += _shown(last.self_adjusted)
    most = max(known, key=lambda row: row.similarity.explained_adjusted.value)
    least = min(known, key=lambda row: row.similarity.explained_adjusted.value)
    return [
        f"The same word in different sentences, {len(words.names)} words: its mean cosine less that of any two tokens "
        f"{moved} at layer {known[-1].layer}.",
        f"The first direction of a word's vectors explains {_shown(most.similarity.explained_adjusted)} more than that "
        f"of as many tokens' at layer {most.layer}, where it is most, and "
        f"{_shown(least.similarity.explained_adjusted)} at layer {least.layer}, where it is least.",
    ]


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ± {estimate.stderr:.3f}"
