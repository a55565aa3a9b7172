"""Each formula against its definition computed the long way round, and against what others wrote."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cone_kernels import ConeState, Moments, metrics
from cone_kernels.sums import jackknife_blocks
from tests.support.moment_cases import GROUP_OF, normal

SENTENCES, TOKENS, DIM = 90, 6, 8


def unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def mean_pair(x: Tensor) -> float:
    cosines = unit(x) @ unit(x).T
    return float((cosines.sum() - cosines.trace()) / (len(x) * (len(x) - 1)))


@pytest.fixture(scope="module")
def hidden() -> Tensor:
    topic = normal(SENTENCES, 1, DIM, dtype=torch.float64, seed=7)
    return normal(SENTENCES, TOKENS, DIM, dtype=torch.float64, seed=8, shift=0.4) + topic


@pytest.fixture(scope="module")
def mask() -> Tensor:
    lengths = torch.randint(1, TOKENS + 1, (SENTENCES,), generator=torch.Generator().manual_seed(1))
    return torch.arange(TOKENS) < lengths[:, None]


@pytest.fixture(scope="module")
def state(hidden: Tensor, mask: Tensor) -> ConeState:
    state = ConeState.empty([0], DIM, second_moment=True, unit_second_moment=True)
    state.update([hidden], mask)
    return state


@pytest.fixture(scope="module")
def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def test_anisotropy_at_both_levels(state: ConeState, hidden: Tensor, mask: Tensor, pooled: Tensor) -> None:
    assert float(metrics.anisotropy(state.token)) == pytest.approx(mean_pair(hidden[mask]), rel=1e-12)
    assert float(metrics.anisotropy(state.sentence)) == pytest.approx(mean_pair(pooled), rel=1e-12)
    assert float(metrics.pooling_gap(state)) == pytest.approx(mean_pair(pooled) - mean_pair(hidden[mask]), rel=1e-11)


def test_all_of_first_order_at_once_is_each_by_itself(state: ConeState) -> None:
    wanted = {
        "sentence": metrics.anisotropy(state.sentence),
        "token": metrics.anisotropy(state.token),
        "gap": metrics.pooling_gap(state),
        "within": metrics.within_sentence_cosine(state.token),
        "between": metrics.between_sentence_cosine(state.token),
        "predicted": metrics.predicted_anisotropy(state.token),
    }
    found = metrics.first_order(state)
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_within_and_between(state: ConeState, hidden: Tensor, mask: Tensor) -> None:
    owner = torch.arange(SENTENCES).repeat_interleave(mask.sum(1))
    cosines = unit(hidden[mask]) @ unit(hidden[mask]).T
    same = owner[:, None] == owner
    distinct = ~torch.eye(len(owner), dtype=torch.bool)
    within, between = float(cosines[same & distinct].mean()), float(cosines[~same].mean())
    assert float(metrics.within_sentence_cosine(state.token)) == pytest.approx(within, rel=1e-12)
    assert float(metrics.between_sentence_cosine(state.token)) == pytest.approx(between, rel=1e-12)
    predicted = mean_pair((unit(hidden) * mask[..., None]).sum(1))
    assert float(metrics.predicted_anisotropy(state.token)) == pytest.approx(predicted, rel=1e-12)


def test_prediction_is_exact_for_orthonormal_noise_of_one_length() -> None:
    # Tokens a·m + b·e with e orthogonal to everything else: unit vectors, within and between cosine both a².
    a, sentences, tokens = 0.6, 12, 4
    noise = torch.eye(sentences * tokens, sentences * tokens + 1, dtype=torch.float64)
    mean = torch.zeros(sentences * tokens + 1, dtype=torch.float64)
    mean[-1] = 1
    x = (a * mean + math.sqrt(1 - a * a) * noise).reshape(sentences, tokens, -1)
    state = ConeState.empty([0], x.shape[-1])
    state.update([x], torch.ones(sentences, tokens))
    predicted = float(metrics.predicted_anisotropy(state.token))
    assert predicted == pytest.approx(float(metrics.anisotropy(state.sentence)), rel=1e-12)
    # As is the formula of sentences of one length, B / ((1 + (T − 1)·W) / T).
    assert predicted == pytest.approx(a * a / ((1 + (tokens - 1) * a * a) / tokens), rel=1e-12)


@pytest.mark.parametrize("lengths", ["poisson", "lognormal"])
def test_where_averaging_is_the_whole_story_it_is_predicted_whatever_the_lengths(lengths: str) -> None:
    """Tokens of a common direction, of their sentence and noise: the mean length alone would say too much."""
    n, dim, generator = 600, 200, np.random.default_rng(3)
    sizes = generator.poisson(3.0, n) + 1 if lengths == "poisson" else generator.lognormal(1.5, 1.2, n).astype(int) + 1
    common, own = (generator.standard_normal((size, dim)) / dim**0.5 for size in (1, n))
    tokens = 0.35 * common + 0.15 * own.repeat(sizes, 0) + generator.standard_normal((sizes.sum(), dim)) / dim**0.5
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    state = ConeState.empty([0], dim)
    state.update([torch.from_numpy(tokens)], cu_seqlens=torch.from_numpy(np.append(0, sizes.cumsum())))
    true, predicted = float(metrics.anisotropy(state.sentence)), float(metrics.predicted_anisotropy(state.token))
    gap, stderr = float(metrics.pooling_gap(state)), float(metrics.predicted_anisotropy_stderr(state.token))
    assert 0 < stderr < 0.02
    assert predicted == pytest.approx(true, abs=1e-9)  # tokens of length 1: nothing else tells sentences from tokens
    size, within, between = (
        sizes.mean(),
        *(float(metric(state.token)) for metric in (metrics.within_sentence_cosine, metrics.between_sentence_cosine)),
    )
    of_mean_length = between / ((1 + (size - 1) * within) / size)
    assert of_mean_length - true > max(2 * stderr, 0.1 * gap)


def test_a_sentence_whose_tokens_cancel_has_no_direction() -> None:
    x = normal(4, 4, DIM, dtype=torch.float32)
    x[1] = torch.stack([x[1, 0], -x[1, 0], 3 * x[1, 1], -2 * x[1, 1]])  # to zero, but for rounding
    state = ConeState.empty([0], DIM)
    state.update([x], torch.ones(4, 4))
    assert (int(state.token.n_sentences.sum()), int(state.token.n_cancelled.sum())) == (4, 1)
    without = ConeState.empty([0], DIM)
    without.update([x[[0, 2, 3]]], torch.ones(3, 4))
    predicted = float(metrics.predicted_anisotropy(without.token))
    assert float(metrics.predicted_anisotropy(state.token)) == pytest.approx(predicted, rel=1e-12)
    alone = ConeState.empty([0], DIM)
    alone.update([x[:2]], torch.ones(2, 4))
    assert math.isnan(float(metrics.predicted_anisotropy(alone.token)))


def long_jackknife(statistic: object, groups: Tensor) -> float:
    values = np.array([statistic(groups != g) for g in groups.unique()])  # type: ignore[operator]
    return float(np.sqrt((len(values) - 1) / len(values) * np.sum((values - values.mean()) ** 2)))


@pytest.mark.parametrize("n", [SENTENCES, 12])  # of 12 sentences most groups have none
def test_jackknife_is_the_recomputation_without_each_group(
    n: int, hidden: Tensor, mask: Tensor, pooled: Tensor
) -> None:
    hidden, mask, pooled, groups = hidden[:n], mask[:n], pooled[:n], torch.tensor(GROUP_OF[:n])
    state = ConeState.empty([0], DIM)
    state.update([hidden], mask)

    def token(keep: Tensor) -> float:
        return mean_pair(hidden[keep][mask[keep]])

    def sentence(keep: Tensor) -> float:
        return mean_pair(pooled[keep])

    wanted = {
        "token": (metrics.anisotropy_stderr(state.token), long_jackknife(token, groups)),
        "sentence": (metrics.anisotropy_stderr(state.sentence), long_jackknife(sentence, groups)),
        "gap": (
            metrics.pooling_gap_stderr(state),
            long_jackknife(lambda keep: sentence(keep) - token(keep), groups),
        ),
    }
    for name, (got, value) in wanted.items():
        assert float(got) == pytest.approx(value, rel=1e-9), name

    def rebuilt(keep: Tensor) -> Moments:
        part = ConeState.empty([0], DIM)
        part.update([hidden[keep]], mask[keep])
        return part.token

    for statistic, stderr in (
        (metrics.within_sentence_cosine, metrics.within_stderr),
        (metrics.between_sentence_cosine, metrics.between_stderr),
        (metrics.predicted_anisotropy, metrics.predicted_anisotropy_stderr),
    ):
        value = long_jackknife(lambda keep, statistic=statistic: float(statistic(rebuilt(keep))), groups)
        assert float(stderr(state.token)) == pytest.approx(value, rel=1e-9)


def test_standard_error_covers_the_truth() -> None:
    # 200 samples of one distribution: the spread of A and the mean of its standard errors agree.
    values, errors = [], []
    for seed in range(200):
        moments = Moments.empty("sentence", [0], 5)
        moments.update(normal(640, 5, seed=seed))
        values.append(float(metrics.anisotropy(moments)))
        errors.append(float(metrics.anisotropy_stderr(moments)))
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.15)


def test_blocks_of_groups_are_left_out_together(pooled: Tensor) -> None:
    moments = Moments.empty("sentence", [2, 5], DIM)
    moments.update(torch.stack([pooled, pooled.flip(0)]))
    blocks = jackknife_blocks(moments.count[0], least=25)
    assert len(blocks.unique()) > 2
    found = metrics.anisotropy(moments, metrics.leave_blocks_out(blocks))  # (L, B)
    of_rows = blocks[torch.tensor(GROUP_OF[:SENTENCES])]
    wanted = [[mean_pair(rows[of_rows != block]) for block in blocks.unique()] for rows in (pooled, pooled.flip(0))]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0)
    assert metrics.summed_by_block(moments.count, blocks).tolist() == [torch.bincount(of_rows).tolist()] * 2
    alone = metrics.leave_blocks_out(torch.arange(64))
    assert torch.equal(metrics.anisotropy(moments, alone), metrics.anisotropy(moments, metrics.leave_one_out))


def test_contributions_sum_to_the_anisotropy(state: ConeState, pooled: Tensor) -> None:
    got = metrics.contributions(state.sentence)[0]
    assert float(got.sum()) == pytest.approx(mean_pair(pooled), rel=1e-12)
    u = unit(pooled)
    own = (u.sum(0).square() - u.square().sum(0)) / (len(u) * (len(u) - 1))
    torch.testing.assert_close(got, own, rtol=1e-12, atol=1e-15)


def test_spread_of_the_cosines(state: ConeState, pooled: Tensor) -> None:
    cosines = unit(pooled) @ unit(pooled).T
    pairs = cosines[~torch.eye(len(pooled), dtype=torch.bool)]
    assert float(metrics.cosine_variance(state.sentence)) == pytest.approx(float(pairs.var(correction=0)), rel=1e-10)


def test_norm_and_mean(state: ConeState, pooled: Tensor) -> None:
    assert float(metrics.mean_norm(state.sentence)) == pytest.approx(
        float(torch.linalg.vector_norm(pooled, dim=-1).mean()), rel=1e-14
    )
    torch.testing.assert_close(metrics.mean_vector(state.sentence)[0], pooled.mean(0), rtol=1e-13, atol=1e-15)


def test_covariance_and_explained_variance_as_scikit_learn_has_them(state: ConeState, pooled: Tensor) -> None:
    from sklearn.decomposition import PCA

    pca = PCA(3, svd_solver="full").fit(pooled.numpy())
    covariance = metrics.covariance(state.sentence)
    np.testing.assert_allclose(covariance[0].numpy(), np.cov(pooled.numpy().T), rtol=1e-10, atol=1e-13)
    values = torch.linalg.eigvalsh(covariance)[:, -3:].flip(-1)
    np.testing.assert_allclose(values[0].numpy(), pca.explained_variance_, rtol=1e-10)
    ratio = metrics.explained_variance_ratio(covariance, values)
    np.testing.assert_allclose(ratio[0].numpy(), pca.explained_variance_ratio_, rtol=1e-10)


def test_iso_score_as_its_authors_package_has_it(state: ConeState, pooled: Tensor) -> None:
    from IsoScore import IsoScore

    covariance = metrics.covariance(state.sentence)
    assert float(metrics.iso_score(covariance)) == pytest.approx(float(IsoScore.IsoScore(pooled.numpy())), rel=1e-6)


def test_participation_ratio_and_effective_rank_of_known_spectra() -> None:
    flat, single = torch.eye(7, dtype=torch.float64), torch.diag(torch.tensor([3.0, 0, 0, 0])).double()
    assert float(metrics.participation_ratio(flat)) == pytest.approx(7)
    assert float(metrics.effective_rank(flat)) == pytest.approx(7)
    assert float(metrics.iso_score(flat)) == pytest.approx(1)
    assert float(metrics.participation_ratio(single)) == pytest.approx(1)
    assert float(metrics.effective_rank(single)) == pytest.approx(1)
    assert float(metrics.iso_score(single)) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize(("n", "d", "rank"), [(1000, 96, 5), (60, 96, 5), (60, 96, 96), (40, 8, 8), (500, 96, 40)])
def test_rank_me_of_float32_rows_is_that_of_their_singular_values(n: int, d: int, rank: int) -> None:
    generator = np.random.default_rng(n + rank)
    rows = (
        generator.normal(size=(n, rank)) @ generator.normal(size=(rank, d))
        if rank < d
        else generator.normal(size=(n, d))
    )
    rows = (rows + 1).astype(np.float32) if rank == d else rows.astype(np.float32)
    moments = Moments.empty("sentence", [0], d, second_moment=True)
    moments.update(torch.from_numpy(rows))
    sigma = np.linalg.svd(rows.astype(np.float64), compute_uv=False)
    p = sigma / sigma.sum() + 1e-7  # min(n, d) of them
    assert float(metrics.rank_me(moments)) == pytest.approx(float(np.exp(-(p * np.log(p)).sum())), rel=3e-5)


def test_rank_me_is_garridos_equation_1(state: ConeState, pooled: Tensor) -> None:
    sigma = np.linalg.svd(pooled.numpy(), compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    assert float(metrics.rank_me(state.sentence)) == pytest.approx(float(np.exp(-(p * np.log(p)).sum())), rel=1e-7)


def test_undefined_is_nan_with_a_reason() -> None:
    one = Moments.empty("sentence", [4], 3, second_moment=True, unit_second_moment=True)
    one.update(torch.tensor([[1.0, 2, 3], [0, 0, 0], [torch.nan, 2, 3]]))
    for value in (
        metrics.anisotropy(one),
        metrics.anisotropy_stderr(one),
        metrics.cosine_variance(one),
        metrics.contributions(one).sum(-1),
        metrics.participation_ratio(metrics.covariance(one)),
    ):
        assert value.shape == (1,)
        assert bool(value.isnan())
    assert metrics.undefined_reason(one, 0) == "1 sentences used (2 left out as zero or not finite); a pair needs two"
    assert str(metrics.undefined_reason(one, 0, "captions")).startswith("1 captions used (2 left out")
    one.update(torch.ones(1, 3))
    assert metrics.undefined_reason(one, 0) is None
    tokens = Moments.empty("token", [0], 3)
    assert str(metrics.undefined_reason(tokens, 0)).startswith("0 tokens used (0 left out")
    for statistic in (metrics.within_sentence_cosine, metrics.between_sentence_cosine, metrics.predicted_anisotropy):
        assert bool(statistic(tokens).isnan())


def test_token_statistics_refuse_the_sentence_level(state: ConeState) -> None:
    with pytest.raises(ValueError, match="moments: got the sentence level"):
        metrics.within_sentence_cosine(state.sentence)


def test_the_geometry_of_one_row_is_not_defined() -> None:
    moments = Moments.empty("sentence", [0], 4, second_moment=True)
    moments.update(torch.ones(1, 4))
    covariance = metrics.covariance(moments)
    for metric in (metrics.participation_ratio, metrics.iso_score, metrics.effective_rank):
        assert bool(metric(covariance).isnan())
    both = torch.stack([covariance[0], torch.eye(4).double()])
    assert metrics.effective_rank(both)[1] == pytest.approx(4)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_what_is_defined_of_so_few_rows_has_its_value_and_the_rest_has_none(n: int) -> None:
    rows = normal(3, 4, dtype=torch.float64)[:n]
    moments = Moments.empty("sentence", [0], 4, second_moment=True, unit_second_moment=True)
    moments.update(rows)
    x, lengths = rows.numpy(), np.linalg.norm(rows.numpy(), axis=1)
    nothing = np.full(4, np.nan)
    wanted = {
        "mean_norm": lengths.mean() if n else np.nan,
        "mean_vector": x.mean(0) if n else nothing,
        "norm_deviation": lengths.std(ddof=1) if n > 1 else np.nan,
        "deviations": x.std(0, ddof=1) if n > 1 else nothing,
        "covariance": np.cov(x.T) if n > 1 else np.full((4, 4), np.nan),
        "anisotropy": mean_pair(rows) if n > 1 else np.nan,
        "contributions": (unit(rows).sum(0).square() - unit(rows).square().sum(0)).numpy() / (n * (n - 1))
        if n > 1
        else nothing,
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(getattr(metrics, name)(moments)[0], value, rtol=1e-9, atol=1e-12, err_msg=name)
    cosines = unit(rows) @ unit(rows).T
    pairs = cosines[~torch.eye(n, dtype=torch.bool)]
    spread = float(metrics.cosine_variance(moments))
    assert spread == pytest.approx(float(pairs.var(correction=0)), abs=1e-12) if n > 1 else math.isnan(spread)
    assert (metrics.geometry(moments) is None) == (n < 2)
    # The jackknife needs groups that leave pairs behind.
    assert math.isnan(float(metrics.anisotropy_stderr(moments))) == (n < 3)


def test_the_fewest_tokens_that_make_a_pair_within_and_between_sentences() -> None:
    hidden, mask = normal(3, 2, 4, dtype=torch.float64), torch.tensor([[1, 1], [1, 0], [1, 0]])
    cosine = torch.nn.functional.cosine_similarity
    pair, apart = cosine(hidden[0, 0], hidden[0, 1], dim=0), cosine(hidden[1, 0], hidden[2, 0], dim=0)
    averaged = cosine(unit(hidden[0]).sum(0), hidden[1, 0], dim=0)
    for sentences, within, between, predicted in (
        ([0], pair, None, None),
        ([1], None, None, None),
        ([1, 2], None, apart, None),  # nothing is averaged
        ([0, 1], pair, cosine(hidden[0], hidden[1, :1], dim=1).mean(), averaged),
    ):
        state = ConeState.empty([0], 4)
        state.update([hidden[sentences]], mask[sentences])
        for statistic, value in (
            (metrics.within_sentence_cosine, within),
            (metrics.between_sentence_cosine, between),
            (metrics.predicted_anisotropy, predicted),
        ):
            found = float(statistic(state.token))
            assert math.isnan(found) if value is None else found == pytest.approx(float(value), rel=1e-12)


def test_a_covariance_of_nothing_and_one_of_one_dimension_have_no_shape() -> None:
    nothing, single = torch.zeros(3, 3, dtype=torch.float64), torch.tensor([[2.0]], dtype=torch.float64)
    assert math.isnan(float(metrics.participation_ratio(nothing)))
    assert math.isnan(float(metrics.iso_score(single)))
    assert bool(metrics.explained_variance_ratio(nothing, torch.zeros(1, dtype=torch.float64)).isnan())
    assert float(metrics.participation_ratio(single)) == 1
    # 2 dimensions are the fewest that can be alike or not.
    assert float(metrics.iso_score(torch.eye(2, dtype=torch.float64))) == pytest.approx(1)


@pytest.mark.parametrize(("shape", "undefined"), [((30, 1, 9), "within"), ((1, 30, 300), "between")])
def test_what_rounding_leaves_is_no_mean_over_no_pair(shape: tuple[int, int, int], undefined: str) -> None:
    state = ConeState.empty([0], shape[-1])
    state.update([normal(*shape)], torch.ones(shape[:2]))
    found = metrics.first_order(state)
    assert {name for name in ("within", "between") if bool(found[name].isnan())} == {undefined}


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_shape_of_vectors_does_not_depend_on_their_unit(scale: float, state: ConeState, pooled: Tensor) -> None:
    moments = Moments.empty("sentence", [0], DIM, second_moment=True)
    moments.update(pooled * scale)
    found, wanted = metrics.geometry(moments), metrics.geometry(state.sentence)
    assert found is not None
    assert wanted is not None
    assert found.values == pytest.approx(wanted.values, rel=1e-9)


def test_a_geometry_shows_its_metrics_alone(state: ConeState) -> None:
    found = metrics.geometry(state.sentence)
    assert found is not None
    assert repr(found) == f"Geometry({', '.join(f'{name}={value!r}' for name, value in found.values.items())})"
