"""Two states of one architecture, before and after fine-tuning say: what changed at which layer, told from chance."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cone_kernels.experiments.compare_result import (
    RESOLUTION,
    Change,
    ComparedLayer,
    CompareResult,
    DirectionChange,
    RandomCosine,
)
from cone_kernels.experiments.cone_change import cone_changes
from cone_kernels.experiments.dependence import Dependence
from cone_kernels.experiments.level import seen_by_group
from cone_kernels.experiments.top_axes import axes_overlap, top_axes
from cone_kernels.names import OUTPUT, Layer
from cone_kernels.runs.measurement import Measurement, from_state, labels, shared_corpus

# The statistics that given vectors, and a model's own output, do not have.
_OF_TOKENS = ("token", "gap", "within", "between", "predicted")
# Those that are means over tokens; the others are over sentences.
_OVER_TOKENS = ("token", "within", "between")

if TYPE_CHECKING:
    from torch import Tensor

    from cone_kernels.state.cone_state import ConeState, Moments
    from cone_kernels.statistics.estimates import Estimates
    from cone_kernels.statistics.subspaces import Overlap


def compare(
    a: Measurement | ConeState | str | os.PathLike[str],
    b: Measurement | ConeState | str | os.PathLike[str],
    *,
    paired: bool | None = None,
    alpha: float = 0.05,
) -> CompareResult:
    """The change from `a` to `b` at every layer, its standard error, and whether it is significant; no model is needed.

    Every difference is taken of both anisotropies, the pooling gap, the within and between cosines and the predicted
    anisotropy. Paired, its standard error is the grouped jackknife of the difference itself: group g of the sentences
    is left out of both states at once, so that what both owe to the choice of sentences cancels. Unpaired, the two
    errors are combined as independent, SE² = SE_a² + SE_b². Neighbouring groups are joined until each has eight
    sentences, and the p value is that of the t distribution: with (Σn)²/Σn² − 1 degrees of freedom for groups of n
    sentences (unpaired: by Welch's formula of both). Each statistic is a family of as many tests as there are layers,
    judged by the largest |t| of layers that go together as these do; of the six statistics each keeps its own rate
    alpha. What a
    model itself gives for sentences, its output, is one more row where both states have one of the same width, with
    the sentence level alone; of states of vectors it is the only one.

    A state does not say which sentences it is of. With `paired=None` the states are taken to be of the same sentences
    where each of the 64 groups has the same number of sentences, of tokens, and the same Σ(tokens of a sentence)²:
    other sentences would hardly agree in all of them. Pairing states of other sentences is not wrong where groups are
    of one size (the errors still add up), and leaving states of the same sentences unpaired is too careful where their
    errors go together, as those of one model before and after training do.

    Neighbours in the corpus share a group, for they are alike (a premise and its hypotheses). Where sentences are alike
    over longer stretches, shuffle or sample the corpus before states of other sentences are compared.

    Where second moments are kept, the cone's axes are compared too, and in any case the means: |cos| next to the mean
    sin² that the choice of sentences alone would give, and to |cos| of random directions. Whether they turned is judged
    by the space of as many top axes as stand apart from the rest, and by the mean of the vectors at length 1.

    Args:
        a: the state before: a file, a `ConeState`, or a `Measurement`.
        b: the state after, of the same architecture, layers, width and pooling; the weights may differ.
        paired: whether both are of the same sentences in the same order; None judges by the counts.
        alpha: the rate at which a statistic that did not change at any layer is called changed at one.

    Raises:
        OSError, StateFileError: a file cannot be read, or is damaged.
        ValueError: the states differ in architecture, layers, width, pooling or final norm, each named; `paired` is
            True and the states have other numbers of sentences in their groups; `alpha` is not between 0 and 1.

    Examples:
        >>> result = compare("before.safetensors", "after.safetensors")
        >>> result.layers[6].sentence.significant
        True
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: got {alpha}; it must be between 0 and 1")
    first, second = (found if isinstance(found, Measurement) else from_state(found) for found in (a, b))
    _refuse_other_architectures(first, second)
    together, pairing = _pairing(first.state, second.state, paired)

    from cone_kernels.statistics.directions import random_cosine_mean, random_cosine_quantile

    names = labels([first, second])
    without_output = _without_output(first.state, second.state, names)
    places: list[Layer] = [*first.state.layers, *([] if without_output or first.state.output is None else [OUTPUT])]
    changes = _changes(first.state, second.state, together, alpha, with_output=OUTPUT in places)
    sentence = changes.pop("sentence")
    turns = _turns(first, second, places, together)
    cones = cone_changes(
        [(first.moments(layer), second.moments(layer)) for layer in places],
        (_blocks(first.state), _blocks(second.state)),
        together,
    )
    rows = tuple(
        ComparedLayer(
            layer=layer,
            name=first.layer_name(layer),
            sentence=sentence[at],
            # Of the output there is the sentence level alone.
            **{name: changes[name][at] if at < len(changes.get(name, ())) else None for name in _OF_TOKENS},
            axis=turns["axis"][at],
            mean=turns["mean"][at],
            cone=cones[at],
        )
        for at, layer in enumerate(places)
    )
    random = {
        dim: RandomCosine(dim, random_cosine_mean(dim), random_cosine_quantile(0.95, dim))
        for dim in {first.moments(layer).dim for layer in places}
    }
    dim = first.state.sentence.dim
    return CompareResult(
        a=_identity(first, names[0]),
        b=_identity(second, names[1]),
        paired=together,
        pairing=pairing,
        layers=rows,
        random_cosine=random[dim],
        output_random_cosine=random[first.moments(OUTPUT).dim] if OUTPUT in places else None,
        without_output=without_output,
        alpha=alpha,
        dependence=(Dependence.of(first.state), Dependence.of(second.state)),
        corpus=shared_corpus([first, second]),
        manifest={
            "versions": first.manifest["versions"],
            "states": [found.manifest["state_fingerprint"] for found in (first, second)],
            "options": {"paired": paired, "alpha": alpha},
        },
    )


def _identity(found: Measurement, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": found.model,
        "sentences": found.corpus["sentences"],
        "tokens": found.corpus["tokens"],
        "fields": list(found.state.sentence.fields),
        "state_fingerprint": found.manifest["state_fingerprint"],
    }


def _refuse_other_architectures(a: Measurement, b: Measurement) -> None:
    from cone_kernels.state.agreement import differences

    poolings = [found.state.pooling for found in (a, b)]
    if poolings[0] != poolings[1]:
        raise ValueError(
            f"a, b: got states of the poolings {poolings[0]} and {poolings[1]}; they must be of one pooling"
        )
    keys = ("architecture", "model_type", "final_norm")
    told = [
        {"layers": list(found.state.layers), "width": found.state.sentence.dim}
        | {key: found.model.get(key) for key in keys}
        for found in (a, b)
    ]
    # A key that one of the two states lacks does not count as a difference.
    said = [key for key in told[0] if None not in (told[0][key], told[1][key])]
    differing = differences(*({key: one[key] for key in said} for one in told))
    if differing:
        raise ValueError(
            f"a, b: got states that differ in {', '.join(differing)}; they must be of one architecture to be compared "
            "layer by layer (`rotation` compares any models)"
        )


def _without_output(a: ConeState, b: ConeState, names: Sequence[str]) -> str | None:
    """Why the models' own outputs are not compared; None where they are, or where there are none."""
    if a.output is None and b.output is None:
        return None
    if a.output is None or b.output is None:
        has, lacks = names if b.output is None else reversed(names)
        return f"{has} has one, and {lacks} has none"
    if a.output.dim != b.output.dim:
        return f"it is {a.output.dim} wide in {names[0]} and {b.output.dim} in {names[1]}"
    return None


def _pairing(a: ConeState, b: ConeState, asked: bool | None) -> tuple[bool, str]:
    """Whether the jackknife is taken on the difference, and why."""
    seen = [seen_by_group(_first(state)) for state in (a, b)]
    other_sentences = not seen[0].equal(seen[1])
    if asked and other_sentences:
        counts = " and ".join(str(int(one.sum())) for one in seen)
        raise ValueError(
            f"paired: got True for states with other numbers of sentences in their jackknife groups ({counts} in all); "
            "it must be False or None, for they are not of the same sentences"
        )
    if asked is not None:
        return asked, "as asked for"
    rows = "sentences" if a.layers else "vectors"
    if other_sentences:
        return False, f"the states have other numbers of {rows} in their jackknife groups"
    if not a.layers:
        return True, "the states have the same numbers of vectors in every jackknife group"
    if not _same_lengths(a.token, b.token):
        return False, "the sentences of their jackknife groups have other numbers of tokens"
    return True, "the states have the same numbers of sentences and tokens in every jackknife group"


def _same_lengths(a: Moments, b: Moments) -> bool:
    if not seen_by_group(a).equal(seen_by_group(b)):
        return False
    left_out = any(bool((moments.n_zero + moments.n_nonfinite)[0].any()) for moments in (a, b))
    # ΣT² is of the tokens used, so it tells nothing where one state left out some that the other used.
    return left_out or a.sentence_size_sq_sum[0].cpu().equal(b.sentence_size_sq_sum[0].cpu())


def _estimates(state: ConeState, with_output: bool) -> dict[str, Estimates]:
    """Every statistic by name, over blocks of sentences; the output follows the layers, in the sentence level alone."""
    from cone_kernels import metrics
    from cone_kernels.experiments.cone_claims import first_estimates
    from cone_kernels.statistics.estimates import Estimates, joined

    found, blocks = {}, _blocks(state)
    if state.layers:
        values, left_out = metrics.first_order(state), metrics.first_order(state, metrics.leave_blocks_out(blocks))
        for name, value in values.items():
            rows = (state.token if name in _OVER_TOKENS else state.sentence).count
            by_block = metrics.summed_by_block(rows, blocks)
            found[name] = Estimates.of_jackknife(value.cpu(), left_out[name].cpu(), by_block.cpu())
    if with_output:
        assert state.output is not None
        own = first_estimates(state.output, blocks)
        found["sentence"] = joined([found["sentence"], own]) if found else own
    return found


def _blocks(state: ConeState) -> Tensor:
    """(G,) the block of each group, by how the sentences, or given vectors, are spread over them."""
    from cone_kernels.sums import jackknife_blocks

    return jackknife_blocks(seen_by_group(_first(state)))


def _first(state: ConeState) -> Moments:
    """The sums that every state has: of sentence vectors, or of given vectors."""
    moments = state.sentence if state.layers else state.output
    assert moments is not None
    return moments


def _changes(a: ConeState, b: ConeState, paired: bool, alpha: float, with_output: bool) -> dict[str, list[Change]]:
    """The changes of every statistic by name, one for each layer; and for the output, which has no tokens."""
    first, second = (_estimates(state, with_output) for state in (a, b))
    return {name: _change(one, second[name], paired, alpha) for name, one in first.items()}


def _change(a: Estimates, b: Estimates, paired: bool, alpha: float) -> list[Change]:
    found = b.less(a) if paired else b.less_apart(a)
    columns = (a.values, b.values, found.values, found.stderr, found.degrees, found.p_values())
    rows = zip(*(column.tolist() for column in (*columns, found.adjusted_p_values())), strict=True)
    return [
        Change(
            a=before,
            b=after,
            difference=difference,
            stderr=stderr,
            degrees_of_freedom=max(0, int(degrees)) if math.isfinite(degrees) else 0,
            p_value=p_value,
            p_adjusted=adjusted,
            significant=adjusted <= alpha and abs(difference) > RESOLUTION,
            reason=_reason(before, after, stderr, p_value),
        )
        for before, after, difference, stderr, degrees, p_value, adjusted in rows
    ]


def _reason(before: float, after: float, stderr: float, p_value: float) -> str | None:
    undefined = [name for name, value in (("a", before), ("b", after)) if math.isnan(value)]
    if undefined:
        return f"it has no value in {' and '.join(undefined)}: there is no pair to take it of"
    if math.isnan(stderr):
        return "stderr: the jackknife needs two groups that leave pairs behind"
    if math.isnan(p_value):
        return "p_value: fewer than three groups of eight sentences, or of documents, tell nothing"
    return None


@dataclass(frozen=True)
class _Direction:
    """A direction (d,) and the mean sin² between it and that of infinitely many sentences, at most."""

    vector: Tensor
    sampling: float


def _turns(a: Measurement, b: Measurement, places: Sequence[Layer], paired: bool) -> dict[str, list[DirectionChange]]:
    """What the cone's axes and the means did at every layer, each judged for all layers together."""
    blocks = [_blocks(found.state) for found in (a, b)]
    pairs = [(a.moments(layer), b.moments(layer)) for layer in places]
    axes = [(_axis(one), _axis(other), axes_overlap(top_axes(one), top_axes(other))) for one, other in pairs]
    means = [(_mean(one), _mean(other), _mean_overlap((one, other), blocks, paired)) for one, other in pairs]
    return {"axis": _judged(axes), "mean": _judged(means)}


def _judged(found: Sequence[tuple[_Direction | None, _Direction | None, Overlap | None]]) -> list[DirectionChange]:
    from cone_kernels.statistics.directions import axis_cosine
    from cone_kernels.statistics.significance import student_bound

    tests = sum(overlap is not None for _, _, overlap in found)
    turns = []
    for a, b, overlap in found:
        if a is None or b is None or overlap is None:
            turns.append(DirectionChange(math.nan, math.nan))
            continue
        bound = student_bound(overlap.stderr, overlap.degrees, tests)
        cosine = axis_cosine(a.vector, b.vector)
        turns.append(DirectionChange(cosine, a.sampling + b.sampling, overlap, bound))
    return turns


def _mean_overlap(pair: tuple[Moments, Moments], blocks: Sequence[Tensor], paired: bool) -> Overlap | None:
    """Of the mean directions of the vectors at length 1, of which there are sums by group."""
    from cone_kernels.metrics import summed_by_block
    from cone_kernels.statistics.subspaces import Space, overlap

    sums = [summed_by_block(one.unit_sum.cpu(), block)[0] for one, block in zip(pair, blocks, strict=True)]
    if any(not float(one.sum(0).norm()) > 0 for one in sums):
        return None
    return overlap(Space.of_mean(sums[0]), Space.of_mean(sums[1]), paired)


def _axis(moments: Moments) -> _Direction | None:
    """The top eigenvector of the covariance of one layer: that is (d, d) float64.

    sin² is about λ₁/n · Σ λ_j/(λ₁ − λ_j)² for normal vectors (Anderson 1963), so at most λ₁(tr C − λ₁)/(n(λ₁ − λ₂)²).
    """
    from cone_kernels.metrics import covariance
    from cone_kernels.ops.top_eigenvectors import top_eigenvectors

    if "second_moment" not in moments.fields:
        return None
    matrix = covariance(moments)  # (1, d, d)
    trace = float(matrix[0].trace())
    if not trace > 0:
        return None
    top = top_eigenvectors(covariance=matrix, k=min(2, moments.dim))
    first, second = [*top.values[0].tolist(), 0.0][:2]
    spread = first * (trace - first) / int(moments.count.sum())
    return _Direction(top.vectors[0, 0].cpu(), spread / (first - second) ** 2 if first > second else math.inf)


def _mean(moments: Moments) -> _Direction | None:
    """The mean m of one layer; sin² is about (E‖x‖² − ‖m‖²)/(n‖m‖²), less what of it lies along m."""
    from cone_kernels.metrics import mean_vector

    mean = mean_vector(moments)[0].cpu()
    own, n = float(mean.square().sum()), int(moments.count.sum())
    return _Direction(mean, (float(moments.norm_sq_sum) / n - own) / (n * own)) if own > 0 else None
