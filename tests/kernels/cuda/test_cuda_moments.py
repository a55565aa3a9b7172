"""The CUDA kernels of row_moments, pool_moments and masked_mean_pool against the reference, run on the CPU."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from cone_kernels import backends, masked_mean_pool, mean_pairwise_cosine, pool_moments, row_moments
from cone_kernels.kernels import segments
from cone_kernels.kernels.cuda import moments as cuda_moments
from cone_kernels.ops.row_moments import row_moments_
from cone_kernels.sums import COSINE_FIELDS, ROW_FIELDS, TOKEN_FIELDS, zero_sums
from tests.ops.test_pool_moments import POOLED, assert_same, ragged_mask, scattered_mask
from tests.support.moment_cases import RELATIVE, assert_sums_close, normal, views, with_cancelling_sentences
from tests.support.simt_cuda import order_of_threads, simt_cuda  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("simt_cuda")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# One warp and several, aligned and not, the widest that is read once, and wider: in slabs.
WIDTHS = [*range(1, 18), 31, 33, 64, 65, 127, 128, 130, 256, 257, 384, 1000, 1024]
WIDE = [2056, 2057, 3000, 4096, 4104]


def assert_rows_equal(x: Tensor, sentence_ids: Tensor | None = None) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = row_moments(x, sentence_ids=sentence_ids, backend="cuda")
    assert_sums_close(sums, row_moments(x, sentence_ids=sentence_ids, backend="reference"), RELATIVE[x.dtype])
    return sums


def assert_pooling_equal(
    hidden: Tensor | list[Tensor],
    mask: Tensor | None = None,
    starts: Tensor | None = None,
    ids: Tensor | None = None,
    scale: float = 1,
) -> None:
    got, wanted = (
        pool_moments(hidden, mask, cu_seqlens=starts, sentence_ids=ids, backend=backend)
        for backend in ("cuda", "reference")
    )
    dtype = hidden.dtype if isinstance(hidden, Tensor) else hidden[0].dtype
    assert_sums_close(got.sums, wanted.sums, RELATIVE[dtype])
    assert torch.equal(got.status, wanted.status)
    pooled = [got.pooled]
    if isinstance(hidden, Tensor):
        pooled.append(masked_mean_pool(hidden, mask, cu_seqlens=starts, backend="cuda"))
    for mean in pooled:
        bound = POOLED[dtype]
        torch.testing.assert_close(mean, wanted.pooled, rtol=bound, atol=bound * scale, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference_at_every_width(dtype: torch.dtype) -> None:
    mask = ragged_mask(5, 11)
    for d in WIDTHS:
        assert_rows_equal(normal(2, 77, d, dtype=dtype, seed=d))
        hidden = normal(2, 5, 11, d, dtype=dtype, seed=d)
        hidden[:, ~mask] = torch.nan  # what the mask leaves out is never used
        assert_pooling_equal(hidden, mask)


@pytest.mark.parametrize("d", WIDE)
def test_wide_rows(d: int) -> None:
    for dtype in DTYPES:
        x = normal(1, 6, d, dtype=dtype)
        x[0, 1], x[0, 2, d - 1], x[0, 3] = 0, torch.nan, x[0, 3] / 300
        assert_rows_equal(x)
        mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
        assert_pooling_equal(x.reshape(2, 3, d), mask)
        assert_pooling_equal(x[0], starts=torch.tensor([0, 2, 2, 6]))


def test_more_columns_than_are_added_side_by_side() -> None:
    x = normal(1, 4, 16417)
    assert_rows_equal(x)
    assert_pooling_equal(x, torch.ones(1, 4))


def test_strides_are_honoured() -> None:
    x, mask = normal(3, 50, 40), ragged_mask(5, 10)
    for layout, view in views(x).items():
        assert torch.equal(view, x), layout
        assert_rows_equal(view)
        assert_pooling_equal(view.unflatten(1, (5, 10)), mask)
    assert_rows_equal(x.bfloat16()[:, :, 1:])  # rows that start 2 bytes off
    assert_rows_equal(x[:, 1:, :32])  # rows further apart than they are wide
    assert_rows_equal(normal(1, 1, 19).expand(2, 70, 19))


def test_list_of_layers_of_unlike_strides() -> None:
    mask = ragged_mask(5, 10)
    assert_pooling_equal(list(views(normal(5, 10, 40)).values()), mask)


def test_more_layers_than_one_launch_takes() -> None:
    x = normal(130, 3, 8)
    assert_rows_equal(x)
    assert_pooling_equal(x[:, None], torch.ones(1, 3))


@pytest.mark.parametrize("n", [0, 1, 2, 63, 65, 500])
def test_row_counts(n: int) -> None:
    assert int(assert_rows_equal(normal(n, 33))["count"].sum()) == n


def test_nothing_at_all() -> None:
    assert row_moments(torch.empty(0, 5, 4), backend="cuda")["unit_sum"].shape == (0, 64, 4)
    got = pool_moments(torch.empty(2, 0, 3, 4), torch.empty(0, 3), backend="cuda")
    assert got.pooled.shape == (2, 0, 4)
    assert_pooling_equal(torch.empty(2, 3, 0, 4), torch.empty(3, 0))
    assert_pooling_equal(torch.empty(0, 4), starts=torch.tensor([0, 0]))


@pytest.mark.parametrize("parts", [1, 2, 64, 256])
def test_parts_and_slices(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_LEAST_ROWS", 1)
    monkeypatch.setattr(segments, "_PARTS", parts)
    x, ids = normal(600, 24, seed=3), torch.randint(0, 10**9, (600,), generator=torch.Generator().manual_seed(4))
    assert_rows_equal(x)
    assert_rows_equal(x, ids)
    # Few sentences, and all in one group: most slices have none.
    assert_pooling_equal(x.unflatten(0, (100, 6)), scattered_mask(100, 6), ids=ids[:100])
    assert_pooling_equal(x.unflatten(0, (10, 60)), ragged_mask(10, 60), ids=torch.full((10,), 5))


def test_groups_and_rows_passed_over() -> None:
    x = normal(2, 300, 21)
    x[0, 7], x[1, 9, 4] = 0, torch.nan
    groups = torch.randint(-1, 5, (300,), generator=torch.Generator().manual_seed(1))
    for count, of in ((64, groups), (5, groups), (1, None), (1, groups.clamp(max=0)), (3, None), (2, groups * 0 - 1)):
        for fields in (ROW_FIELDS, COSINE_FIELDS):
            got, wanted = (zero_sums(fields, 2, 21, groups=count) for _ in range(2))
            status = row_moments_(x, of, list(got.values()), "cuda")
            assert torch.equal(status, row_moments_(x, of, list(wanted.values()), "reference"))
            assert_sums_close(got, wanted, 4e-7)


def test_the_cosine_of_all_rows() -> None:
    x = normal(2, 300, 40)
    torch.testing.assert_close(
        mean_pairwise_cosine(x, backend="cuda"), mean_pairwise_cosine(x, backend="reference"), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [70, 264])
def test_rows_left_out_are_counted_in_their_group(dtype: torch.dtype, d: int) -> None:
    x = normal(300, d, dtype=dtype)
    x[3], x[290] = 0, 0  # both in group 3
    x[5, d - 1], x[6, 0], x[7, 33] = torch.nan, torch.inf, -torch.inf
    sums = assert_rows_equal(x)
    assert sums["n_zero"].nonzero().flatten().tolist() == [3]
    assert sums["n_nonfinite"].nonzero().flatten().tolist() == [5, 6, 7]
    assert int(sums["count"].sum()) == 295


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-12, 1e15, 1e17, 3e37])
def test_extreme_rows_keep_their_direction(dtype: torch.dtype, scale: float) -> None:
    for d in (40, 300):
        x = (normal(90, d, dtype=torch.float64) * scale).to(dtype)
        x[::3] = normal(30, d, dtype=dtype, seed=1)
        assert int(assert_rows_equal(x)["count"].sum()) == 90


def test_float16_at_its_largest_and_smallest() -> None:
    assert_rows_equal(torch.full((10, 50), 65504.0, dtype=torch.float16))
    assert_rows_equal(torch.full((10, 50), 6e-8, dtype=torch.float16))


@pytest.mark.parametrize("mask", [ragged_mask(8, 40, "left"), scattered_mask(8, 40), torch.zeros(8, 40).bool()])
def test_masks_of_any_form(mask: Tensor) -> None:
    hidden = normal(2, 8, 40, 24)
    hidden[:, ~mask] = torch.nan
    for same in (mask, mask.long(), mask.T.contiguous().T):
        assert_pooling_equal(hidden, same)


def test_long_sentences() -> None:
    mask = torch.ones(3, 200, dtype=torch.bool)
    mask[1, 130:] = False
    mask[2, 1:199] = False
    assert_pooling_equal(normal(3, 200, 264), mask)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_equals_padded(dtype: torch.dtype) -> None:
    mask = ragged_mask(17, 8)
    mask[4] = False
    hidden = normal(3, 17, 8, 50, dtype=dtype)
    starts = torch.cat([torch.zeros(1, dtype=torch.int32), mask.sum(1).cumsum(0).int()])
    got = pool_moments(hidden[:, mask], cu_seqlens=starts, backend="cuda")
    assert_same(got, pool_moments(hidden, mask, backend="reference"), dtype)
    assert_pooling_equal(hidden[:, mask], starts=starts)


@pytest.mark.parametrize("d", [30, 256, 2056, 4104])
@pytest.mark.parametrize("tokens", [2, 6, 70])
def test_sentences_whose_unit_vectors_cancel_have_no_direction(d: int, tokens: int) -> None:
    hidden = with_cancelling_sentences(2, 8, tokens, d)
    assert_pooling_equal(hidden, torch.ones(8, tokens))
    got = pool_moments(hidden, torch.ones(8, tokens), backend="cuda")
    assert got.sums["n_cancelled"].sum(-1).tolist() == [3, 3]


def test_tokens_left_out() -> None:
    for d in (33, 264):
        hidden, mask = normal(6, 5, d), torch.ones(6, 5, dtype=torch.bool)
        hidden[1, 2] = 0
        hidden[2, 3, 7] = torch.inf
        hidden[3, 0, 1], hidden[3, 1] = torch.nan, 0
        hidden[4] = 0
        mask[5] = False
        assert pool_moments(hidden, mask, backend="cuda").status.tolist() == [0, 1, 2, 3, 1, 4]
        assert_pooling_equal(hidden, mask)


@pytest.mark.parametrize("scale", [1e-30, 1e17, 3e37])
def test_extreme_tokens(scale: float) -> None:
    hidden, mask = normal(6, 5, 40), ragged_mask(6, 5)
    assert_pooling_equal(hidden * scale, mask, scale=scale)
    hidden[1::2] *= scale
    hidden[2, 3] *= scale  # one among tokens that are not
    assert_pooling_equal(hidden, mask, scale=max(scale, 1))


def test_a_float32_sum_that_overflows_has_a_mean() -> None:
    hidden, mask = torch.full((1, 60, 8), 3e38), torch.ones(1, 60)
    assert torch.equal(masked_mean_pool(hidden, mask, backend="cuda"), torch.full((1, 8), 3e38))
    assert torch.equal(pool_moments(hidden, mask, backend="cuda").pooled, torch.full((1, 8), 3e38))


def test_adds_to_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_LEAST_ROWS", 1)  # slices, which add by another way
    sums, wanted = zero_sums(ROW_FIELDS, 1, 16), zero_sums(ROW_FIELDS, 1, 16)
    for rows in (normal(500, 16), normal(70, 16, seed=1)):
        for found, backend in ((sums, "cuda"), (wanted, "reference")):
            row_moments_(rows[None], None, list(found.values()), backend)
    assert_sums_close(sums, wanted, 4e-7)


def test_every_output_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    real_empty = torch.empty

    def poisoned(*args: object, **kwargs: object) -> Tensor:
        tensor = real_empty(*args, **kwargs)  # type: ignore[call-overload]
        return tensor.fill_(torch.nan) if tensor.dtype.is_floating_point else tensor.fill_(99)

    monkeypatch.setattr(segments, "_LEAST_ROWS", 1)
    hidden, mask = normal(2, 11, 6, 45), ragged_mask(11, 6)
    mask[3] = False
    monkeypatch.setattr(torch, "empty", poisoned)
    assert_pooling_equal(hidden, mask)
    assert_pooling_equal(hidden[..., :40].contiguous(), mask)
    assert_rows_equal(hidden[:, :, 0])
    assert_rows_equal(normal(2, 5, 2056))


@pytest.mark.parametrize("d", [37, 264])
def test_bitwise_the_same_in_any_order_of_blocks_and_threads(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_LEAST_ROWS", 1)
    hidden, mask = normal(2, 30, 7, d, dtype=torch.bfloat16), scattered_mask(30, 7)
    hidden[0, 2, 0], hidden[1, 5, 3] = 1e-30, 0
    results = []
    for order in (0, 1, 7, 0):
        order_of_threads(order)
        moments = pool_moments(hidden, mask, backend="cuda")
        rows = row_moments(hidden.flatten(1, 2), backend="cuda")
        results.append([moments.pooled, *moments.sums.values(), *rows.values()])
        results[-1].append(masked_mean_pool(hidden, mask, backend="cuda"))
    for one, other in itertools.pairwise(results):
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, other, strict=True))


def test_the_backend_asked_for_runs() -> None:
    hidden, mask = normal(3, 4, 5), torch.ones(3, 4)
    with backends.record() as runs:
        row_moments(hidden, backend="cuda")
        pool_moments(hidden, mask, backend="cuda")
        masked_mean_pool(hidden, mask, backend="cuda")
    assert runs == [(op, backends.Backend.CUDA) for op in ("row_moments", "pool_moments", "masked_mean_pool")]


def test_float64_is_refused() -> None:
    hidden, mask = normal(3, 4, 5, dtype=torch.float64), torch.ones(3, 4)
    with pytest.raises(
        TypeError, match="x: got dtype float64; it must be one of float32, bfloat16, float16 for backend cuda"
    ):
        row_moments(hidden, backend="cuda")
    for op in (pool_moments, masked_mean_pool):
        with pytest.raises(TypeError, match="hidden_states: got dtype float64"):
            op(hidden, mask, backend="cuda")


@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(packed: bool) -> None:
    layers = [normal(12, 5), normal(12, 5, seed=1)] if packed else [normal(3, 4, 5), normal(3, 4, 5, seed=1)]
    mask, starts = (None, torch.tensor([0, 4, 8, 12])) if packed else (torch.ones(3, 4).bool(), None)
    sums = list(zero_sums(TOKEN_FIELDS, 2, 5).values())
    arguments = (layers, mask, starts, torch.arange(3), sums, "cuda")
    torch.library.opcheck(torch.ops.cone_kernels.pool_moments_.default, arguments)
    torch.library.opcheck(torch.ops.cone_kernels.masked_mean_pool.default, (layers[0], mask, starts, "cuda"))
    groups = None if packed else torch.arange(9) % 64
    sums = list(zero_sums(ROW_FIELDS if packed else COSINE_FIELDS, 2, 5).values())
    torch.library.opcheck(torch.ops.cone_kernels.row_moments_.default, (normal(2, 9, 5), groups, sums, "cuda"))


@pytest.mark.parametrize("items", [0, 1, 31, 32, 33, 255, 256, 257, 3000])
@pytest.mark.parametrize("groups", [1, 3, 64])
def test_items_are_listed_by_group_in_one_launch(items: int, groups: int) -> None:
    """As torch's stable sort does it, but for the room before the first group, which nobody reads."""
    group_of = torch.randint(-1, groups, (items,), generator=torch.Generator().manual_seed(items))
    for order in (0, 1, 5):
        order_of_threads(order)
        got, starts = cuda_moments._items_by_group(group_of, groups)
        wanted, wanted_starts = segments._sorted_by_group(group_of, groups)
        assert torch.equal(starts, wanted_starts)
        assert torch.equal(got[starts[0] :], wanted[starts[0] :])
