"""The CUDA kernels over raw pointers; kernels/cuda/ is the only caller and has checked what they get.

Tensors come as addresses, 0 for one that is not there; shapes and strides are in elements.
"""

from collections.abc import Mapping, Sequence

architectures: list[int]
runtime_version: int
scalars: int

class TopEigenvectors:
    def __init__(
        self,
        *,
        data: int,
        dtype: int,
        shape: tuple[int, int, int],
        strides: tuple[int, int, int],
        covariance: bool,
        center: bool,
        k: int,
        tolerance: float,
        max_iterations: int,
        start: int,
        block: int,
        results: Mapping[str, int],
        most_shared: int,
    ) -> None: ...
    def begin(self, *, workspace: int, queue: tuple[int, int]) -> None: ...
    def steps(self, count: int, *, queue: tuple[int, int]) -> None: ...
    def workspace(self) -> int: ...

def device_count() -> int: ...
def driver_version() -> int: ...
def list_items(*, group_of: int, items: int, groups: int, order: int, starts: int, queue: tuple[int, int]) -> None: ...
def list_tokens(
    *, mask: int, n_sentences: int, n_tokens: int, positions: int, sizes: int, queue: tuple[int, int]
) -> None: ...
def masked_mean_pool(
    *,
    layers: Sequence[int],
    dtype: int,
    n_sentences: int,
    n_tokens: int,
    d: int,
    strides: tuple[int, int, int],
    mask: int,
    cu_seqlens: int,
    lists: tuple[int, int, int],
    pooled: int,
    queue: tuple[int, int],
) -> None: ...
def masked_mean_pool_backward(
    *,
    layers: Sequence[int],
    dtype: int,
    n: int,
    d: int,
    row_stride: int,
    col_stride: int,
    result_dtype: int,
    n_tokens: int,
    mask: int,
    cu_seqlens: int,
    grad_hidden: int,
    queue: tuple[int, int],
) -> None: ...
def mean_pairwise_cosine(
    *,
    layers: Sequence[int],
    dtype: int,
    n: int,
    d: int,
    row_stride: int,
    col_stride: int,
    cosine: int,
    left_out: int,
    unit_sum: int,
    count: int,
    workspace: int,
    queue: tuple[int, int],
) -> None: ...
def mean_pairwise_cosine_backward(
    *,
    layers: Sequence[int],
    dtype: int,
    n: int,
    d: int,
    row_stride: int,
    col_stride: int,
    unit_sum: int,
    scale: int,
    grad_rows: int,
    queue: tuple[int, int],
) -> None: ...
def mean_pairwise_cosine_workspace(
    *, layers: Sequence[int], dtype: int, n: int, d: int, row_stride: int, col_stride: int, device: int
) -> int: ...
def most_shared_memory(device: int) -> int: ...
def pool_moment_slabs(
    *,
    layers: Sequence[int],
    dtype: int,
    n_sentences: int,
    n_tokens: int,
    d: int,
    strides: tuple[int, int, int],
    mask: int,
    cu_seqlens: int,
    device: int,
) -> int: ...
def pool_moments(
    *,
    layers: Sequence[int],
    dtype: int,
    n_sentences: int,
    n_tokens: int,
    d: int,
    strides: tuple[int, int, int],
    mask: int,
    cu_seqlens: int,
    lists: tuple[int, int, int],
    segments: tuple[int, int, int, int, int, int],
    pooled: int,
    mean_units: int,
    sums: Mapping[str, int],
    partials: tuple[int, int, int, int, int],
    status: int,
    queue: tuple[int, int],
) -> None: ...
def row_moment_slabs(
    *,
    layers: Sequence[int],
    dtype: int,
    n: int,
    d: int,
    row_stride: int,
    col_stride: int,
    sums: Mapping[str, int],
    device: int,
) -> int: ...
def row_moments(
    *,
    layers: Sequence[int],
    dtype: int,
    n: int,
    d: int,
    row_stride: int,
    col_stride: int,
    segments: tuple[int, int, int, int, int, int],
    sums: Mapping[str, int],
    partials: tuple[int, int, int, int, int],
    status: int,
    queue: tuple[int, int],
) -> None: ...
def second_moment(
    *,
    data: int,
    dtype: int,
    shape: tuple[int, int, int],
    strides: tuple[int, int, int],
    use: int,
    weights: int,
    pilot: int,
    about_pilot: bool,
    moment: int,
    workspace: int,
    most_shared: int,
    queue: tuple[int, int],
) -> None: ...
def second_moment_workspace(
    *, data: int, dtype: int, shape: tuple[int, int, int], strides: tuple[int, int, int], weights: int, pilot: int
) -> int: ...
def warp_moments(
    *,
    layers: Sequence[int],
    dtype: int,
    n_sentences: int,
    n_tokens: int,
    d: int,
    strides: tuple[int, int, int],
    mask: int,
    cu_seqlens: int,
    group_of: int,
    groups: int,
    pooled: int,
    sums: Mapping[str, int],
    status: int,
    pooled_sums: Mapping[str, int],
    pooled_status: int,
    workspace: int,
    queue: tuple[int, int],
) -> None: ...
def warp_moments_workspace(
    *,
    layers: Sequence[int],
    dtype: int,
    n_sentences: int,
    n_tokens: int,
    d: int,
    strides: tuple[int, int, int],
    mask: int,
    cu_seqlens: int,
    groups: int,
    both_levels: bool,
    device: int,
) -> int: ...
