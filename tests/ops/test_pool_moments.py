from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from cone_kernels import backends, masked_mean_pool, pool_moments, row_moments
from cone_kernels.ops import arguments
from cone_kernels.ops.pool_moments import PoolMoments, pool_moments_
from cone_kernels.sums import ROW_FIELDS, TOKEN_FIELDS, jackknife_groups, zero_sums
from tests.support.moment_cases import (
    DTYPES,
    RELATIVE,
    WIDTHS,
    assert_sums_close,
    normal,
    views,
    with_cancelling_sentences,
)

# One rounding to the output's dtype.
POOLED = {torch.float32: 3e-7, torch.bfloat16: 3e-7, torch.float16: 3e-7, torch.float64: 1e-14}


def ragged_mask(sentences: int, tokens: int, side: str = "right") -> Tensor:
    lengths = torch.randint(1, tokens + 1, (sentences,), generator=torch.Generator().manual_seed(sentences))
    mask = torch.arange(tokens) < lengths[:, None]
    return mask.flip(1) if side == "left" else mask


def scattered_mask(sentences: int, tokens: int) -> Tensor:
    return torch.rand(sentences, tokens, generator=torch.Generator().manual_seed(tokens)) < 0.5


def assert_same(got: object, wanted: object, dtype: torch.dtype) -> None:
    assert_sums_close(got.sums, wanted.sums, RELATIVE[dtype])  # type: ignore[attr-defined]
    assert torch.equal(got.status, wanted.status)  # type: ignore[attr-defined]
    torch.testing.assert_close(
        got.pooled,  # type: ignore[attr-defined]
        wanted.pooled,  # type: ignore[attr-defined]
        rtol=POOLED[dtype],
        atol=POOLED[dtype],
        equal_nan=True,
    )


# pytest runs the tests of one parameter of a module's fixture together: every instruction set finds what the first did.
@pytest.fixture(scope="module", params=DTYPES, ids=str)
def every_width(request: pytest.FixtureRequest) -> tuple[Tensor, list[tuple[Tensor, PoolMoments[Tensor]]]]:
    """A mask, and hidden states (2, 7, 9, d) of every width with what the reference makes of them."""
    mask, widths = ragged_mask(7, 9), []  # 38 tokens: the kernel adds up 32 in the compute type
    for d in WIDTHS:
        hidden = normal(2, 7, 9, d, dtype=request.param, seed=d)
        hidden[:, ~mask] = torch.nan  # what the mask leaves out is never used
        widths.append((hidden, pool_moments(hidden, mask, backend="reference")))
    return mask, widths


def test_equals_the_reference_at_every_width(
    isa: str, every_width: tuple[Tensor, list[tuple[Tensor, PoolMoments[Tensor]]]]
) -> None:
    mask, widths = every_width
    for hidden, wanted in widths:
        dtype = hidden.dtype
        assert_same(pool_moments(hidden, mask, backend="cpu"), wanted, dtype)
        pooled = masked_mean_pool(hidden, mask, backend="cpu")
        torch.testing.assert_close(pooled, wanted.pooled, rtol=POOLED[dtype], atol=POOLED[dtype])


@pytest.mark.parametrize("mask", [ragged_mask(20, 12, "left"), scattered_mask(20, 12), torch.zeros(20, 12).bool()])
def test_masks_of_any_form(isa: str, mask: Tensor) -> None:
    hidden = normal(20, 12, 40)
    wanted = pool_moments(hidden, mask, backend="reference")
    for same in (mask, mask.long(), mask.float(), mask.to(torch.uint8), mask.T.contiguous().T):
        assert_same(pool_moments(hidden, same, backend="cpu"), wanted, torch.float32)


