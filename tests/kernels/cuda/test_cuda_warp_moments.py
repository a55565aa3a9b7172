"""A warp takes whole rows: sums of three levels, parts that share groups, both levels in one call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cone_kernels.kernels import reference
from cone_kernels.kernels.cuda import moments as cuda_moments
from cone_kernels.sums import GROUPS, ROW_FIELDS, SENTENCE_FIELDS, TOKEN_FIELDS, zero_sums
from tests.ops.test_pool_moments import POOLED
from tests.support.moment_cases import RELATIVE, assert_sums_close, with_cancelling_sentences
from tests.support.simt_cuda import most_shared_memory, order_of_threads, simt_cuda  # noqa: F401 - one is a fixture

pytestmark = pytest.mark.usefixtures("simt_cuda")

Batch = tuple[list[Tensor], Tensor, Tensor]


class Copies(TorchDispatchMode):
    """Counts the copies that are made of tensors."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func is torch.ops.aten.clone.default
        return func(*args, **(kwargs or {}))


def batch_of(
    layers: int, sentences: int, tokens: int, d: int, dtype: torch.dtype, *, fewest: int = 0, seed: int = 0
) -> Batch:
    """Layers (B, T, d), a mask with `fewest` or more tokens of each sentence, from its end, and groups."""
    generator = torch.Generator().manual_seed(seed)
    hidden = [(torch.randn(sentences, tokens, d, generator=generator) + 0.3).to(dtype) for _ in range(layers)]
    sizes = torch.randint(fewest, tokens + 1, (sentences,), generator=generator)
    mask = (torch.arange(tokens) < sizes[:, None]).flip(1).contiguous()
    return hidden, mask, torch.randint(GROUPS, (sentences,), generator=generator)


def assert_both_levels_equal(batch: Batch, starts: Tensor | None = None) -> None:
    """One call gives what the reference gives of the tokens, and then of the pooled vectors."""
    hidden, mask, groups = batch
    of_tokens = None if starts is not None else mask
    layers, d = len(hidden), hidden[0].shape[-1]
    sums = [zero_sums(fields, layers, d) for fields in (TOKEN_FIELDS, SENTENCE_FIELDS)]
    wanted = [zero_sums(fields, layers, d) for fields in (TOKEN_FIELDS, SENTENCE_FIELDS)]
    made = cuda_moments.pool_and_row_moments(hidden, of_tokens, starts, groups, *sums)
    assert made is not None
    pooled, status, of_vectors = made
    exact, exact_status = reference.pool_moments([x.double() for x in hidden], of_tokens, starts, groups, wanted[0])
    empty = exact_status[0] == 4
    row_sums = {name: total for name, total in wanted[1].items() if name != "n_empty"}
    exact_vectors = reference.row_moments(pooled.double(), torch.where(empty, -1, groups), row_sums)
    wanted[1]["n_empty"] += torch.bincount(groups[empty], minlength=GROUPS)
    for got, right in zip(sums, wanted, strict=True):
        assert_sums_close(got, right, RELATIVE[hidden[0].dtype])
    assert torch.equal(status, exact_status)
    assert torch.equal(of_vectors, torch.where(empty, 4, exact_vectors))
    bound = POOLED[hidden[0].dtype]
    torch.testing.assert_close(pooled.double(), exact, rtol=bound, atol=bound, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("layers", "sentences", "tokens", "d"),
    [(2, 5, 7, 24), (3, 20, 12, 264), (2, 30, 20, 640), (2, 9, 70, 1024), (1, 300, 3, 64)],
)
def test_sentences_of_many_lengths(layers: int, sentences: int, tokens: int, d: int, dtype: torch.dtype) -> None:
    assert_both_levels_equal(batch_of(layers, sentences, tokens, d, dtype, seed=d))


@pytest.mark.parametrize(("layers", "sentences"), [(1, 2100), (3, 90)])
def test_the_sentence_level_is_cut_as_row_moments_cuts_rows(layers: int, sentences: int) -> None:
    """The rule is written in Python and in C++: where they cut alike, the sums have the same bits."""
    hidden, mask, groups = batch_of(layers, sentences, 4, 40, torch.bfloat16)
    tokens, of_one_call = (zero_sums(fields, layers, 40) for fields in (TOKEN_FIELDS, SENTENCE_FIELDS))
    made = cuda_moments.pool_and_row_moments(hidden, mask, None, groups, tokens, of_one_call)
    assert made is not None
    by_rows = zero_sums(ROW_FIELDS, layers, 40)
    cuda_moments.row_moments(made[0], torch.where(mask.any(1), groups, -1), by_rows)
    for name, total in by_rows.items():
        assert torch.equal(of_one_call[name], total), name


def test_packed_sentences() -> None:
    hidden, mask, groups = batch_of(2, 25, 40, 520, torch.bfloat16)
    starts = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
    assert_both_levels_equal(([x[mask] for x in hidden], mask, groups), starts)


@pytest.mark.parametrize(("sentences", "tokens"), [(0, 5), (4, 0)])
def test_a_batch_without_sentences_or_without_places_for_tokens(sentences: int, tokens: int) -> None:
    """torch gives such a mask no address, which must not be taken for that of packed tokens."""
    assert_both_levels_equal(batch_of(2, sentences, tokens, 24, torch.bfloat16))
    hidden, starts = [torch.ones(0, 24)] * 2, torch.zeros(sentences + 1, dtype=torch.int64)
    nothing = torch.zeros(sentences, 0, dtype=torch.bool)
    assert_both_levels_equal((hidden, nothing, torch.arange(sentences)), starts)


