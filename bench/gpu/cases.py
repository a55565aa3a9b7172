"""What the GPU benchmark measures: each op at the sizes of its targets, with a check of the whole result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from bench import naive
from bench.generated import BERT_LARGE
from bench.gpu import exact
from bench.gpu.timing import GPU, MEGABYTES
from cone_kernels import ConeProbe, ConeState, masked_mean_pool, mean_pairwise_cosine, pool_moments, top_eigenvectors
from cone_kernels.ops.masked_mean_pool import pool_gradient
from cone_kernels.ops.mean_pairwise_cosine import cosine_gradient
from cone_kernels.ops.second_moment import second_moment_
from cone_kernels.state.sentence_batch import SentenceBatch
from cone_kernels.sums import GROUPS, jackknife_groups

LAYERS, WIDTH, TOKENS = 25, 1024, 32
SENTENCES = 1024  # of the probed forward, of 16 tokens each
# Of the copy's rate, where all that is read is megabytes.
READING = {262: {"share_of_copy": 0.85}, 2147: {"share_of_copy": 0.95}}
PRODUCTS = [(4096, 1024), (65_536, 1024), (16_384, 4096)]

Run = Callable[[], object]


@dataclass
class Measurement:
    """A call of each backend, what it is compared with, and the work that it cannot do without."""

    case: str
    ours: Callable[[str], Run]
    """The call by a backend."""
    error: Callable[[str], float]
    """The largest error that a backend makes, relative unless said; see `most`."""
    most: float
    """The largest error that passes."""
    others: dict[str, Run] = field(default_factory=dict)
    bytes: int = 0
    """Of the tokens that count and of what must be written."""
    flops: int = 0
    """Of a second moment: those of its triangle, n·d·(d + 1)."""
    replayed: bool = False
    """Whether the call is timed as the replay of a CUDA graph, too."""
    base: str = ""
    """The one of `others` that our calls contain: theirs is what they take beyond it."""
    targets: dict[str, float] = field(default_factory=dict)
    """What figures must reach, by their names in the results: `seconds` and `share of …` at most, others at least."""


def measurements() -> list[tuple[str, Callable[[], AbstractContextManager[Measurement]]]]:
    """By name, in order of interest."""
    both = (torch.bfloat16, torch.float32)
    listed = [
        *(partial(pooling, megabytes) for megabytes in MEGABYTES),
        partial(eigenvectors, -1.0),
        *(partial(cosine, megabytes, dtype) for dtype in both for megabytes in MEGABYTES),
        *(partial(second_moments, n, d, dtype) for n, d in PRODUCTS for dtype in both),
        partial(block_of_a_state),
        *(partial(cosine_backward, megabytes) for megabytes in MEGABYTES[1:]),
        *(partial(pool_backward, megabytes) for megabytes in MEGABYTES[1:]),
        partial(mean_pooling, MEGABYTES[1]),
        partial(small_pool),
        partial(small_update),
        partial(probed_forward),
        partial(eigenvectors, -0.5),
        partial(eigenvectors_of_data),
        partial(compiled_pooling, MEGABYTES[1]),
    ]
    names = [" ".join(map(str, (one.func.__name__, *one.args))) for one in listed]
    return [(name, contextmanager(one)) for name, one in zip(names, listed, strict=True)]


def ragged_mask(megabytes: int) -> Tensor:
    """A mask (B, T) under which tokens of all layers, bfloat16, have so many bytes."""
    sentences = max(1, int(megabytes * 1e6 / (LAYERS * WIDTH * 2) / ((9 + TOKENS) / 2)))
    lengths = torch.randint(9, TOKENS + 1, (sentences,), generator=torch.Generator().manual_seed(0))
    return (torch.arange(TOKENS) < lengths[:, None]).to(GPU)


def rows_of(n: int, d: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(n, d, dtype=dtype, device=GPU).normal_(0.3, 1)


def hidden_of(mask: Tensor) -> Tensor:
    """Hidden states (L, B, T, D) bfloat16."""
    return torch.empty(LAYERS, *mask.shape, WIDTH, dtype=torch.bfloat16, device=GPU).normal_(0.3, 1)


def pooling(megabytes: int) -> Iterator[Measurement]:
    """pool_moments of all layers in one call."""
    mask = ragged_mask(megabytes)
    hidden = hidden_of(mask)
    measurement = pooling_of(hidden, mask, f"pool_moments, {LAYERS} layers, {megabytes} MB")
    measurement.targets = READING.get(megabytes, {})
    if megabytes == MEGABYTES[1]:
        measurement.others["naive torch"] = partial(naive_pool_moments, hidden, mask)
    yield measurement


def compiled_pooling(megabytes: int) -> Iterator[Measurement]:
    """pool_moments of all layers against torch.compile, which takes long to compile."""
    mask = ragged_mask(megabytes)
    hidden = hidden_of(mask)
    measurement = pooling_of(hidden, mask, f"pool_moments against torch.compile, {LAYERS} layers, {megabytes} MB")
    groups = torch.nn.functional.one_hot(jackknife_groups(torch.arange(len(mask))), GROUPS).T.float().to(GPU)
    dense = torch.compile(dense_pool_moments, dynamic=False)
    measurement.others["compiled torch"] = partial(dense, hidden, mask, groups)
    measurement.targets = {"times compiled torch": 12}
    yield measurement


def pooling_of(hidden: Tensor, mask: Tensor, case: str) -> Measurement:
    return Measurement(
        case,
        lambda name: partial(pool_moments, hidden, mask, backend=name),
        lambda name: exact.pool_moments_error(pool_moments(hidden, mask, backend=name), hidden, mask),
        most=1e-6,
        bytes=int(mask.sum()) * LAYERS * WIDTH * 2 + LAYERS * len(mask) * WIDTH * 4,
    )


def dense_pool_moments(hidden: Tensor, mask: Tensor, groups: Tensor) -> tuple[Tensor, ...]:
    """The same sums in torch, all layers at once and no index, for torch.compile. groups: (64, B) one-hot."""
    x = torch.where(mask[..., None], hidden.float(), 0)  # (L, B, T, D)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    u = x / norm.clamp_min(1e-30)
    by_sentence = u.sum(2)  # (L, B, D)
    return (
        x.sum(2) / mask.sum(1)[:, None],
        groups @ by_sentence,
        u.square().sum((1, 2)),
        x.sum((1, 2)),
        x.square().sum((1, 2)),
        norm.sum((1, 2, 3)),
        by_sentence.square().sum((1, 2)),
    )


def naive_pool_moments(hidden: Tensor, mask: Tensor) -> None:
    """Layer after layer, as in bench/naive.py."""
    with GPU:
        for layer in hidden:
            naive.pool_moments(layer.float(), mask.long())


def mean_pooling(megabytes: int) -> Iterator[Measurement]:
    """masked_mean_pool of all layers in one call."""
    mask = ragged_mask(megabytes)
    yield mean_pooling_of(hidden_of(mask), mask, f"masked_mean_pool, {LAYERS} layers, {megabytes} MB")


def small_pool() -> Iterator[Measurement]:
    """masked_mean_pool of so little that the host's time decides."""
    hidden = torch.randn(1, 32, 16, 384, device=GPU).bfloat16()
    mask = torch.ones(32, 16, dtype=torch.bool, device=GPU)
    measurement = mean_pooling_of(hidden, mask, "masked_mean_pool, 32×16×384")
    measurement.replayed = True
    yield measurement