def test_long_sentences_span_blocks(isa: str) -> None:
    mask = torch.ones(3, 700, dtype=torch.bool)
    mask[1, 130:] = False
    hidden = normal(3, 700, 100)
    got, wanted = (pool_moments(hidden, mask, backend=backend) for backend in ("cpu", "reference"))
    assert_same(got, wanted, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_equals_padded(isa: str, dtype: torch.dtype) -> None:
    mask = ragged_mask(17, 8)
    mask[4] = False
    hidden = normal(3, 17, 8, 50, dtype=dtype)
    starts = torch.cat([torch.zeros(1, dtype=torch.int32), mask.sum(1).cumsum(0).int()])
    got = pool_moments(hidden[:, mask], cu_seqlens=starts, backend="cpu")
    assert_same(got, pool_moments(hidden, mask, backend="reference"), dtype)
    pooled = masked_mean_pool(hidden[:, mask], cu_seqlens=starts)
    torch.testing.assert_close(pooled, got.pooled, rtol=POOLED[dtype], atol=POOLED[dtype], equal_nan=True)


def test_strides_are_honoured(isa: str) -> None:
    mask = ragged_mask(9, 14)
    hidden = normal(9, 14, 37)
    wanted = pool_moments(hidden, mask, backend="reference")
    for layout, view in views(hidden).items():
        assert torch.equal(view, hidden), layout
        assert_same(pool_moments(view, mask, backend="cpu"), wanted, torch.float32)
        pooled = masked_mean_pool(view, mask, backend="cpu")
        torch.testing.assert_close(pooled, wanted.pooled, rtol=3e-7, atol=3e-7, msg=layout)


def test_list_of_layers_of_unlike_strides() -> None:
    mask = ragged_mask(9, 14)
    hidden = normal(9, 14, 37)
    layers = list(views(hidden).values())
    got = pool_moments(layers, mask, backend="cpu")
    wanted = pool_moments(torch.stack(layers), mask, backend="reference")
    assert_same(got, wanted, torch.float32)


def test_token_sums_are_those_of_the_rows(isa: str) -> None:
    mask = ragged_mask(30, 7)
    hidden = normal(30, 7, 24)
    ids = torch.arange(30) * 5
    got = pool_moments(hidden, mask, sentence_ids=ids, backend="cpu")
    tokens_of = torch.arange(30).repeat_interleave(mask.sum(1))
    wanted = row_moments(hidden[mask], sentence_ids=ids[tokens_of], backend="reference")
    assert_sums_close({name: got.sums[name] for name in ROW_FIELDS}, wanted, 4e-7)


def test_tokens_left_out(isa: str) -> None:
    hidden, mask = normal(6, 5, 33), torch.ones(6, 5, dtype=torch.bool)
    hidden[1, 2] = 0
    hidden[2, 3, 7] = torch.inf
    hidden[3, 0, 1], hidden[3, 1] = torch.nan, 0
    mask[5] = False
    got, wanted = (pool_moments(hidden, mask, backend=backend) for backend in ("cpu", "reference"))
    assert got.status.tolist() == [0, 1, 2, 3, 0, 4]
    assert_same(got, wanted, torch.float32)
    assert bool(got.pooled[2, 7] == torch.inf)
    assert bool(got.pooled[5].isnan().all())
    assert int(got.sums["n_sentences"].sum()) == 5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [2, 6, 70])
def test_sentences_whose_unit_vectors_cancel_have_no_direction(isa: str, tokens: int, dtype: torch.dtype) -> None:
    hidden, mask = with_cancelling_sentences(2, 8, tokens, 24, dtype=dtype), torch.ones(8, tokens)
    got, wanted = (pool_moments(hidden, mask, backend=backend) for backend in ("cpu", "reference"))
    assert got.sums["n_cancelled"].sum(-1).tolist() == [3, 3]
    assert got.sums["n_sentences"].sum(-1).tolist() == [8, 8]
    assert_same(got, wanted, dtype)


@pytest.mark.parametrize("scale", [1e-30, 1e17, 3e37])
def test_extreme_tokens(isa: str, scale: float) -> None:
    hidden, mask = normal(6, 5, 33) * scale, ragged_mask(6, 5)
    got = pool_moments(hidden, mask, backend="cpu")
    wanted = pool_moments(hidden, mask, backend="reference")
    assert_sums_close(got.sums, wanted.sums, 4e-7)
    torch.testing.assert_close(got.pooled, wanted.pooled, rtol=3e-7, atol=3e-7 * scale)
    pooled = masked_mean_pool(hidden, mask, backend="cpu")
    torch.testing.assert_close(pooled, wanted.pooled, rtol=3e-7, atol=3e-7 * scale)


