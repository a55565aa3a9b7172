"""Ethayarajh's measures of contextualised words at every layer, from what a run gathered of its tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cone_kernels.experiments.result import Estimate
from cone_kernels.experiments.tokens_result import SHOWN, WordSimilarity
from cone_kernels.statistics.claims import Claim

if TYPE_CHECKING:
    from torch import Tensor

    from cone_kernels.runs.token_plan import TokenPlan
    from cone_kernels.runs.token_sums import CosineSums, LayerTokens
    from cone_kernels.statistics.estimates import Estimates


def contextual_words(
    layers: Sequence[LayerTokens], plan: TokenPlan, blocks: Tensor
) -> tuple[list[WordSimilarity], Claim]:
    """Ethayarajh's measures of each layer, and the last layer's adjusted self-similarity less the first one's.

    The words were drawn, so errors of what is taken over words are those of the draw; all else has errors by groups of
    sentences.

    Args:
        layers: what was gathered of each.
        plan: of the corpus.
        blocks: (G,) int64, of the jackknife groups; see `cone_kernels.sums.jackknife_blocks`.
    """
    import torch

    from cone_kernels.statistics.word_similarity import over_words

    baseline, intra = _over_sentences(layers, blocks)
    own = over_words(torch.stack([_self_similarity(one.words, len(plan.words)) for one in layers]))
    of_words, of_drawn = zip(*(_explained(one.kept, plan) for one in layers), strict=True)
    drawn = torch.tensor(of_drawn, dtype=torch.float64).reshape(len(layers), -1, 2)  # of L layers and W words
    explained = over_words(torch.stack(of_words))
    beyond = over_words(torch.stack(of_words) - drawn[..., 0]).less_apart(_error_of(drawn[..., 1]))
    adjusted = own.less_apart(baseline)
    estimates = {
        "baseline": baseline,
        "self_similarity": own,
        "self_adjusted": adjusted,
        "intra_sentence": intra,
        "intra_adjusted": intra.less(baseline),
        "explained": explained,
        "explained_adjusted": beyond,
    }
    by_name = {name: listed(found) for name, found in estimates.items()}
    rows = []
    for at, intra_of_drawn in enumerate(_of_drawn(layers, plan)):
        of_layer: dict[str, Any] = {name: found[at] for name, found in by_name.items()}
        rows.append(WordSimilarity(**of_layer, intra_of_drawn=intra_of_drawn))
    last = torch.tensor([len(layers) - 1])
    return rows, adjusted.at(last).less(adjusted.at(0 * last)).claims(margin=SHOWN)[0]


def _over_sentences(layers: Sequence[LayerTokens], blocks: Tensor) -> tuple[Estimates, Estimates]:
    """The mean cosine of two tokens of different sentences, and the intra-sentence similarity."""
    import torch

    from cone_kernels.metrics import summed_by_block
    from cone_kernels.statistics.estimates import Estimates

    texts = [one.divisions["special"].get(0, {}) for one in layers]
    empty = {"unit_sum": torch.zeros(1, len(blocks), 1, dtype=torch.float64), "count": torch.zeros(1, len(blocks))}

    def by_block(values: Sequence[Tensor]) -> Tensor:
        return summed_by_block(torch.cat(list(values)), blocks)

    total = by_block([(one or empty)["unit_sum"] for one in texts])
    count = by_block([(one or empty)["count"].double() for one in texts])
    names = ("similarity", "sentences", "squares", "size_squares")
    sums = {name: by_block([getattr(one.sentences, name)[None] for one in layers]) for name in names}

    def of(sum_over: Any) -> tuple[Tensor, Tensor]:
        s, n, found = sum_over(total), sum_over(count), {name: sum_over(value) for name, value in sums.items()}
        pairs = n.square() - found["size_squares"]
        between = (s.square().sum(-1) - found["squares"]) / torch.where(pairs > 0, pairs, torch.nan)
        return between, found["similarity"] / torch.where(found["sentences"] > 0, found["sentences"], torch.nan)

    whole, left_out = of(lambda x: x.sum(1)), of(lambda x: x.sum(1, keepdim=True) - x)
    between, intra = (Estimates.of_jackknife(*one, count) for one in zip(whole, left_out, strict=True))
    return between, intra


def _self_similarity(words: CosineSums, n: int) -> Tensor:
    """(n,) the mean cosine of the occurrences of each word."""
    from cone_kernels.sums import cosine_of_sums

    return cosine_of_sums(words["unit_sum"], words["unit_sq_total"], words["count"])[0, :n]


def _error_of(stderrs: Tensor) -> Estimates:
    """Zeros whose errors are those (L, W) of what all words were compared with."""
    from cone_kernels.statistics.estimates import Estimates

    error = stderrs.nanmean(1)
    return Estimates.of_errors(error.new_zeros(len(error)), error)


def _explained(kept: Tensor, plan: TokenPlan) -> tuple[Tensor, list[tuple[float, float]]]:
    """(W,) the explained variance of each word, and of each that of as many drawn tokens with its standard error."""
    import torch

    from cone_kernels.runs.token_plan import KEPT, LEAST_SENTENCES
    from cone_kernels.statistics.word_similarity import explained_variance, explained_variance_of_drawn

    n, pool = len(plan.words), _pool(kept, plan)
    found, drawn = torch.full((n,), torch.nan, dtype=torch.float64), [(math.nan, math.nan)] * n
    of_size = lru_cache(lambda m: explained_variance_of_drawn(pool, m))
    for at in range(n):
        rows = _usable(kept[at * KEPT : (at + 1) * KEPT])
        if len(rows) >= LEAST_SENTENCES and len(pool) >= 2 * len(rows):
            found[at], drawn[at] = explained_variance(rows), of_size(len(rows))
    return found, drawn


def _of_drawn(layers: Sequence[LayerTokens], plan: TokenPlan) -> list[float]:
    """The intra-sentence similarity of sentences of drawn tokens, of each layer."""
    import torch

    from cone_kernels.statistics.word_similarity import intra_sentence_similarity_of_drawn

    sizes = torch.from_numpy(plan.sizes)
    pools = [_pool(one.kept, plan) for one in layers]
    return [float(intra_sentence_similarity_of_drawn(pool, sizes).mean()) if len(pool) else math.nan for pool in pools]


def _pool(kept: Tensor, plan: TokenPlan) -> Tensor:
    from cone_kernels.runs.token_plan import KEPT

    return _usable(kept[len(plan.words) * KEPT :])


def _usable(rows: Tensor) -> Tensor:
    """The rows that have a direction, in float64."""
    from cone_kernels.runs.sentence_vectors import used_rows

    exact = rows.double()
    return exact[used_rows(exact)]


def listed(estimates: Estimates) -> list[Estimate]:
    """Each value with its error, NaN where no error is known."""
    known = estimates.degrees > 0
    pairs = zip(estimates.values.tolist(), estimates.stderr.where(known, math.nan).tolist(), strict=True)
    return [Estimate(value, stderr) for value, stderr in pairs]
