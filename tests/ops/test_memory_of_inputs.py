"""Inputs whose memory is not what they say: right by the reference, or refused with the argument's name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import cone_kernels
from cone_kernels import (
    Centering,
    ConeState,
    isotropy_loss,
    masked_mean_pool,
    mean_pairwise_cosine,
    metrics,
    pool_moments,
    row_moments,
    second_moment,
    top_eigenvectors,
)
from cone_kernels.ops.arguments import as_tensor
from cone_kernels.ops.pool_moments import pool_moments_
from cone_kernels.ops.row_moments import row_moments_
from cone_kernels.sums import ROW_FIELDS, TOKEN_FIELDS, zero_sums
from tests.support.moment_cases import DTYPES, normal

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1], [0, 1, 0, 1]]).bool()
STARTS = torch.tensor([0, 3, 4, 12])
IDS = torch.tensor([400, 3, 77])


def flat(x: Any) -> Any:
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


# Each public op, of hidden states (3, 4, 6) or rows made of them and a backend: float64 values in one tensor.
OPS: dict[str, Callable[[Any, str], Tensor]] = {
    "mean_pairwise_cosine": lambda x, backend: mean_pairwise_cosine(flat(x), backend=backend),
    "masked_mean_pool": lambda x, backend: masked_mean_pool(x, MASK, backend=backend),
    "masked_mean_pool packed": lambda x, backend: masked_mean_pool(flat(x), cu_seqlens=STARTS, backend=backend),
    "row_moments": lambda x, backend: joined(row_moments(flat(x), sentence_ids=STARTS.repeat(3), backend=backend)),
    "pool_moments": lambda x, backend: joined(pool_moments(x, MASK, sentence_ids=IDS, backend=backend).sums),
    "pool_moments of a list": lambda x, backend: joined(pool_moments([x, x], MASK, backend=backend).sums),
    "second_moment": lambda x, backend: second_moment(flat(x), backend=backend),
    "second_moment centred": lambda x, backend: second_moment(flat(x), center=True, backend=backend),
    "top_eigenvectors": lambda x, backend: top_eigenvectors(flat(x), 2, backend=backend).values,
}


def alone(function: Callable[[Any, str], Tensor]) -> Callable[[Any], Tensor]:
    return lambda x: function(x, "auto")


# The same ops of the hidden states alone, as torch's transforms take functions.
PLAIN = {op: alone(function) for op, function in OPS.items()}


def joined(sums: dict[str, Any]) -> Tensor:
    return torch.cat([torch.as_tensor(total, device="cpu").double().flatten() for total in sums.values()])


def negated(x: Tensor) -> Tensor:
    """The same values, as a view that torch negates when it reads it."""
    view = torch.complex(torch.zeros(x.shape, dtype=x.dtype), -x).conj().imag
    assert view.is_neg()
    return view


def spread(x: Tensor) -> Tensor:
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan, dtype=x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


VIEWS: dict[str, Callable[[Tensor], Any]] = {
    "plain": lambda x: x,
    "every second column": spread,
    "transposed": lambda x: x.mT.contiguous().mT,
    "tokens before sentences": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "expanded": lambda x: x[:1].expand(x.shape),
    "array": lambda x: x.numpy(),
    "array upside down": lambda x: np.ascontiguousarray(x.numpy()[::-1])[::-1],
    "read-only array": lambda x: np.frombuffer(x.numpy().tobytes(), x.numpy().dtype).reshape(x.shape),
    "parameter": lambda x: torch.nn.Parameter(x),
    "made in inference mode": lambda x: torch.inference_mode()(lambda: x * 1)(),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_view_of_every_dtype_is_read_as_torch_reads_it(op: str, dtype: torch.dtype) -> None:
    x = normal(3, 4, 6, dtype=dtype)
    # torch has complex numbers of no 16-bit brain float, and so no negated view.
    views = VIEWS if dtype is torch.bfloat16 else VIEWS | {"negated": negated}
    for name, view in views.items():
        if "array" in name and dtype is torch.bfloat16:
            continue
        plain = x[:1].expand(x.shape).clone() if name == "expanded" else x
        wanted = OPS[op](plain.double(), "reference")
        got = torch.as_tensor(OPS[op](view(x), "cpu")).detach().double()
        assert torch.allclose(got, wanted, rtol=2e-6, atol=2e-6, equal_nan=True), name


@pytest.mark.parametrize("op", OPS)
def test_a_default_device_changes_nothing_for_tensors_of_another(op: str) -> None:
    x = normal(3, 4, 6)
    wanted = PLAIN[op](x)
    with torch.device("meta"):  # as torch.set_default_device does it
        got = PLAIN[op](x)
        state = ConeState.empty(layers=[0], dim=6, device="cpu", second_moment=True, poolings="cls")
        state.update([x], MASK)
        cosine = metrics.anisotropy(state.sentence)
    assert torch.equal(got, wanted)
    torch.testing.assert_close(cosine, mean_pairwise_cosine(masked_mean_pool(x, MASK))[None], rtol=1e-6, atol=1e-9)


# What has a gradient, of hidden states (3, 4, 6).
DIFFERENTIABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "mean_pairwise_cosine": lambda x: mean_pairwise_cosine(flat(x)),
    "masked_mean_pool": lambda x: masked_mean_pool(x, MASK).square().sum(),
    "masked_mean_pool packed": lambda x: masked_mean_pool(flat(x), cu_seqlens=STARTS).square().sum(),
    "isotropy_loss": lambda x: isotropy_loss(x, MASK),
    "isotropy_loss packed": lambda x: isotropy_loss(flat(x), cu_seqlens=STARTS),
    "isotropy_loss of vectors": lambda x: isotropy_loss(flat(x)),
    "isotropy_loss near zero": lambda x: isotropy_loss(
        flat(x) * torch.tensor([1e-13] + [1.0] * 11, device="cpu")[:, None]
    ),
}


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_a_default_device_changes_no_gradient_of_tensors_of_another(op: str) -> None:
    values, gradients = [], []
    for default in ("cpu", "meta"):
        x = normal(3, 4, 6).requires_grad_()
        with torch.device(default):
            value = DIFFERENTIABLE[op](x)
            value.backward()
        assert x.grad is not None
        values.append(value.detach())
        gradients.append(x.grad)
    assert torch.equal(*values)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("op", OPS)
def test_what_is_traced_is_computed_anew_for_other_values(op: str) -> None:
    x, other = normal(3, 4, 6), normal(3, 4, 6, seed=1)
    for mode in ("real", "fake", "symbolic"):
        traced = make_fx(PLAIN[op], tracing_mode=mode, _allow_non_fake_inputs=True)(x)
        assert torch.equal(traced(other), PLAIN[op](other)), mode
    with FlopCounterMode(display=False):
        assert torch.equal(PLAIN[op](x), PLAIN[op](x))


def test_ids_of_what_is_traced_are_no_constants_and_are_checked() -> None:
    def norms(x: Tensor, ids: Tensor) -> Tensor:
        return row_moments(x, sentence_ids=ids)["unit_sum"]

    x = normal(3, 6)
    traced = make_fx(norms)(x, IDS)
    assert torch.equal(traced(x, IDS.flip(0) + 900), norms(x, IDS.flip(0) + 900))
    with pytest.raises(RuntimeError, match="sentence_ids: it must be 0 or more"):
        traced(x, -IDS)


def test_tensors_without_values_have_the_shape_of_the_result() -> None:
    numbers = MASK.long()
    with FakeTensorMode() as mode:
        x, mask = mode.from_tensor(normal(3, 4, 6)), mode.from_tensor(numbers)
        assert masked_mean_pool(x, mask).shape == (3, 6)
        assert pool_moments(x, mask).sums["unit_sum"].shape == (64, 6)


class Exchanged:
    """An array of a library that torch does not know, as JAX's and CuPy's: it has `__dlpack__`."""

    def __init__(self, array: Any) -> None:
        self.array = np.asarray(array)

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class Converted:
    """What NumPy can make an array of, as tables of pandas: it has `__array__` and is no sequence of arrays."""

    def __init__(self, array: Any) -> None:
        self.array = np.asarray(array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.array


# Each public op of rows (12, 6), or of the same as packed hidden states, and of numbers beside them.
OF_ARRAYS: dict[str, Callable[[Any, Callable[[Any], Any]], Any]] = {
    "mean_pairwise_cosine": lambda x, given: mean_pairwise_cosine(x),
    "masked_mean_pool": lambda x, given: masked_mean_pool(x, cu_seqlens=given(STARTS)),
    "row_moments": lambda x, given: row_moments(x, sentence_ids=given(STARTS.repeat(3)))["unit_sum"],
    "pool_moments": lambda x, given: pool_moments(x, cu_seqlens=given(STARTS), sentence_ids=given(IDS)).pooled,
    "pool_moments of a list": lambda x, given: pool_moments([x, x], cu_seqlens=given(STARTS)).sums["unit_sum"],
    "second_moment": lambda x, given: second_moment(x, center=True),
    "top_eigenvectors": lambda x, given: top_eigenvectors(x, 2).values,
    "Centering": lambda x, given: Centering.fit(x)(x),
}


@pytest.mark.parametrize(("given", "result"), [(Exchanged, Tensor), (Converted, np.ndarray)])
@pytest.mark.parametrize("op", OF_ARRAYS)
def test_arrays_of_other_libraries_are_taken(op: str, given: Callable[[Any], Any], result: type) -> None:
    x = normal(12, 6)
    wanted = OF_ARRAYS[op](x, lambda numbers: numbers)
    got = OF_ARRAYS[op](given(x), given)
    assert type(got) is result
    assert torch.equal(torch.as_tensor(got), wanted)


def test_an_array_of_another_library_is_not_copied() -> None:
    array = normal(3, 6).numpy()
    for given in (Exchanged(array), Converted(array)):
        assert as_tensor("x", given).data_ptr() == array.ctypes.data


def test_a_mask_of_another_library_is_taken() -> None:
    x = normal(3, 4, 6)
    for mask in (Exchanged(MASK), Converted(MASK.long())):
        assert torch.equal(masked_mean_pool(x, mask), masked_mean_pool(x, MASK))


def test_tables_of_pandas() -> None:
    x = normal(5, 3)
    assert mean_pairwise_cosine(pandas.DataFrame(x.numpy())) == mean_pairwise_cosine(x)
    with pytest.raises(TypeError, match="x: got a NumPy array of dtype object; it must be of a dtype of torch"):
        mean_pairwise_cosine(pandas.DataFrame({"a": [1.0, 2.0], "b": ["a text", "another"]}))


def test_memory_that_cannot_be_exchanged_is_refused_by_name() -> None:
    class Kept(Exchanged):
        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("the memory is on another machine")

    said = r"^x: got Kept, which torch cannot read by __dlpack__ \(the memory is on another machine\); it must be a"
    with pytest.raises(TypeError, match=said):
        mean_pairwise_cosine(Kept(np.ones((3, 6))))


def traced_by_jit(op: str, x: Tensor) -> object:
    return torch.jit.trace(PLAIN[op], (x,), check_trace=False)


def with_a_tangent(op: str, x: Tensor) -> object:
    with forward_ad.dual_level():
        return PLAIN[op](forward_ad.make_dual(x, x))


# How a value is handed over, and what the refusal says that it got.
REFUSED: dict[str, tuple[Callable[[str, Tensor], object], str]] = {
    "grad": (lambda op, x: torch.func.grad(lambda x: PLAIN[op](x).sum())(x), "a tensor inside a transform"),
    "vmap": (lambda op, x: torch.func.vmap(PLAIN[op])(x[None]), "a tensor inside a transform"),
    "jvp": (lambda op, x: torch.func.jvp(PLAIN[op], (x,), (x,)), "a tensor inside a transform"),
    "functionalize": (lambda op, x: torch.func.functionalize(PLAIN[op])(x), "a tensor inside a transform"),
    "jit.trace": (traced_by_jit, "a tensor under torch.jit.trace"),
    "forward-mode AD": (with_a_tangent, "a tensor with a tangent"),
    "masked array": (lambda op, x: PLAIN[op](np.ma.masked_array(x.numpy(), x.numpy() < 0)), "a masked array"),
    "objects": (lambda op, x: PLAIN[op](x.numpy().astype(object)), "a NumPy array of dtype object"),
    "long doubles": (lambda op, x: PLAIN[op](x.numpy().astype(np.longdouble)), r"(a NumPy array of )?dtype float"),
    "records": (lambda op, x: PLAIN[op](np.zeros((3, 4, 6), [("a", "f4")])), "a NumPy array of dtype"),
    "texts": (lambda op, x: PLAIN[op](x.numpy().astype("U9")), "a NumPy array of dtype"),
    "quantized": (lambda op, x: PLAIN[op](quantized(x)), "dtype qint8"),
    "complex": (lambda op, x: PLAIN[op](x.to(torch.complex64)), "dtype complex64"),
    "eight bits": (lambda op, x: PLAIN[op](x.to(torch.float8_e4m3fn)), "dtype float8_e4m3fn"),
    "sparse": (lambda op, x: sparse(op, x), "layout torch.sparse_coo"),
}


def sparse(op: str, x: Tensor) -> object:
    if op.startswith("masked_mean_pool"):
        return masked_mean_pool(x.to_sparse(), MASK)
    if op.startswith("pool_moments"):
        return pool_moments([x.to_sparse()], MASK)
    return getattr(cone_kernels, op.split()[0])(flat(x).to_sparse())


def quantized(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("op", OPS)
def test_what_has_no_values_of_its_own_is_refused_by_name(op: str, case: str) -> None:
    hand_over, got = REFUSED[case]
    with pytest.raises(TypeError, match=rf"^(x|hidden_states(\[0\])?): got {got}.*; it must "):
        hand_over(op, normal(3, 4, 6))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nested_tensors_are_refused_with_the_way_round() -> None:
    x = normal(6, 5)
    parts = [x[:2], x[2:]]
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor(parts, layout=layout)
        with pytest.raises(TypeError, match="hidden_states: got a nested tensor; it must be a dense one: padded, or"):
            masked_mean_pool(nested, torch.ones(2, 4))
        with pytest.raises(TypeError, match="x: got a nested tensor"):
            mean_pairwise_cosine(nested)
    packed = masked_mean_pool(nested.values(), cu_seqlens=nested.offsets())
    torch.testing.assert_close(packed, torch.stack([part.mean(0) for part in parts]))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (MASK.to(torch.complex64), "dtype complex64"),
        (MASK.to_sparse(), "layout torch.sparse_coo"),
        (quantized(MASK.float() / 10), "dtype qint8"),
        (np.ma.masked_array(MASK.numpy(), MASK.numpy()), "a masked array"),
        (MASK.numpy().astype(object), "a NumPy array of dtype object"),
    ],
    ids=["complex", "sparse", "quantized", "masked", "objects"],
)
def test_masks_that_are_none_are_refused_by_name(mask: Any, got: str) -> None:
    with pytest.raises(TypeError, match=f"^mask: got {re.escape(got)}.*; it must be"):
        masked_mean_pool(normal(3, 4, 6), mask)


def test_a_tensor_whose_memory_was_freed_is_refused() -> None:
    for op in (mean_pairwise_cosine, isotropy_loss, lambda x: masked_mean_pool(x, cu_seqlens=torch.tensor([0, 5]))):
        x = normal(5, 6)
        x.untyped_storage().resize_(0)  # as FSDP does to the parameters that other ranks have
        with pytest.raises(ValueError, match=r"input: got a tensor of shape \(5, 6\) without memory; it must have its"):
            op(x)
    assert mean_pairwise_cosine(torch.empty(0, 6)).isnan()


@pytest.mark.parametrize(
    ("groups", "error", "got"),
    [
        (torch.zeros(3), TypeError, "dtype float32; it must be int64"),
        (torch.zeros(3, dtype=torch.int32), TypeError, "dtype int32; it must be int64"),
        (torch.zeros(2, dtype=torch.int64), ValueError, "shape (2,); it must be (3,), one for each"),
    ],
    ids=["floats", "short integers", "too few"],
)
def test_groups_that_kernels_would_read_past_are_refused(groups: Tensor, error: type[Exception], got: str) -> None:
    x = normal(3, 4, 6)
    with pytest.raises(error, match=re.escape(f"groups: got {got}")):
        pool_moments_([x], MASK, None, groups, list(zero_sums(TOKEN_FIELDS, 1, 6).values()))
    with pytest.raises(error, match=re.escape(f"groups: got {got}")):
        row_moments_(x[:, :1].reshape(1, 3, 6), groups, list(zero_sums(ROW_FIELDS, 1, 6).values()))


def test_the_loss_and_a_state_read_negated_views_with_their_sign() -> None:
    x = normal(3, 4, 6)
    assert torch.equal(isotropy_loss(negated(x), MASK), isotropy_loss(x, MASK))
    states = [ConeState.empty(layers=[0], dim=6, second_moment=True, poolings=["max", "cls"]) for _ in range(2)]
    for state, hidden in zip(states, (x, negated(x)), strict=True):
        state.update([hidden], MASK)
        state.sentence.update(hidden.flatten(0, 1))
    plain, of_views = (state.fingerprint() for state in states)
    assert of_views == plain
