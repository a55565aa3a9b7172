"""The CUDA kernels: pointers, shapes and strides of GPU tensors handed to cone_kernels._cuda."""

from cone_kernels.kernels.cuda_matrices import second_moment

__all__ = ["second_moment"]