def mean_pooling_of(hidden: Tensor, mask: Tensor, case: str) -> Measurement:
    def error(name: str) -> float:
        pooled = masked_mean_pool(hidden, mask, backend=name)
        wanted = torch.stack([torch.where(mask[..., None], one.double(), 0.0).sum(1) for one in hidden])
        wanted /= mask.sum(1)[:, None]
        return float((pooled - wanted).abs().max() / wanted.abs().max())

    layers, sentences, _, d = hidden.shape
    return Measurement(
        case,
        lambda name: partial(masked_mean_pool, hidden, mask, backend=name),
        error,
        most=3e-7,
        bytes=int(mask.sum()) * layers * d * 2 + layers * sentences * d * 4,
    )


def cosine(megabytes: int, dtype: torch.dtype) -> Iterator[Measurement]:
    """mean_pairwise_cosine of one layer; its error is absolute."""
    x = rows_of(int(megabytes * 1e6 / WIDTH / dtype.itemsize), WIDTH, dtype)
    yield Measurement(
        f"mean_pairwise_cosine, {megabytes} MB, {dtype}",
        lambda name: partial(mean_pairwise_cosine, x, backend=name),
        lambda name: float((mean_pairwise_cosine(x, backend=name) - exact.mean_pairwise_cosine(x)).abs()),
        most=1e-6,
        others={"naive torch": partial(naive.mean_pairwise_cosine_by_mean, x)},
        bytes=x.nbytes,
        targets=READING.get(megabytes, {}),
    )


