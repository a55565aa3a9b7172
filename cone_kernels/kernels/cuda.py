"""The CUDA kernels: pointers, shapes and strides of GPU tensors handed to cone_kernels._cuda."""

from cone_kernels import _cuda
from cone_kernels.kernels.cuda_matrices import second_moment, top_eigenvectors

__all__ = ["_cuda", "second_moment", "top_eigenvectors"]