def test_a_float32_sum_that_overflows_has_a_mean() -> None:
    hidden = torch.full((1, 60, 4), 3e38)
    assert torch.equal(masked_mean_pool(hidden, torch.ones(1, 60)), torch.full((1, 4), 3e38))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_means_of_many_tokens_are_those_of_the_moments_to_the_bit(isa: str, dtype: torch.dtype) -> None:
    lengths = torch.tensor([1, 33, 2, 64, 31, 0, 97, 32, 65, 63, 3])  # 32 are added up in the compute type
    mask = torch.arange(100) < lengths[:, None]
    starts = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    for d in (5, 33, 130):
        hidden = normal(11, 100, d, dtype=dtype, seed=d)
        wanted = (hidden.double() * mask[:, :, None]).sum(1) / lengths[:, None]
        pooled = masked_mean_pool(hidden, mask, backend="cpu")
        torch.testing.assert_close(pooled.double(), wanted, rtol=POOLED[dtype], atol=POOLED[dtype], equal_nan=True)
        for other in (
            pool_moments(hidden, mask, backend="cpu").pooled,
            masked_mean_pool(hidden[mask], cu_seqlens=starts, backend="cpu"),
        ):
            torch.testing.assert_close(pooled, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("sentences", [0, 1, 2, 70])
def test_sentence_counts(isa: str, sentences: int) -> None:
    hidden, mask = normal(2, sentences, 4, 16), torch.ones(sentences, 4)
    got, wanted = (pool_moments(hidden, mask, backend=backend) for backend in ("cpu", "reference"))
    assert_same(got, wanted, torch.float32)
    assert masked_mean_pool(hidden, mask).shape == (2, sentences, 16)


def test_bitwise_the_same_with_any_number_of_threads(isa: str, threads: None) -> None:
    hidden, mask = normal(2, 300, 20, 96, dtype=torch.float16), ragged_mask(300, 20)
    results = []
    for count in (1, 2, 3, 1):
        torch.set_num_threads(count)
        results.append((pool_moments(hidden, mask, backend="cpu"), masked_mean_pool(hidden, mask, backend="cpu")))
    for (one, pooled), (other, other_pooled) in itertools.pairwise(results):
        assert torch.equal(pooled, other_pooled)
        assert torch.equal(one.pooled, other.pooled)
        assert all(torch.equal(one.sums[name], other.sums[name]) for name in one.sums)


def test_every_output_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    real_empty = torch.empty

    def poisoned(*args: object, **kwargs: object) -> Tensor:
        tensor = real_empty(*args, **kwargs)  # type: ignore[call-overload]
        return tensor.fill_(torch.nan) if tensor.dtype.is_floating_point else tensor.fill_(99)

    hidden, mask = normal(11, 6, 45), ragged_mask(11, 6)
    wanted = pool_moments(hidden, mask, backend="reference")
    monkeypatch.setattr(torch, "empty", poisoned)
    got = pool_moments(hidden, mask, backend="cpu")
    pooled = masked_mean_pool(hidden, mask, backend="cpu")
    monkeypatch.undo()
    assert_same(got, wanted, torch.float32)
    torch.testing.assert_close(pooled, wanted.pooled, rtol=3e-7, atol=3e-7)


def test_pooled_dtype() -> None:
    for dtype in DTYPES:
        wanted = torch.float64 if dtype == torch.float64 else torch.float32
        assert masked_mean_pool(normal(2, 3, 4, dtype=dtype), torch.ones(2, 3)).dtype == wanted


def test_pooling_equals_sentence_transformers() -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    hidden, mask = normal(8, 10, 32), ragged_mask(8, 10)
    theirs = Pooling(32, pooling_mode="mean")({"token_embeddings": hidden, "attention_mask": mask.long()})
    torch.testing.assert_close(masked_mean_pool(hidden, mask), theirs["sentence_embedding"], rtol=1e-6, atol=1e-6)


def test_numpy() -> None:
    hidden, mask = normal(3, 4, 5), ragged_mask(3, 4)
    pooled, sums, status = pool_moments(hidden.numpy(), mask.numpy())
    assert isinstance(pooled, np.ndarray)
    assert isinstance(sums["count"], np.ndarray)
    assert isinstance(status, np.ndarray)
    np.testing.assert_array_equal(masked_mean_pool(hidden.numpy(), mask.numpy()), masked_mean_pool(hidden, mask))


@pytest.mark.parametrize("layers", [1, 2])
def test_layers_of_arrays_give_arrays(layers: int) -> None:
    """Also where the mask is a tensor; and of tensors with an array as their mask there are tensors."""
    hidden, mask = normal(3, 4, 5), ragged_mask(3, 4)
    assert isinstance(pool_moments([hidden.numpy()] * layers, mask)[0], np.ndarray)
    assert isinstance(pool_moments([hidden] * layers, mask.numpy())[0], torch.Tensor)


def test_the_backend_asked_for_runs() -> None:
    hidden, mask = normal(3, 4, 5), torch.ones(3, 4)
    for backend in ("cpu", "reference"):
        with backends.record() as runs:
            pool_moments(hidden, mask, backend=backend)
            masked_mean_pool(hidden, mask, backend=backend)
        assert [op for op, _ in runs][:2] == ["pool_moments", "masked_mean_pool"]
        assert {str(name) for _, name in runs} == {backend}


def test_opcheck_of_packed_layers() -> None:
    """Layers with a mask, and the pooling of either form, are cases of test_ops_in_training.py."""
    layers, starts = [normal(12, 5), normal(12, 5, seed=1)], torch.tensor([0, 4, 8, 12])
    sums = list(zero_sums(TOKEN_FIELDS, 2, 5).values())
    arguments = (layers, None, starts, torch.arange(3), sums, "cpu")
    torch.library.opcheck(torch.ops.cone_kernels.pool_moments_.default, arguments)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.float32], ids=str
)
def test_a_mask_of_numbers_is_that_of_what_is_not_0(dtype: torch.dtype) -> None:
    hidden, flags = normal(4, 6, 9), ragged_mask(4, 6)
    wanted = masked_mean_pool(hidden, flags)
    for mask in (flags.to(dtype), flags.to(dtype).mT.contiguous().mT, flags.to(dtype).repeat(1, 2)[:, :6]):
        assert torch.equal(masked_mean_pool(hidden, mask), wanted)
    for wrong in (2, 3, 64, *(() if dtype == torch.uint8 else (-1, -2))):
        for beside, place in itertools.product((flags, torch.zeros_like(flags)), ((0, 0), (3, 5))):
            mask = beside.to(dtype)
            mask[place] = wrong
            with pytest.raises(ValueError, match=r"^mask: got values other than 0 and 1; it must have 1 for each"):
                masked_mean_pool(hidden, mask)
    assert masked_mean_pool(torch.zeros(0, 6, 9), torch.zeros(0, 6, dtype=dtype)).shape == (0, 9)


