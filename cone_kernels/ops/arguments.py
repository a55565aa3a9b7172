"""Checks of what users pass to ops. Every error names the argument, what it got and what it must be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.dlpack import from_dlpack
from typing_extensions import TypeIs

from cone_kernels.devices import has_no_values, is_captured, to_device
from cone_kernels.sums import GROUPS, jackknife_groups

ArrayLike = Tensor | np.ndarray[Any, Any]
# What goes in as a tensor comes out as one, and so with NumPy arrays.
Array = TypeVar("Array", Tensor, np.ndarray[Any, Any])
FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# None outside of the transforms of torch.func, and outside of torch.jit.trace.
_functorch_level = torch._C._functorch.maybe_current_level
_jit_trace = torch._C._get_tracing_state
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_compiling = torch.compiler.is_compiling


def as_tensor(name: str, value: object) -> Tensor:
    """A dense tensor of the caller's memory; NumPy arrays are wrapped, not copied (unless a stride is negative).

    So are arrays of other libraries that have `__dlpack__` (JAX, CuPy); of what has `__array__` alone (pandas, xarray)
    NumPy decides whether it is copied.
    """
    if isinstance(value, Tensor):
        if value.is_nested:
            raise TypeError(
                f"{name}: got a nested tensor; it must be a dense one: padded, or packed, nested.values() with "
                "cu_seqlens=nested.offsets()"
            )
        if value.layout != torch.strided:
            raise TypeError(f"{name}: got layout {value.layout}; it must be a dense (strided) tensor")
        return value
    if isinstance(value, np.ndarray):
        return _wrapped(name, value)
    if hasattr(value, "__dlpack__"):
        return _exchanged(name, value)
    if hasattr(value, "__array__"):
        return _wrapped(name, np.asarray(value))
    raise TypeError(
        f"{name}: got {type(value).__name__}; it must be a torch.Tensor or a numpy.ndarray, or have __dlpack__ or "
        "__array__"
    )


def is_array(value: object) -> TypeIs[ArrayLike]:
    """Whether `as_tensor` takes a value by its type: a sequence of arrays is none."""
    return isinstance(value, (Tensor, np.ndarray)) or hasattr(value, "__dlpack__") or hasattr(value, "__array__")


def _with_memory(name: str, tensor: Tensor) -> Tensor:
    """A tensor whose memory holds its values: itself, or a copy of a view that torch negates when it is read."""
    if _functorch_level() is not None:
        raise TypeError(
            f"{name}: got a tensor inside a transform of torch.func (grad, vmap, jvp); it must be outside of them: "
            "torch.autograd.grad has the gradient, and leading dimensions are taken as a batch"
        )
    if _jit_trace() is not None:
        raise TypeError(
            f"{name}: got a tensor under torch.jit.trace; it must be outside of it: torch.compile and torch.export "
            "take ops of cone_kernels"
        )
    if forward_ad.unpack_dual(tensor).tangent is not None:  # type: ignore[no-untyped-call]
        raise TypeError(
            f"{name}: got a tensor with a tangent of forward-mode AD; it must have none: ops have gradients in reverse "
            "mode alone"
        )
    return tensor.resolve_neg()


def _exchanged(name: str, value: Any) -> Tensor:
    try:
        return from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"{name}: got {type(value).__name__}, which torch cannot read by __dlpack__ ({error}); it must be a "
            "torch.Tensor or a numpy.ndarray"
        ) from None


def _wrapped(name: str, array: np.ndarray[Any, Any]) -> Tensor:
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: got a masked array; it must be a plain one: array.filled(numpy.nan), whose rows that are not "
            "finite are left out, or array.compressed()"
        )
    if not array.dtype.isnative:
        raise TypeError(f"{name}: got a NumPy array of byte order {array.dtype.byteorder}; it must be this machine's")
    if any(stride < 0 for stride in array.strides) or not array.flags.writeable:
        array = array.copy()
    try:
        return torch.from_numpy(array)
    except TypeError:
        raise TypeError(f"{name}: got a NumPy array of dtype {array.dtype}; it must be of a dtype of torch") from None


def float_tensor(name: str, value: ArrayLike, min_dims: int, shape: str) -> Tensor:
    """`value` as a tensor of a floating dtype that the kernels take, with at least `min_dims` dimensions."""
    tensor = as_tensor(name, value)
    # Nearly every tensor passes; to find that out must take no time beside a small op.
    if not _is_compiling() and (
        _functorch_level() is not None or _jit_trace() is not None or forward_ad._current_level >= 0 or tensor.is_neg()
    ):
        tensor = _with_memory(name, tensor)
    if tensor.dtype not in FLOAT_DTYPES:
        taken = ", ".join(map(dtype_name, FLOAT_DTYPES))
        raise TypeError(f"{name}: got dtype {dtype_name(tensor.dtype)}; it must be one of {taken}")
    if tensor.dim() < min_dims:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}; it must be {shape}")
    if tensor.shape[-1] == 0:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}; its last dimension must not be empty")
    if tensor.dtype == torch.float64 and tensor.device.type not in ("cpu", "meta"):
        taken = ", ".join(dtype_name(dtype) for dtype in FLOAT_DTYPES if dtype != torch.float64)
        raise TypeError(f"{name}: got dtype float64 on device {tensor.device}; it must be one of {taken} there")
    return tensor


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype without its module: float32."""
    return str(dtype).removeprefix("torch.")


