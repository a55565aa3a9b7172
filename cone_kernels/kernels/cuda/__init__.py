"""Backend `cuda`: hands addresses, shapes and strides of GPU tensors to the CUDA kernels in cone_kernels._cuda."""

from cone_kernels.kernels.cuda.matrices import second_moment, top_eigenvectors
from cone_kernels.kernels.cuda.moments import (
    masked_mean_pool,
    masked_mean_pool_backward,
    mean_pairwise_cosine,
    mean_pairwise_cosine_backward,
    pool_moments,
    row_moments,
)
from cone_kernels.kernels.cuda.moments import pool_and_row_moments as pool_and_row_moments

__all__ = [
    "masked_mean_pool",
    "masked_mean_pool_backward",
    "mean_pairwise_cosine",
    "mean_pairwise_cosine_backward",
    "pool_moments",
    "row_moments",
    "second_moment",
    "top_eigenvectors",
]