HIDDEN, MASK, STARTS = torch.zeros(2, 3, 4), torch.ones(2, 3), torch.tensor([0, 3])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"hidden_states": HIDDEN}, ValueError, "got neither"),
        ({"hidden_states": HIDDEN, "mask": MASK, "cu_seqlens": torch.tensor([0])}, ValueError, "got both"),
        ({"hidden_states": HIDDEN, "mask": torch.ones(2, 4)}, ValueError, r"mask: got shape \(2, 4\)"),
        ({"hidden_states": HIDDEN, "mask": MASK * 2}, ValueError, "mask: got values other than 0 and 1"),
        ({"hidden_states": HIDDEN, "mask": MASK * torch.nan}, ValueError, "mask: got values other than 0 and 1"),
        ({"hidden_states": HIDDEN.int(), "mask": MASK}, TypeError, "hidden_states: got dtype int32"),
        ({"hidden_states": HIDDEN[0], "mask": MASK}, ValueError, r"hidden_states: got shape \(3, 4\)"),
        ({"hidden_states": HIDDEN[0], "cu_seqlens": torch.tensor([0, 2])}, ValueError, "for 3 rows; it must rise"),
        ({"hidden_states": HIDDEN[0], "cu_seqlens": torch.tensor([0, 3, 2, 3])}, ValueError, "must rise from 0"),
        ({"hidden_states": HIDDEN[0], "cu_seqlens": torch.tensor([1, 3])}, ValueError, "must rise from 0"),
        ({"hidden_states": HIDDEN[0], "cu_seqlens": torch.tensor([0.0, 3.0])}, TypeError, "cu_seqlens: got dtype"),
        ({"hidden_states": HIDDEN[0], "cu_seqlens": STARTS[:0]}, ValueError, r"cu_seqlens: got shape \(0,\)"),
        ({"hidden_states": HIDDEN[0], "cu_seqlens": STARTS[None]}, ValueError, r"cu_seqlens: got shape \(1, 2\)"),
    ],
)
def test_errors_name_the_argument(arguments: dict[str, object], error: type[Exception], words: str) -> None:
    for op in (pool_moments, masked_mean_pool):
        with pytest.raises(error, match=words):
            op(**arguments)  # type: ignore[operator]