def flatten_batch(x: Tensor, row_dims: int) -> Tensor:
    """(..., rows) as (L, rows), L the product of the batch dimensions; a copy only where no view can be had."""
    return x[None] if x.dim() == row_dims else x.flatten(0, -row_dims - 1)


def hidden_layers(name: str, value: ArrayLike | Sequence[ArrayLike], row_dims: int, shape: str) -> list[Tensor]:
    """Hidden states as a list of layers of `row_dims` dimensions, alike in shape, dtype, device and strides."""
    if is_array(value):
        return list(flatten_batch(float_tensor(name, value, row_dims, shape), row_dims).unbind(0))
    layers = [float_tensor(f"{name}[{i}]", layer, row_dims, shape) for i, layer in enumerate(value)]
    for i, layer in enumerate(layers):
        if layer.dim() != row_dims:
            raise ValueError(f"{name}[{i}]: got shape {tuple(layer.shape)}; each layer must be {shape}")
        for what in ("shape", "dtype", "device"):
            got, first = getattr(layer, what), getattr(layers[0], what)
            if got != first:
                raise ValueError(f"{name}[{i}]: got {what} {got}; it must be {first}, as in {name}[0]")
    if not layers:
        raise ValueError(f"{name}: got an empty sequence; it must have at least one layer")
    return layers


_INTEGERS = (torch.int64, torch.int32, torch.uint8)
_OTHER_VALUES = "values other than 0 and 1"
_ZERO_OR_ONE = "it must have 1 for each token that counts and 0 for all others"


def token_mask(name: str, value: ArrayLike, batch: int, tokens: int, device: torch.device) -> Tensor:
    """A mask (B, T) of bool or of integers or floats that are all 0 or 1, as contiguous bool."""
    mask = as_tensor(name, value)
    is_bool = mask.dtype == torch.bool
    if not is_bool and (mask.is_complex() or mask.is_quantized):
        raise TypeError(f"{name}: got dtype {dtype_name(mask.dtype)}; it must be bool, or integers or floats")
    if tuple(mask.shape) != (batch, tokens):
        raise ValueError(f"{name}: got shape {tuple(mask.shape)}; it must be (B, T) = {(batch, tokens)}")
    require_device(name, mask, device, "the hidden states")
    if is_bool:
        return mask.contiguous()
    if mask.dtype in _INTEGERS and read_is_free(mask) and differentiated_directly(mask):
        numbers = mask.numpy()  # what a tokenizer gives; NumPy takes some half of the time that torch does
        if np.bitwise_or.reduce(numbers, axis=None) not in (0, 1):
            raise ValueError(f"{name}: got {_OTHER_VALUES}; {_ZERO_OR_ONE}")
        return torch.from_numpy(numbers.astype(bool, order="C"))
    tokens_kept = mask.bool()
    require(
        (mask == tokens_kept).all(),  # false for NaN too
        name,
        lambda: _OTHER_VALUES,
        _ZERO_OR_ONE,
    )
    return tokens_kept.contiguous()


def sequence_starts(name: str, value: ArrayLike, rows: int) -> Tensor:
    """cu_seqlens (B + 1): starts at 0, ends at the number of rows, never falls; as contiguous int64 on the CPU."""
    starts = as_tensor(name, value)
    if starts.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: got dtype {dtype_name(starts.dtype)}; it must be int32 or int64")
    if starts.dim() != 1 or starts.numel() == 0:
        raise ValueError(f"{name}: got shape {tuple(starts.shape)}; it must be (B + 1,)")
    starts = starts.to(torch.int64).contiguous()
    require(
        (starts[0] == 0) & (starts[-1] == rows) & torch.all(starts.diff() >= 0),
        name,
        lambda: f"{starts.tolist()[:8]}... for {rows} rows",
        "it must rise from 0 to the number of rows",
    )
    return starts