@pytest.mark.parametrize("layers", [129])
def test_more_layers_than_one_launch_takes(layers: int) -> None:
    assert_both_levels_equal(batch_of(layers, 12, 5, 24, torch.bfloat16))


def test_a_group_that_all_parts_share() -> None:
    hidden, mask, groups = batch_of(2, 90, 20, 64, torch.float32)
    assert_both_levels_equal((hidden, mask, torch.full_like(groups, 7)))


@pytest.mark.parametrize("tokens", [33, 64, 1100])
def test_sentences_longer_than_a_sum_of_float32(tokens: int) -> None:
    assert_both_levels_equal(batch_of(1, 4, tokens, 72, torch.bfloat16, fewest=tokens - 1))


@pytest.mark.parametrize("tokens", [6, 40])
def test_tokens_whose_squares_do_not_fit_float32(tokens: int) -> None:
    hidden, mask, groups = batch_of(2, 12, tokens, 264, torch.float32, fewest=tokens)
    hidden[0][0, 2], hidden[0][1, 0], hidden[0][1, 5] = 3e30, 1e-25, 0
    hidden[1][2, 1], hidden[1][3, :], hidden[1][4, 0, 3] = 1e-30, 1e25, torch.nan
    hidden[1][5, 3, 7], hidden[0][6, :] = torch.inf, 0
    assert_both_levels_equal((hidden, mask, groups))


@pytest.mark.parametrize("tokens", [2, 32, 34, 70])
def test_directions_of_short_and_long_sentences_that_take_turns(tokens: int) -> None:
    """Every third sentence has none; those of one group are more than a sum of float32 has terms."""
    hidden = with_cancelling_sentences(2, 100, tokens, 264)
    mask, groups = torch.ones(100, tokens, dtype=torch.bool), torch.zeros(100, dtype=torch.int64)
    mask[1::3, 2:] = False
    assert_both_levels_equal((list(hidden), mask, groups))


def test_bitwise_the_same_in_any_order_of_blocks_and_threads() -> None:
    hidden, mask, groups = batch_of(2, 40, 40, 264, torch.bfloat16)

    def bits() -> list[Tensor]:
        sums = [zero_sums(fields, 2, 264) for fields in (TOKEN_FIELDS, SENTENCE_FIELDS)]
        made = cuda_moments.pool_and_row_moments(hidden, mask, None, groups, *sums)
        assert made is not None
        return [*made, *sums[0].values(), *sums[1].values()]

    first = bits()
    for seed in (1, 2, 3):
        order_of_threads(seed)
        for got, wanted in zip(bits(), first, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("kilobytes", "fits"), [(163, True), (99, False)])
def test_blocks_are_smaller_where_shared_memory_is(kilobytes: int, fits: bool) -> None:
    """What a multiprocessor of sm_80 has holds five warps of 1024 columns; too few of them, and blocks take rows."""
    most_shared_memory(kilobytes << 10)
    batch = batch_of(2, 30, 12, 1024, torch.bfloat16)
    if fits:
        assert_both_levels_equal(batch)
    else:
        sums = [zero_sums(fields, 2, 1024) for fields in (TOKEN_FIELDS, SENTENCE_FIELDS)]
        assert cuda_moments.pool_and_row_moments(batch[0], batch[1], None, batch[2], *sums) is None


def test_rows_that_are_not_aligned_are_left_to_blocks() -> None:
    for d, cut in ((20, 20), (72, 66), (1032, 1032)):
        hidden = [torch.ones(2, 3, d)[..., :cut] for _ in range(2)]
        sums = [zero_sums(fields, 2, cut) for fields in (TOKEN_FIELDS, SENTENCE_FIELDS)]
        mask, groups = torch.ones(2, 3, dtype=torch.bool), torch.arange(2)
        assert cuda_moments.pool_and_row_moments(hidden, mask, None, groups, *sums) is None
        assert all(bool((total == 0).all()) for level in sums for total in level.values())


def test_layers_left_to_blocks_are_made_alike_once() -> None:
    hidden = [torch.randn(4, 3, 20), torch.randn(3, 4, 20).transpose(0, 1)]
    mask, groups = torch.ones(4, 3, dtype=torch.bool), torch.arange(4)
    with Copies() as copies:
        cuda_moments.pool_moments(hidden, mask, None, groups, zero_sums(TOKEN_FIELDS, 2, 20))
    assert copies.number == 1  # of the second layer; the first is contiguous


def test_a_second_batch_is_added_to_the_first() -> None:
    """Groups that one part has go straight to the sums, others by way of what parts leave."""
    hidden, mask, groups = batch_of(2, 60, 9, 40, torch.float32)
    once, twice = ([zero_sums(fields, 2, 40) for fields in (TOKEN_FIELDS, SENTENCE_FIELDS)] for _ in range(2))
    for sums in (once, twice, twice):
        cuda_moments.pool_and_row_moments(hidden, mask, None, groups, *sums)
    for one, two in zip(once, twice, strict=True):
        for name, total in one.items():
            assert torch.equal(two[name], 2 * total), name
