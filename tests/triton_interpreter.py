"""Triton's interpreter as the tests use it: bfloat16 as GPUs have it, and less time for calls between kernels."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def faithful_interpreter() -> Iterator[None]:
    """Inside, conversions between float32 and bfloat16 are exact or rounded to nearest even, as GPUs do it.

    The interpreter itself truncates, and misreads subnormal numbers. NumPy is silent on overflows, as GPUs are. And
    functions that a kernel calls run in the language as the launch has patched it; the interpreter looks for what to
    patch at each of their calls, which takes more time than all else.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    convert, call = interpreter._convert_float, interpreter.InterpretedFunction.__call__

    def converted(values: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(np.array(values)).bfloat16().view(torch.int16).numpy().view(np.uint16)
        if (source, target) == (tl.bfloat16, tl.float32):
            return torch.from_numpy(np.array(values).view(np.int16)).view(torch.bfloat16).float().numpy()
        return convert(values, source, target, mode)

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        languages = [value for value in self.fn.__globals__.values() if inspect.ismodule(value)]
        if any(tl.core.is_builtin(language.load) for language in languages if language in (tl, tl.core)):
            return call(self, *args, **kwargs)
        return self.rewrite()(*args, **kwargs)

    interpreter._convert_float, interpreter.InterpretedFunction.__call__ = converted, called
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        interpreter._convert_float, interpreter.InterpretedFunction.__call__ = convert, call