def groups_of(name: str, ids: ArrayLike | None, n: int, device: torch.device) -> Tensor | None:
    """Jackknife groups (n,) of rows with these ids (index in the corpus); None stays None."""
    return None if ids is None else to_device(jackknife_groups(sentence_numbers(name, ids, n)), device)


_FEW_SENTENCES = 8192  # 64 KB of ids


def first_groups(n: int, like: Tensor) -> Tensor:
    """Jackknife groups (n,) of the sentences 0..n-1, on the device of `like`."""
    # Of few the host computes them in less time than a GPU takes for eight launches, and their copy is not waited for.
    # A graph must not copy from the host.
    on_device = traced(like) or is_captured(like) or n > _FEW_SENTENCES
    return to_device(jackknife_groups(torch.arange(n, device=like.device if on_device else "cpu")), like.device)


def sentence_numbers(name: str, ids: ArrayLike, n: int) -> Tensor:
    """The ids (n,) of sentences, their index in the corpus, as int64."""
    tensor = as_tensor(name, ids)
    if tensor.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: got dtype {dtype_name(tensor.dtype)}; it must be int32 or int64")
    if tuple(tensor.shape) != (n,):
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}; it must be ({n},), one id for each")
    if n > 0:
        require(tensor.min() >= 0, name, lambda: f"{int(tensor.min())}", "it must be 0 or more in each place")
    return tensor.long()


def given_groups(groups: ArrayLike, n: int) -> Tensor:
    """Jackknife groups (n,) that a caller gives, as int64 from 0 to 63."""
    numbers = sentence_numbers("groups", groups, n)
    if n > 0:
        require(numbers.max() < GROUPS, "groups", lambda: f"{int(numbers.max())}", f"it must be below {GROUPS}")
    return numbers


def require(holds: Tensor, name: str, got: Callable[[], str], must: str) -> None:
    """Raises a ValueError unless the scalar tensor `holds` is true; a RuntimeError in compiled code and CUDA graphs.

    There the check is a node of the graph, so that it costs neither a graph break nor a wait for the device.
    """
    if has_no_values(holds) or is_captured(holds):
        torch._assert_async(holds, f"{name}: {must}")
    elif not bool(holds):
        raise ValueError(f"{name}: got {got()}; {must}")


def require_integer(name: str, value: object) -> None:
    """Raises a TypeError unless the value is an integer; 2.0 is none."""
    if not isinstance(value, (Integral, torch.SymInt)):
        raise TypeError(f"{name}: got {value!r}; it must be an integer")


def require_device(name: str, tensor: Tensor, device: torch.device, other: str = "x") -> None:
    """Raises a ValueError unless the tensor is on `device`, as `other` is: kernels do not check addresses."""
    if tensor.device != device:
        raise ValueError(f"{name}: got device {tensor.device}; it must be on {device}, as {other}")


def require_groups(groups: Tensor, n: int, device: torch.device, other: str = "x") -> None:
    """Raises unless `groups` are n numbers that kernels can read: int64, contiguous, where `other` is.

    Raises:
        TypeError: another dtype.
        ValueError: another shape or device.
    """
    require_device("groups", groups, device, other)
    if groups.dtype != torch.int64:
        raise TypeError(f"groups: got dtype {dtype_name(groups.dtype)}; it must be int64")
    if groups.shape != (n,):
        raise ValueError(f"groups: got shape {tuple(groups.shape)}; it must be ({n},), one for each")


def read_is_free(tensor: Tensor) -> bool:
    """Whether the host can look at a value of `tensor` without waiting for a device."""
    return tensor.device.type == "cpu"


def traced(tensor: Tensor) -> bool:
    """Whether torch must see an op rather than run it: it has a gradient, or more than autograd looks on.

    Elsewhere an op is called directly, which spares the host some 100 µs a call.
    """
    return not differentiated_directly(tensor) or tensor.requires_grad


def differentiated_directly(tensor: Tensor) -> bool:
    """Whether an op may be a `torch.autograd.Function` of this call rather than one of torch.library.

    That spares the host some 250 µs for a forward and its backward. Not under torch.compile, make_fx or a counter of
    flops, and not for a tensor without memory.
    """
    # torch.compile traces this too, and can trace the first of these alone.
    return not _is_compiling() and type(tensor) is Tensor and not _dispatch_modes()


def like_input(result: Tensor, given: Any) -> Any:
    """`result` as a NumPy array where the caller passed NumPy's, or what has `__array__` alone; else as it is."""
    if isinstance(given, Tensor):
        return result
    if not is_array(given) and isinstance(given, Sequence):
        given = given[0]
    return result.numpy() if isinstance(given, np.ndarray) or not hasattr(given, "__dlpack__") else result
