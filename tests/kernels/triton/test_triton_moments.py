"""Triton's row_moments, pool_moments and masked_mean_pool against the reference, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cone_kernels import backends, masked_mean_pool, mean_pairwise_cosine, pool_moments, row_moments
from cone_kernels.kernels import segments
from cone_kernels.ops.row_moments import row_moments_
from cone_kernels.sums import COSINE_FIELDS, ROW_FIELDS, TOKEN_FIELDS, zero_sums
from tests.ops.test_pool_moments import POOLED, assert_same, ragged_mask, scattered_mask
from tests.support.moment_cases import RELATIVE, assert_sums_close, normal, views, with_cancelling_sentences
from tests.support.triton_interpreter import faithful_interpreter, guarded_memory

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WIDTHS = {
    torch.float32: [1, 2, 7, 33, 65, 384, 1000],
    torch.bfloat16: [3, 16, 64, 129, 384],
    torch.float16: [1, 9, 127, 768],
}
WIDER_THAN_REGISTERS = 2056


@pytest.fixture(autouse=True)
def interpreter() -> Iterator[None]:
    with faithful_interpreter():
        yield


def assert_rows_equal(x: Tensor, sentence_ids: Tensor | None = None) -> dict[str, Tensor]:
    sums = row_moments(x, sentence_ids=sentence_ids, backend="triton")
    assert_sums_close(sums, row_moments(x, sentence_ids=sentence_ids, backend="reference"), RELATIVE[x.dtype])
    return sums


def assert_pooling_equal(
    hidden: Tensor | list[Tensor], mask: Tensor | None = None, starts: Tensor | None = None, scale: float = 1
) -> None:
    got, wanted = (
        pool_moments(hidden, mask, cu_seqlens=starts, backend=backend) for backend in ("triton", "reference")
    )
    dtype = hidden.dtype if isinstance(hidden, Tensor) else hidden[0].dtype
    assert_sums_close(got.sums, wanted.sums, RELATIVE[dtype])
    assert torch.equal(got.status, wanted.status)
    pooled = [got.pooled]
    if isinstance(hidden, Tensor):
        pooled.append(masked_mean_pool(hidden, mask, cu_seqlens=starts, backend="triton"))
    for mean in pooled:
        bound = POOLED[dtype]
        torch.testing.assert_close(mean, wanted.pooled, rtol=bound, atol=bound * scale, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference_at_every_width(dtype: torch.dtype) -> None:
    mask = ragged_mask(4, 6)
    for d in WIDTHS[dtype]:
        assert_rows_equal(normal(9, d, dtype=dtype, seed=d), torch.arange(9) % 3)
        hidden = normal(4, 6, d, dtype=dtype, seed=d)
        hidden[~mask] = torch.nan  # what the mask leaves out is never used
        assert_pooling_equal(hidden, mask)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_wider_than_the_registers(dtype: torch.dtype) -> None:
    x = normal(7, WIDER_THAN_REGISTERS, dtype=dtype)
    x[1], x[2, 2055], x[3, 7] = 0, torch.nan, torch.inf
    x[4] *= 2.0**-14 if dtype == torch.float16 else 1e-30
    assert_rows_equal(x)
    hidden, mask = normal(3, 5, WIDER_THAN_REGISTERS, dtype=dtype), scattered_mask(3, 5)
    hidden[~mask] = torch.nan
    mask[0] = True
    hidden[0] = x[:5]
    assert_pooling_equal(hidden, mask)


def test_strides_are_honoured_aligned_or_not() -> None:
    x, mask = normal(2, 5, 24), ragged_mask(2, 5)
    layouts = views(x)
    for shift in (0, 1, 2):  # in elements: from a 16-byte boundary, and not
        memory = torch.full((x.numel() + 4,), torch.nan)
        layouts[f"shifted by {shift}"] = memory[shift : shift + x.numel()].view(x.shape).copy_(x)
    for layout, view in layouts.items():
        assert torch.equal(view, x), layout
        sums = row_moments(view, backend="triton")
        assert_sums_close(sums, row_moments(x, backend="reference"), 4e-7)
        assert_pooling_equal(view, mask)
    assert_rows_equal(normal(1, 1, 19).expand(2, 9, 19))


def test_layers_of_unlike_strides_or_far_apart() -> None:
    x, mask = normal(2, 6, 24), ragged_mask(2, 6)
    unlike = list(views(x).values())
    apart = [normal(2, 6, 24, seed=seed) for seed in (1, 2, 3)]
    shifted = [torch.zeros(300)[1:289].view(2, 6, 24).copy_(x), x.clone(), apart[0]]
    for layers in (unlike, [apart[2], apart[0], apart[1]], shifted, list(torch.stack(apart).flip(0).unbind(0))):
        assert_pooling_equal(layers, mask)


@pytest.mark.parametrize("form", ["left", "scattered", "none", "long"])
def test_masks_of_any_form(form: str) -> None:
    masks = {
        "left": ragged_mask(5, 9, "left"),
        "scattered": scattered_mask(5, 9),
        "none": torch.zeros(5, 9).bool(),
        "long": scattered_mask(1, 600) & (torch.arange(600) > 150),
    }
    mask = masks[form]
    hidden = normal(*mask.shape, 21)
    hidden[~mask] = torch.nan
    assert_pooling_equal(hidden, mask)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_sentences(dtype: torch.dtype) -> None:
    starts = torch.tensor([0, 4, 4, 5, 16], dtype=torch.int32)
    assert_pooling_equal(normal(2, 16, 50, dtype=dtype), starts=starts)


@pytest.mark.parametrize("scale", [1e-30, 1e17, 3e37])
def test_extreme_rows(scale: float) -> None:
    hidden, mask = normal(6, 5, 33) * scale, ragged_mask(6, 5)
    assert_pooling_equal(hidden, mask, scale=scale)
    x = hidden.flatten(0, 1)
    x[::3] = normal(10, 33, seed=1)
    assert_rows_equal(x)
    assert_rows_equal(x.bfloat16())


def test_a_tile_s_bit_beyond_the_first_word() -> None:
    x = normal(600, 3)
    x[[5, 299, 599]] *= 1e30
    x[300] = 0
    assert_pooling_equal(x[None], torch.ones(1, 600))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_left_out(dtype: torch.dtype) -> None:
    hidden, mask = normal(6, 5, 33, dtype=dtype), torch.ones(6, 5, dtype=torch.bool)
    hidden[1, 2] = 0
    hidden[2, 3, 7] = torch.inf
    hidden[3, 0, 1], hidden[3, 1] = torch.nan, 0
    mask[5] = False
    assert_pooling_equal(hidden, mask)
    assert pool_moments(hidden, mask, backend="triton").status.tolist() == [0, 1, 2, 3, 0, 4]
    sums = assert_rows_equal(hidden.flatten(0, 1))
    assert sums["n_zero"].nonzero().flatten().tolist() == [7, 16]
    assert sums["n_nonfinite"].nonzero().flatten().tolist() == [13, 15]


@pytest.mark.parametrize(("d", "tokens"), [(30, 6), (2056, 2)])
def test_sentences_whose_unit_vectors_cancel_have_no_direction(d: int, tokens: int) -> None:
    hidden = with_cancelling_sentences(2, 8, tokens, d)
    assert_pooling_equal(hidden, torch.ones(8, tokens))
    got = pool_moments(hidden, torch.ones(8, tokens), backend="triton")
    assert got.sums["n_cancelled"].sum(-1).tolist() == [3, 3]


def test_float32_sums_that_overflow_have_a_mean() -> None:
    hidden = torch.full((1, 60, 4), 3e38)
    assert torch.equal(masked_mean_pool(hidden, torch.ones(1, 60), backend="triton"), torch.full((1, 4), 3e38))


def test_status_and_rows_passed_over() -> None:
    x = normal(1, 6, 8)
    x[0, 1] = 0
    x[0, 4, 2] = torch.nan
    sums, wanted = zero_sums(ROW_FIELDS, 1, 8), zero_sums(ROW_FIELDS, 1, 8)
    groups = torch.tensor([0, 1, -1, 3, 4, 5])
    status = row_moments_(x, groups, list(sums.values()), "triton")
    row_moments_(x, groups, list(wanted.values()), "reference")
    assert status.tolist() == [[0, 1, 0, 0, 2, 0]]
    assert_sums_close(sums, wanted, 4e-7)


@pytest.mark.parametrize("n", [0, 1, 2, 70])
def test_row_and_sentence_counts(n: int) -> None:
    assert_rows_equal(normal(2, n, 5))
    assert_pooling_equal(normal(n, 3, 5), torch.ones(n, 3))
    cosine, wanted = (mean_pairwise_cosine(normal(n, 5), backend=backend) for backend in ("triton", "reference"))
    torch.testing.assert_close(cosine, wanted, rtol=1e-6, atol=1e-7, equal_nan=True)


def test_no_layer_and_no_token() -> None:
    assert row_moments(torch.empty(0, 5, 4), backend="triton")["unit_sum"].shape == (0, 64, 4)
    assert_pooling_equal(torch.empty(2, 3, 0, 4), torch.empty(3, 0))


@pytest.mark.parametrize(("parts", "slices"), [(4, 1), (8, 2), (64, 16)])
def test_parts_of_groups_and_groups_cut_into_slices(parts: int, slices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_LEAST_ROWS", 1)
    monkeypatch.setattr(segments, "_PARTS", parts)
    cut = segments.Segments.of(torch.zeros(90, dtype=torch.int64), 90, 4, 1, 90)
    assert (cut.parts, cut.slices) == (parts, slices)
    x = normal(1, 90, 12)
    for groups in (None, torch.arange(90).mul(7) % 5 - 1):
        sums, wanted = (zero_sums(ROW_FIELDS, 1, 12, groups=4) for _ in range(2))
        row_moments_(x, groups, list(sums.values()), "triton")
        row_moments_(x, groups, list(wanted.values()), "reference")
        assert_sums_close(sums, wanted, 4e-7)
    monkeypatch.setattr(segments, "_PARTS", 128 if slices > 1 else 16)
    assert_pooling_equal(x.view(30, 3, 12), ragged_mask(30, 3))


def test_only_the_fields_of_the_cosine_of_one_group() -> None:
    x = normal(2, 50, 21)
    sums, wanted = (zero_sums(COSINE_FIELDS, 2, 21, groups=1) for _ in range(2))
    row_moments_(x, None, list(sums.values()), "triton")
    row_moments_(x, None, list(wanted.values()), "reference")
    assert_sums_close(sums, wanted, 4e-7)


def test_adds_to_what_is_there() -> None:
    hidden, mask = normal(2, 4, 3, 12), ragged_mask(4, 3)
    sums = zero_sums(TOKEN_FIELDS, 2, 12)
    for total in sums.values():
        total += 1000 + torch.arange(total.numel()).view(total.shape).to(total.dtype)
    before = {name: total.clone() for name, total in sums.items()}
    backends.kernel("pool_moments", "triton")(list(hidden), mask, None, torch.arange(4), sums)
    wanted = pool_moments(hidden, mask, backend="reference").sums
    assert_sums_close({name: total - before[name] for name, total in sums.items()}, wanted, 4e-7)


def test_bitwise_the_same_run_to_run() -> None:
    hidden, mask = normal(2, 8, 5, 40, dtype=torch.float16), ragged_mask(8, 5)
    one, other = (pool_moments(hidden, mask, backend="triton") for _ in range(2))
    assert torch.equal(one.pooled, other.pooled)
    assert all(torch.equal(one.sums[name], other.sums[name]) for name in one.sums)


def test_every_output_is_written_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for d in (45, WIDER_THAN_REGISTERS):
        hidden, mask = normal(4, 6, d), ragged_mask(4, 6)
        mask[1] = False
        wanted, rows = pool_moments(hidden, mask, backend="reference"), row_moments(hidden[0], backend="reference")
        with monkeypatch.context() as patched, guarded_memory():
            patched.setattr(segments, "_PARTS", 128 if d == 45 else 2)
            patched.setattr(segments, "_LEAST_ROWS", 1)
            got = pool_moments(hidden, mask, backend="triton")
            pooled = masked_mean_pool(hidden, mask, backend="triton")
            got_rows = row_moments(hidden[0], backend="triton")
        assert_same(got, wanted, torch.float32)
        assert_sums_close(got_rows, rows, 4e-7)
        torch.testing.assert_close(pooled, wanted.pooled, rtol=3e-7, atol=3e-7, equal_nan=True)


def test_float64_is_refused_by_name() -> None:
    with pytest.raises(
        TypeError, match="x: got dtype float64; it must be one of float32, bfloat16, float16 for backend triton"
    ):
        row_moments(normal(3, 4, dtype=torch.float64), backend="triton")
    for op in (pool_moments, masked_mean_pool):
        with pytest.raises(TypeError, match="hidden_states: got dtype float64; it must be one of float32"):
            op(normal(3, 4, 5, dtype=torch.float64), torch.ones(3, 4), backend="triton")


def test_the_backend_asked_for_runs() -> None:
    hidden, mask = normal(2, 3, 5), torch.ones(2, 3)
    with backends.record() as runs:
        row_moments(hidden[0], backend="triton")
        pool_moments(hidden, mask, backend="triton")
        masked_mean_pool(hidden, mask, backend="triton")
    triton = backends.Backend.TRITON
    assert runs == [("row_moments", triton), ("pool_moments", triton), ("masked_mean_pool", triton)]


def test_opcheck() -> None:
    layers, mask = [normal(2, 3, 5), normal(2, 3, 5, seed=1)], torch.ones(2, 3).bool()
    sums = list(zero_sums(TOKEN_FIELDS, 2, 5, groups=1).values())
    ops, groups = torch.ops.cone_kernels, torch.zeros(2, dtype=torch.int64)
    torch.library.opcheck(ops.pool_moments_.default, (layers, mask, None, groups, sums, "triton"))
    torch.library.opcheck(ops.masked_mean_pool.default, (layers[0], mask, None, "triton"))
    sums = list(zero_sums(ROW_FIELDS, 2, 5, groups=1).values())
    torch.library.opcheck(ops.row_moments_.default, (normal(2, 3, 5), None, sums, "triton"))