def test_layers_must_be_alike() -> None:
    with pytest.raises(ValueError, match=r"hidden_states\[1\]: got shape"):
        pool_moments([HIDDEN, torch.zeros(2, 3, 5)], MASK)
    with pytest.raises(ValueError, match=r"hidden_states\[1\]: got dtype"):
        pool_moments([HIDDEN, HIDDEN.double()], MASK)
    for nothing in ([], HIDDEN.new_zeros(0, 2, 3, 4)):
        with pytest.raises(ValueError, match="at least one layer"):
            pool_moments(nothing, MASK)


@pytest.mark.parametrize("starts", [[0], [0, 0], [0, 0, 0]])
def test_packed_tokens_may_be_none(starts: list[int]) -> None:
    pooled, sums, status = pool_moments(HIDDEN[0, :0], cu_seqlens=torch.tensor(starts))
    assert (pooled.shape, status.tolist()) == ((len(starts) - 1, 4), [4] * (len(starts) - 1))
    assert not any(bool(total.any()) for total in sums.values())
    assert masked_mean_pool(HIDDEN[0, :0], cu_seqlens=torch.tensor(starts)).shape == pooled.shape
    assert masked_mean_pool(HIDDEN.new_zeros(0, 2, 3, 4), MASK).shape == (0, 2, 4)


def test_compiles_whole() -> None:
    def both(hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return masked_mean_pool(hidden, mask), pool_moments(hidden, mask).sums["unit_sum"]

    hidden, mask = normal(3, 4, 5), torch.ones(3, 4, dtype=torch.bool)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(compiled(hidden, mask), both(hidden, mask), strict=True):
        assert torch.equal(got, wanted)


def test_the_state_form_checks_devices() -> None:
    layers, mask, groups = [torch.ones(3, 4, 2)], torch.ones(3, 4, dtype=torch.bool), torch.arange(3)
    sums = list(zero_sums(TOKEN_FIELDS, 1, 2).values())
    for name, given in {
        "groups": (mask, groups.to("meta"), sums),
        "mask": (mask.to("meta"), groups, sums),
        r"sums\[0\]": (mask, groups, [sums[0].to("meta"), *sums[1:]]),
    }.items():
        with pytest.raises(ValueError, match=f"{name}: got device meta; it must be on cpu, as the layers"):
            pool_moments_(layers, given[0], None, *given[1:])


def test_a_complex_mask_is_refused() -> None:
    with pytest.raises(TypeError, match="mask: got dtype complex64; it must be bool, or integers or floats"):
        masked_mean_pool(torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.complex64))


@pytest.mark.parametrize(("n", "where"), [(8192, "cpu"), (8193, "meta")])
def test_groups_of_many_sentences_are_made_where_the_rows_are(
    n: int, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of more than 64 KB to a GPU would be waited for."""
    made: list[str] = []
    monkeypatch.setattr(
        arguments, "jackknife_groups", lambda ids: made.append(ids.device.type) or jackknife_groups(ids)
    )
    groups = arguments.first_groups(n, torch.empty(1, device="meta"))
    assert made == [where]
    assert (groups.device.type, len(groups)) == ("meta", n)