def second_moments(n: int, d: int, dtype: torch.dtype) -> Iterator[Measurement]:
    """second_moment of one layer: raw 16-bit rows are one product, float32 rows three."""
    x = rows_of(n, d, dtype)

    def moment(name: str) -> Tensor:
        total = torch.zeros(1, d, d, dtype=torch.float64, device=GPU)
        second_moment_(total, x[None], backend=name)
        return total[0]

    kept = torch.zeros(1, d, d, dtype=torch.float64, device=GPU)
    yield Measurement(
        f"second_moment, {n}×{d}, {dtype}",
        lambda name: partial(second_moment_, kept, x[None], backend=name),
        lambda name: exact.second_moment_error(moment(name), x),
        most=1e-6,
        others={"torch.mm": lambda: x.mT @ x},
        flops=n * d * (d + 1),
        targets={"share_of_matrix_peak": 0.6} if dtype == torch.bfloat16 and (n, d) in PRODUCTS[1:] else {},
    )


def block_of_a_state() -> Iterator[Measurement]:
    """The product that a state adds for each layer and 512 sentences: float32 rows, some left out, about a pilot."""
    x, use = rows_of(512, WIDTH, torch.float32), torch.rand(1, 512, device=GPU) < 0.99
    pilot = x.double().mean(0, keepdim=True)

    def moment(name: str) -> Tensor:
        total = torch.zeros(1, WIDTH, WIDTH, dtype=torch.float64, device=GPU)
        second_moment_(total, x[None], use=use, pilot=pilot, backend=name)
        return total[0]

    kept = torch.zeros(1, WIDTH, WIDTH, dtype=torch.float64, device=GPU)
    yield Measurement(
        f"second_moment, a state's block, 512×{WIDTH}",
        lambda name: partial(second_moment_, kept, x[None], use=use, pilot=pilot, backend=name),
        lambda name: exact.second_moment_error(moment(name), x[use[0]]),
        most=1e-6,
        flops=512 * WIDTH * (WIDTH + 1),
    )


def eigenvectors(power: float) -> Iterator[Measurement]:
    """top_eigenvectors of 25 covariances 1024² with eigenvalues i^power, against torch.linalg.eigh."""
    values = torch.arange(1, WIDTH + 1, dtype=torch.float64, device=GPU) ** power
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64, device=GPU)).Q
    one = ((basis * values) @ basis.mT).float()
    one = (one + one.mT) / 2
    orders = [torch.randperm(WIDTH, device=GPU) for _ in range(LAYERS)]
    covariance = torch.stack([one[order][:, order] for order in orders])

    def error(name: str) -> float:
        found = top_eigenvectors(covariance=covariance, backend=name)
        return exact.residual(found.vectors, found.values, covariance)

    yield Measurement(
        f"top_eigenvectors, {LAYERS} of {WIDTH}², eigenvalues i^{power:g}",
        lambda name: partial(top_eigenvectors, covariance=covariance, backend=name),
        error,
        most=1e-6,
        others={"eigh": partial(torch.linalg.eigh, covariance)} if power == -1 else {},
        targets={"seconds": 2e-3, "times eigh": 140} if power == -1 else {},
    )


def eigenvectors_of_data() -> Iterator[Measurement]:
    """top_eigenvectors of one layer of rows."""
    falling = torch.arange(1, WIDTH + 1, dtype=torch.float64, device=GPU) ** -0.5
    x = (torch.randn(20_000, WIDTH, dtype=torch.float64, device=GPU) * falling + 0.5).bfloat16()

    def error(name: str) -> float:
        found = top_eigenvectors(x, backend=name)
        return exact.residual(found.vectors, found.values, x.double().T.cov())

    yield Measurement(
        f"top_eigenvectors of data, 20000×{WIDTH}, bfloat16",
        lambda name: partial(top_eigenvectors, x, backend=name),
        error,
        most=2e-6,
    )


