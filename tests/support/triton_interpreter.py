"""Triton's interpreter as the tests use it: bfloat16 and grids as GPUs have them, less time for what kernels do not do,
and memory that shows what is read before it is written, or written beyond its ends."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

# What a GPU takes as x, y and z of a grid.
_MOST_PROGRAMS = (2**31 - 1, 65535, 65535)
_MARGIN = 64 << 10  # bytes, more than a program stores at once
_CANARY = 0xFF  # of floats a NaN


@contextmanager
def faithful_interpreter() -> Iterator[None]:
    """Inside, conversions between float32 and bfloat16 are exact or rounded to nearest even, as GPUs do it.

    The interpreter itself truncates, and misreads subnormal numbers. NumPy is silent on overflows, as GPUs are; grids
    that GPUs refuse are refused. And functions that a kernel calls run in the language as the launch has patched it;
    the interpreter looks for what to patch at each of their calls, and asks of every whole-number operation whether it
    overflows without heeding the answer, which together take more time than all else. float16 matrices are multiplied
    as float32, to the same products, and by one thread: far faster.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    convert, call = interpreter._convert_float, interpreter.InterpretedFunction.__call__
    execute, builder = interpreter.GridExecutor.__call__, interpreter.interpreter_builder
    options, dot = builder.options, interpreter.InterpreterBuilder.create_dot

    def converted(values: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(np.array(values)).bfloat16().view(torch.int16).numpy().view(np.uint16)
        if (source, target) == (tl.bfloat16, tl.float32):
            return torch.from_numpy(np.array(values).view(np.int16)).view(torch.bfloat16).float().numpy()
        return convert(values, source, target, mode)

    @functools.cache
    def languages(module: str) -> list[Any]:
        named = vars(sys.modules[module]).values()
        return [value for value in named if inspect.ismodule(value) and value in (tl, tl.core)]

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(tl.core.is_builtin(language.load) for language in languages(self.fn.__module__)):
            return call(self, *args, **kwargs)
        return self.rewrite()(*args, **kwargs)

    def executed(self: Any, *args: Any, **kwargs: Any) -> Any:
        assert_launchable(self.grid)
        return execute(self, *args, **kwargs)

    interpreter._convert_float, interpreter.InterpretedFunction.__call__ = converted, called

    def multiplied(self: Any, a: Any, b: Any, d: Any, *how: Any) -> Any:
        if a.data.dtype == b.data.dtype == np.float16 and d.data.dtype == np.float32:
            product = np.matmul(a.data.astype(np.float32), b.data.astype(np.float32)) + d.data
            return interpreter.TensorHandle(product, d.dtype.scalar)
        return dot(self, a, b, d, *how)

    interpreter.GridExecutor.__call__, interpreter.InterpreterBuilder.create_dot = executed, multiplied
    builder.options = dataclasses.replace(options, sanitize_overflow=False)
    try:
        with np.errstate(all="ignore"), threadpool_limits(1, user_api="blas"), types_made_once():
            yield
    finally:
        interpreter._convert_float, interpreter.InterpretedFunction.__call__ = convert, call
        interpreter.GridExecutor.__call__, interpreter.InterpreterBuilder.create_dot = execute, dot
        builder.options = options


@contextmanager
def types_made_once() -> Iterator[None]:
    """Inside, the type of a block, and what a tensor has of its type, are made once, not anew for each operation.

    Nor is it asked again what two operands of one type, or one and a number, are converted to. That and the comparison
    of shapes entry by entry take half of the interpreter's time; what it computes stays.
    """
    from triton.language import core
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    make_block_type, make_tensor = core.block_type.__init__, core.tensor.__init__
    numpy_dtype, broadcast = interpreter._get_np_dtype, TritonSemantic.broadcast_impl_value
    checked = TritonSemantic.binary_op_type_checking_impl
    made: dict[tuple[int, ...], dict[str, Any]] = {}
    numpy_dtypes: dict[str, Any] = {}

    def shape_and_size(of: Any) -> tuple[Any, Any]:
        tensor = object.__new__(core.tensor)
        make_tensor(tensor, None, of)
        return tensor.shape, tensor.numel

    scalar = shape_and_size(core.int32)

    def block_type(self: Any, element_type: Any, shape: Any) -> None:
        sizes = tuple(getattr(size, "value", size) for size in shape)
        key = (id(element_type), *sizes)  # of an object that `made` keeps
        if key not in made:
            make_block_type(self, element_type, shape)
            self.sizes, self.of_tensors = sizes, shape_and_size(self)
            made[key] = vars(self)
        vars(self).update(made[key])

    def tensor(self: Any, handle: Any, of: Any) -> None:
        self.handle, self.type, self.dtype = handle, of, of.scalar
        self.shape, self.numel = of.of_tensors if of.is_block() else scalar

    def numpy_dtype_of(dtype: Any) -> Any:
        if dtype.name not in numpy_dtypes:
            numpy_dtypes[dtype.name] = numpy_dtype(dtype)
        return numpy_dtypes[dtype.name]

    def of_one_shape(self: Any, a: Any, b: Any) -> Any:
        a_is_block, b_is_block = a.type.is_block(), b.type.is_block()
        if a_is_block == b_is_block and (not a_is_block or a.type.sizes == b.type.sizes):
            return a, b
        if a.dtype is b.dtype and a_is_block != b_is_block:
            return (a, filled(a, b)) if a_is_block else (filled(b, a), b)
        return broadcast(self, a, b)

    def filled(block: Any, value: Any) -> Any:
        data = np.full(block.type.sizes, value.handle.data[0], value.handle.data.dtype)
        return core.tensor(interpreter.TensorHandle(data, value.handle.dtype), block.type)

    kept = {dtype.name for dtype in (core.float32, core.float64, core.int32, core.int64)}
    constants: dict[tuple[Any, ...], Any] = {}

    def of_one_type(self: Any, a: Any, b: Any, *pointers: bool, **options: bool) -> Any:
        a_is_tensor, b_is_tensor = type(a) is core.tensor, type(b) is core.tensor
        if a_is_tensor and b_is_tensor:
            if a.dtype is not b.dtype or a.dtype.name not in kept:
                return checked(self, a, b, *pointers, **options)
            return of_one_shape(self, a, b)
        if a_is_tensor or b_is_tensor:
            dtype, number = (a.dtype, b) if a_is_tensor else (b.dtype, a)
            converted = len(pointers) < 3 and options.get("arithmetic_check", True)
            if converted and dtype.name in kept and type(number) is (float if dtype.is_floating() else int):
                key = (dtype.name, number, math.copysign(1, number))
                if key not in constants:
                    _, constants[key] = checked(self, self.scalar_constant(0, dtype), number, *pointers, **options)
                return of_one_shape(self, *((a, constants[key]) if a_is_tensor else (constants[key], b)))
        return checked(self, a, b, *pointers, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(core.block_type, "__init__", block_type)
        patched.setattr(core.tensor, "__init__", tensor)
        patched.setattr(interpreter, "_get_np_dtype", numpy_dtype_of)
        patched.setattr(TritonSemantic, "broadcast_impl_value", of_one_shape)
        patched.setattr(TritonSemantic, "binary_op_type_checking_impl", of_one_type)
        patched.setattr(TritonSemantic, "computation_type_impl", functools.cache(TritonSemantic.computation_type_impl))
        yield


def assert_launchable(grid: tuple[int, ...]) -> None:
    """That a GPU takes the grid."""
    assert all(0 < size <= most for size, most in zip(grid, _MOST_PROGRAMS, strict=False)), grid


@contextmanager
def guarded_memory() -> Iterator[None]:
    """Inside, what torch.empty hands out is NaN, and must at the end be untouched beyond its ends; so for torch.zeros.

    Memory of a GPU is NaN alone.
    """
    real = {"empty": torch.empty, "zeros": torch.zeros}
    handed_out: list[np.ndarray] = []

    def guarded(name: str) -> Callable[..., Tensor]:
        def allocated(*args: Any, **kwargs: Any) -> Tensor:
            tensor: Tensor = real[name](*args, **kwargs)
            if type(tensor) is not Tensor or tensor.device.type != "cpu":
                return tensor.fill_(torch.nan) if name == "empty" and tensor.is_floating_point() else tensor
            size = tensor.numel() * tensor.element_size()
            memory = np.full(size + 2 * _MARGIN, _CANARY, np.uint8)
            handed_out.append(memory)
            inside = torch.from_numpy(memory[_MARGIN : _MARGIN + size]).view(tensor.dtype).view(tensor.shape)
            return inside.zero_() if name == "zeros" else inside

        return allocated

    with pytest.MonkeyPatch.context() as patched:
        for name in real:
            patched.setattr(torch, name, guarded(name))
        yield
    for memory in handed_out:
        assert bool((memory[:_MARGIN] == _CANARY).all()), "written before its beginning"
        assert bool((memory[-_MARGIN:] == _CANARY).all()), "written beyond its end"
