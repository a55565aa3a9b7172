"""Which tokens make the cone: by what they are, where they stand, how common and how long they are."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cone_kernels.corpora import Corpus
from cone_kernels.experiments.contextual_words import contextual_words, listed
from cone_kernels.experiments.level import levels_of
from cone_kernels.experiments.tokens_result import (
    SHOWN,
    TokenClass,
    TokensLayer,
    TokensResult,
    Words,
)
from cone_kernels.names import TOKEN_DIVISIONS
from cone_kernels.runs.measure_part import loaded_model, measure_part
from cone_kernels.runs.measurement import Measurement, threads_of
from cone_kernels.runs.options import CORPUS_OPTIONS, LOAD_OPTIONS, MeasureOptions, open_corpus
from cone_kernels.statistics.claims import Claim

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack

    from cone_kernels.models.loaded import ModelLike
    from cone_kernels.runs.token_plan import TokenPlan
    from cone_kernels.runs.token_sums import CosineSums, LayerTokens
    from cone_kernels.statistics.class_shares import ClassShares
    from cone_kernels.statistics.estimates import Estimates

# Among the classes of norms, that of the median token.
_TYPICAL = TOKEN_DIVISIONS["norm"].classes.index("1 to 2")


def tokens(
    model: ModelLike,
    corpus: str | os.PathLike[str] | Corpus | Iterable[Any],
    *,
    threads: int | None = None,
    shard_size: int | None = None,
    **options: Unpack[MeasureOptions],
) -> TokensResult:
    """What each class of tokens makes of the cone at every layer, and Ethayarajh's measures, in one pass of the model.

    Before the pass the corpus is read once to count its tokens. The sums of a class take 64·d·8 bytes a layer, twice
    while a shard is under way: of the 25 or so classes of a model of 12 layers of width 768 some 250 MB. So that each
    token can be told, one process does it all, without a checkpoint.

    Args:
        model: a folder, a hub id, what `load_model` returned, or a model of texts in memory (`ModelLike`).
        corpus: a file, a `Corpus`, sentences, or records that have them in a `field`.
        threads, shard_size: as in `SharedOptions`.
        options: `MeasureOptions`: limit, field, errors, malformed, device, dtype, backend, token_budget, ...

    Raises:
        FileNotFoundError, IsADirectoryError, CorpusError: the corpus cannot be read, or not twice.
        ModuleNotFoundError, ModelError: the model cannot be loaded.
        BackendUnavailable: the backend asked for cannot run here.
        TypeError: an option is unknown.
        ValueError: an option is out of range, the corpus is of images, has no sentence, or changed meanwhile.

    Examples:
        >>> result = tokens("sentence-transformers/all-MiniLM-L6-v2", "snli_dev.jsonl", limit=1000)
        >>> result.at(6, "special", "[CLS]").share
        Estimate(value=..., stderr=...)
    """
    from cone_kernels.runs.token_plan import TokenPlan
    from cone_kernels.runs.token_sums import TokenSums

    unknown = sorted(set(options) - set(MeasureOptions.__annotations__))
    if unknown:
        raise TypeError(
            f"options: got {', '.join(unknown)}; they must be of {', '.join(MeasureOptions.__annotations__)}"
        )
    read = open_corpus(corpus, options, again=True)
    if read.of_images:
        raise ValueError("corpus: got images; it must be texts, whose tokens can be told apart")
    rest: Any = {name: value for name, value in options.items() if name not in CORPUS_OPTIONS}
    loaded = loaded_model(model, options)
    plan = TokenPlan.of(loaded, read)
    before = read.summary.fingerprint
    sums = TokenSums(plan, options.get("backend", "auto"))
    of_run = {name: value for name, value in rest.items() if name not in (*LOAD_OPTIONS, "baseline")}
    measurement = measure_part(loaded, read, token_sums=sums, threads=threads, shard_size=shard_size, **of_run)
    if measurement.corpus["fingerprint"] != before:
        raise ValueError("corpus: got other sentences when it was read again; it must not change meanwhile")
    with threads_of(measurement):
        return tokens_of(measurement, plan, sums.layers)


def tokens_of(measurement: Measurement, plan: TokenPlan, gathered: Mapping[int, LayerTokens]) -> TokensResult:
    """The result of a measurement and of what was gathered beside it; see `tokens`.

    Args:
        measurement: of the model and the corpus.
        plan: of the corpus.
        gathered: by layer, as `TokenSums.layers` gives it.
    """
    from cone_kernels.runs.token_plan import DRAWN, KEPT, LEAST_SENTENCES
    from cone_kernels.runs.token_sums import NORM_UNIT
    from cone_kernels.statistics.estimates import common_direction
    from cone_kernels.sums import jackknife_blocks

    assert measurement.loaded is not None
    state, tokenizer = measurement.state, measurement.loaded.tokenizer
    blocks = jackknife_blocks(state.sentence.count[0])
    special = tuple(tokenizer.convert_ids_to_tokens(plan.special_ids.tolist()))
    cones = common_direction(state.token.unit_sum, state.token.count)
    similarity, contextual = contextual_words(list(gathered.values()), plan, blocks)
    layers, found = [], []
    levels = zip(state.layers, measurement.layer_names, levels_of(state.token), cones, similarity, strict=True)
    for number, name, level, cone, words in levels:
        typical = _typical_exponent(gathered[number].divisions["norm"])
        begins = math.nan if typical is None else NORM_UNIT * 2.0 ** (typical - 1)
        layers.append(TokensLayer(number, name, level, cone, begins, words))
        for by in TOKEN_DIVISIONS:
            named = _named(by, gathered[number].divisions[by], typical, special)
            if named:
                found.append((number, by, tuple(named), _shares(list(named.values()), blocks), cone))
    return TokensResult(
        model=measurement.model,
        corpus=measurement.corpus,
        layers=tuple(layers),
        classes=_classes(found),
        contextual=contextual,
        words=Words(
            names=tuple(tokenizer.convert_ids_to_tokens(plan.words.tolist())),
            eligible=plan.eligible,
            least_sentences=LEAST_SENTENCES,
            most_kept=KEPT,
            drawn=min(DRAWN, len(plan.drawn)),
        ),
        manifest=measurement.manifest,
    )


def _typical_exponent(norms: Mapping[int, CosineSums]) -> int | None:
    """The exponent of the class that the median token is in; None where there is no token."""
    below, total = 0, sum(int(sums["count"].sum()) for sums in norms.values())
    for exponent, sums in sorted(norms.items()):
        below += int(sums["count"].sum())
        if 2 * below >= total:
            return exponent
    return None


def _named(
    by: str, classes: Mapping[int, CosineSums], typical: int | None, special: Sequence[str]
) -> dict[str, CosineSums]:
    """The sums of the classes of a division by their names, in order; those of no token are left out."""
    names = (*TOKEN_DIVISIONS[by].classes, *(special if by == "special" else ()))
    found: dict[str, CosineSums] = {}
    for number, sums in sorted(classes.items()):
        place = number if typical is None or by != "norm" else number - typical + _TYPICAL
        name = names[min(max(place, 0), len(names) - 1)]
        if int(sums["count"].sum()):
            before = found.get(name)
            found[name] = sums if before is None else {field: before[field] + sums[field] for field in sums}
    return found


def _shares(classes: Sequence[CosineSums], blocks: Tensor) -> ClassShares:
    import torch

    from cone_kernels.metrics import summed_by_block
    from cone_kernels.statistics.class_shares import class_shares

    sums = {name: torch.cat([one[name] for one in classes]) for name in ("unit_sum", "unit_sq_total", "count")}
    return class_shares(*(summed_by_block(total, blocks) for total in sums.values()))


def _classes(found: Sequence[tuple[int, str, tuple[str, ...], ClassShares, Claim]]) -> tuple[TokenClass, ...]:
    """The classes with their claims, for which all are judged together."""
    excess = iter(_claims([_shared(shares.excess, cone) for *_, shares, cone in found]))
    opens = iter(_claims([shares.opens for *_, shares, _ in found]))
    rows = []
    for layer, by, names, shares, _ in found:
        share, within, across, without = map(listed, (shares.share, shares.within, shares.across, shares.without))
        for at, name in enumerate(names):
            rows.append(
                TokenClass(
                    layer=layer,
                    by=by,
                    name=name,
                    tokens=int(shares.rows[at]),
                    tokens_share=float(shares.rows_share[at]),
                    share=share[at],
                    excess=next(excess),
                    within=within[at],
                    across=across[at],
                    without=without[at],
                    opens=next(opens),
                )
            )
    return tuple(rows)


def _shared(excess: Estimates, cone: Claim) -> Estimates:
    """Shares of a cone that is not told from none are noise: no error of them is known."""
    return excess if cone.verdict == "greater" else replace(excess, degrees=0 * excess.degrees)


def _claims(several: Sequence[Estimates]) -> list[Claim]:
    from cone_kernels.statistics.estimates import joined

    return joined(several).claims(margin=SHOWN) if several else []