def cosine_backward(megabytes: int) -> Iterator[Measurement]:
    """The gradient's own kernel."""
    x = rows_of(int(megabytes * 1e6 / WIDTH / 2), WIDTH, torch.bfloat16)
    unit_sum, _ = exact.unit_sums(x)
    count, one = torch.tensor(len(x), device=GPU), torch.ones((), dtype=torch.float64, device=GPU)

    def gradient(name: str) -> Tensor:
        return cosine_gradient(x, unit_sum, count, one, name)

    yield Measurement(
        f"mean_pairwise_cosine_backward, {megabytes} MB",
        lambda name: partial(gradient, name),
        lambda name: exact.cosine_gradient_error(gradient(name), x, unit_sum),
        most=2**-8,
        bytes=2 * x.nbytes,
        targets={"share_of_copy": 0.88},
    )


def pool_backward(megabytes: int) -> Iterator[Measurement]:
    """The gradient of pooling, into hidden states of all layers: padding is written, too."""
    mask = ragged_mask(megabytes)
    grad = torch.randn(LAYERS, len(mask), WIDTH, device=GPU)

    def gradient(name: str) -> Tensor:
        return pool_gradient(grad, mask, None, TOKENS, torch.bfloat16, name)

    yield Measurement(
        f"masked_mean_pool_backward, {megabytes} MB of tokens",
        lambda name: partial(gradient, name),
        lambda name: exact.pool_gradient_error(gradient(name), grad, mask),
        most=2**-8,
        bytes=2 * LAYERS * mask.numel() * WIDTH + grad.nbytes,
        targets={"share_of_copy": 0.88},
    )


def small_update() -> Iterator[Measurement]:
    """A state's update of 25 layers, each in memory of its own, by a small batch: the host's time decides."""
    layers = [torch.randn(64, 16, WIDTH, device=GPU).bfloat16() for _ in range(LAYERS)]
    mask = torch.ones(64, 16, dtype=torch.bool, device=GPU)
    batch = SentenceBatch.of(layers[0], mask, None, torch.arange(64))

    def update(name: str) -> Run:
        state = ConeState.empty(range(LAYERS), WIDTH, backend=name, device=GPU)
        return lambda: state.add(batch, layers, state.layers)

    def error(name: str) -> float:
        return exact.pool_moments_error(pool_moments(layers, mask, backend=name), torch.stack(layers), mask)

    yield Measurement("ConeState.add, 25 layers of 64×16 tokens", update, error, most=1e-6, replayed=True)


def probed_forward() -> Iterator[Measurement]:
    """A forward of a BERT-large-shaped model in bfloat16, and under a probe of all layers."""
    from transformers import BertConfig, BertModel

    with GPU:
        model = BertModel(BertConfig(**BERT_LARGE)).eval().to(torch.bfloat16)
        ids = torch.randint(1000, 20_000, (SENTENCES, 16))
    with ExitStack() as attached, torch.inference_mode():

        def under_probe(name: str) -> Run:
            probe = attached.enter_context(ConeProbe(model, backend=name))
            probe.pause()

            def forward() -> None:
                probe.resume()
                model(input_ids=ids)
                probe.pause()

            return forward

        def error(name: str) -> float:
            with ConeProbe(model, backend=name) as probe:
                hidden = torch.stack(model(input_ids=ids, output_hidden_states=True).hidden_states)
            anisotropy = [exact.mean_pairwise_cosine(layer.flatten(0, 1)) for layer in hidden]
            count, unit_sum = probe.state.token.count.sum(1), probe.state.token.unit_sum.sum(1)
            got = (unit_sum.square().sum(1) - count) / (count * (count - 1))
            return float((got - torch.stack(anisotropy)).abs().max())

        yield Measurement(
            f"forward of BERT-large, {SENTENCES}×16 tokens, all layers probed",
            under_probe,
            error,
            most=1e-6,
            others={"forward": partial(model, input_ids=ids)},
            base="forward",
            targets={"share of forward": 0.03},
        )
