"""Times the GPU kernels beside what the machine can do: copy bandwidth, matrix peak, naive torch, compiled torch.

python bench/gpu_kernels.py MEASURED.json TABLE.md

Every result is checked against float64 before it is timed. Bytes are those of the tokens that count and of what must be
written; FLOPs of a second moment are those of its triangle, n·d·(d + 1).
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import naive
import torch
from gpu_timing import GPU, copy_rate, device_medians, matrix_peak
from torch import Tensor

from cone_kernels import backends, masked_mean_pool, mean_pairwise_cosine, pool_moments, second_moment, top_eigenvectors
from cone_kernels.ops.masked_mean_pool import _pool_gradient
from cone_kernels.ops.mean_pairwise_cosine import cosine_gradient
from cone_kernels.sums import ROW_FIELDS

OURS = ("triton", "cuda")
MEGABYTES = (33, 262, 2147)
LAYERS, WIDTH, TOKENS = 25, 1024, 32

Case = dict[str, Any]
Candidates = dict[str, Callable[[], object]]


def main(measured: str, table: str) -> int:
    machine = {"copy_gigabytes_per_second": copy_rate(), "matrix_teraflops": matrix_peak()}
    cases: list[Case] = []
    failed = []
    for measure in measurements():
        try:
            cases += [with_shares(case, machine) for case in measure()]
        except Exception as error:  # the other figures are worth having
            traceback.print_exc()
            failed.append(f"{measure}: {error}")
        torch.cuda.empty_cache()
        # A run that is stopped for time leaves what it had.
        Path(measured).write_text(json.dumps({"machine": machine, "cases": cases, "failed": failed}))
        Path(table).write_text(markdown(machine, cases))
    print(markdown(machine, cases))
    return 1 if failed else 0


def measurements() -> list[Callable[[], list[Case]]]:
    """What is measured, in order of interest."""
    return [
        *(partial(pooling, megabytes) for megabytes in MEGABYTES),
        *(partial(cosine, megabytes, dtype) for dtype in (torch.bfloat16, torch.float32) for megabytes in MEGABYTES),
        *(partial(products, n, dtype) for n in (4096, 65_536) for dtype in (torch.bfloat16, torch.float32)),
        partial(eigenvectors, -1.0),
        partial(eigenvectors, -0.5),
        cosine_backward,
        pool_backward,
        *(partial(host_cost, name) for name in OURS),
        forward_share,
    ]


def ragged_batch(megabytes: int) -> tuple[Tensor, Tensor]:
    """Hidden states (L, B, T, D) bfloat16 whose tokens under the mask (B, T) have so many bytes."""
    sentences = max(1, int(megabytes * 1e6 / (LAYERS * WIDTH * 2) / ((9 + TOKENS) / 2)))
    lengths = torch.randint(9, TOKENS + 1, (sentences,), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(TOKENS) < lengths[:, None]).to(GPU)
    hidden = torch.empty(LAYERS, sentences, TOKENS, WIDTH, dtype=torch.bfloat16, device=GPU).normal_(0.3, 1)
    return hidden, mask


def pooling(megabytes: int) -> list[Case]:
    """pool_moments of all layers in one call."""
    hidden, mask = ragged_batch(megabytes)
    few = slice(0, 8)
    wanted = pool_moments(hidden[:2, few].cpu(), mask[few].cpu(), backend="reference")
    for name in OURS:
        found = pool_moments(hidden[:2, few], mask[few], backend=name)
        torch.testing.assert_close(found.pooled.cpu(), wanted.pooled, rtol=3e-7, atol=3e-7)
        for field in ROW_FIELDS:
            torch.testing.assert_close(found.sums[field].cpu(), wanted.sums[field], rtol=1e-6, atol=1e-5)
    candidates: Candidates = {name: partial(pool_moments, hidden, mask, backend=name) for name in OURS}
    if megabytes < MEGABYTES[-1]:
        groups = torch.nn.functional.one_hot(torch.arange(len(mask)) % 64, 64).T.float().to(GPU)
        candidates["compiled torch"] = partial(torch.compile(dense_pool_moments), hidden, mask, groups)
        candidates["naive torch"] = partial(naive_pool_moments, hidden, mask)
    size = int(mask.sum()) * LAYERS * WIDTH * 2 + LAYERS * len(mask) * WIDTH * 4
    return _cases(f"pool_moments, {LAYERS} layers, {megabytes} MB", device_medians(candidates), bytes=size)


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


def cosine(megabytes: int, dtype: torch.dtype) -> list[Case]:
    """mean_pairwise_cosine of one layer."""
    n = int(megabytes * 1e6 / WIDTH / dtype.itemsize)
    x = torch.empty(n, WIDTH, dtype=dtype, device=GPU).normal_(0.3, 1)
    wanted = mean_pairwise_cosine(x[:2000].double().cpu())
    for name in OURS:
        torch.testing.assert_close(mean_pairwise_cosine(x[:2000], backend=name).cpu(), wanted, rtol=0, atol=1e-6)
    candidates: Candidates = {name: partial(mean_pairwise_cosine, x, backend=name) for name in OURS}
    candidates["naive torch"] = partial(naive.mean_pairwise_cosine_by_mean, x)
    size = n * WIDTH * dtype.itemsize
    return _cases(f"mean_pairwise_cosine, {megabytes} MB, {dtype}", device_medians(candidates), bytes=size)


def products(n: int, dtype: torch.dtype) -> list[Case]:
    """second_moment of one layer: raw 16-bit rows are one product, float32 rows three."""
    x = torch.empty(n, WIDTH, dtype=dtype, device=GPU).normal_(0.3, 1)
    wanted = second_moment(x.double().cpu())
    for name in OURS:
        error = float((second_moment(x, backend=name).cpu() - wanted).abs().max() / wanted.abs().max())
        assert error <= 1e-6, (name, error)
    candidates: Candidates = {name: partial(second_moment, x, backend=name) for name in OURS}
    candidates["torch.mm of float32"] = lambda: x.float().mT @ x.float()
    flops = n * WIDTH * (WIDTH + 1)
    return _cases(f"second_moment, {n} rows, {dtype}", device_medians(candidates), flops=flops)


def eigenvectors(power: float) -> list[Case]:
    """top_eigenvectors of 25 covariances 1024² with eigenvalues i^power, against torch.linalg.eigh."""
    values = torch.arange(1, WIDTH + 1, dtype=torch.float64, device=GPU) ** power
    basis = torch.linalg.qr(torch.randn(LAYERS, WIDTH, WIDTH, dtype=torch.float64, device=GPU)).Q
    covariance = ((basis * values) @ basis.mT).float()
    covariance = (covariance + covariance.mT) / 2
    residuals = {}
    for name in OURS:
        found = top_eigenvectors(covariance=covariance, backend=name)
        rest = found.vectors @ covariance.double() - found.values[..., None] * found.vectors
        residuals[name] = float((torch.linalg.vector_norm(rest, dim=-1) / found.values).max())
        assert residuals[name] <= 1e-6, (name, residuals[name])
    candidates: Candidates = {name: partial(top_eigenvectors, covariance=covariance, backend=name) for name in OURS}
    seconds = device_medians(candidates) | device_medians({"eigh": partial(torch.linalg.eigh, covariance)}, 1)
    cases = _cases(f"top_eigenvectors, {LAYERS} of {WIDTH}², eigenvalues i^{power:g}", seconds)
    return [case | {"residual": residuals.get(case["backend"])} for case in cases]


def cosine_backward() -> list[Case]:
    """The gradient's own kernel, 262 MB of rows."""
    x = torch.empty(int(262e6 / WIDTH / 2), WIDTH, dtype=torch.bfloat16, device=GPU).normal_(0.3, 1)
    unit_sum = torch.nn.functional.normalize(x.double(), dim=-1).sum(0)
    count, one = torch.tensor(len(x), device=GPU), torch.ones((), dtype=torch.float64, device=GPU)
    candidates: Candidates = {name: partial(cosine_gradient, x, unit_sum, count, one, name) for name in OURS}
    return _cases("mean_pairwise_cosine_backward, 262 MB", device_medians(candidates), bytes=4 * x.numel())


def pool_backward() -> list[Case]:
    """The gradient of pooling, into hidden states of all layers."""
    hidden, mask = ragged_batch(262)
    grad = torch.randn(LAYERS, len(mask), WIDTH, device=GPU)
    candidates: Candidates = {
        name: partial(_pool_gradient, grad, mask, None, TOKENS, torch.bfloat16, name) for name in OURS
    }
    size = 2 * hidden.numel() + 4 * grad.numel()
    return _cases("masked_mean_pool_backward, 262 MB of tokens", device_medians(candidates), bytes=size)


def host_cost(name: str) -> list[Case]:
    """Time of the host per call of a small masked_mean_pool, and of the device per replay of its CUDA graph."""
    hidden = torch.randn(1, 32, 16, 384, device=GPU).bfloat16()
    mask = torch.ones(32, 16, dtype=torch.bool, device=GPU)
    run = partial(masked_mean_pool, hidden, mask, backend=name)
    run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(200):
        run()
    seconds = (time.perf_counter() - start) / 200
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    replay = device_medians({"replay": graph.replay})["replay"]
    return [{"case": "masked_mean_pool 32×16×384, host", "backend": name, "seconds": seconds, "replay_seconds": replay}]


def forward_share() -> list[Case]:
    """Statistics of all layers beside the forward of a BERT-large-shaped model in bfloat16."""
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    model = BertModel(config).eval().to(GPU, torch.bfloat16)
    sentences, length = 1024, 16
    ids = torch.randint(1000, 20_000, (sentences, length), device=GPU)
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.inference_mode():
        hidden = torch.stack(model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states)
        candidates: Candidates = {"forward": partial(model, input_ids=ids, attention_mask=mask)}
        candidates |= {name: partial(pool_moments, hidden, mask, backend=name) for name in OURS}
        seconds = device_medians(candidates)
    return [
        {
            "case": f"all layers of BERT-large, {sentences}×{length} tokens",
            "backend": name,
            "seconds": seconds[name],
            "share_of_forward": seconds[name] / seconds["forward"],
            "sentences_per_second_with_forward": sentences / (seconds["forward"] + seconds[name]),
        }
        for name in OURS
    ]


def _cases(case: str, seconds: dict[str, float], **work: float) -> list[Case]:
    """A case per candidate; of ours, how many times faster than each other one."""
    others = [name for name in seconds if name not in OURS]
    return [
        {"case": case, "backend": name, "seconds": taken}
        | (work | {f"times {other}": seconds[other] / taken for other in others} if name in OURS else {})
        for name, taken in seconds.items()
    ]


def with_shares(case: Case, machine: dict[str, float]) -> Case:
    """The case with its rate as a share of the machine's."""
    shares = {}
    if "bytes" in case:
        shares["share_of_copy"] = case["bytes"] / case["seconds"] / 1e9 / machine["copy_gigabytes_per_second"]
    if "flops" in case:
        shares["share_of_matrix_peak"] = case["flops"] / case["seconds"] / 1e12 / machine["matrix_teraflops"]
    return case | shares


def markdown(machine: dict[str, float], cases: list[Case]) -> str:
    """The table, with the machine's limits above it."""
    lines = [
        f"{torch.cuda.get_device_name()}: copy {machine['copy_gigabytes_per_second']:.0f} GB/s, "
        f"bfloat16 product {machine['matrix_teraflops']:.0f} TFLOP/s",
        "",
        "| case | backend | µs | measured |",
        "|---|---|---|---|",
    ]
    for case in cases:
        rest = {
            key: value for key, value in case.items() if key not in {"case", "backend", "seconds", "bytes", "flops"}
        }
        shown = ", ".join(f"{key} {value:.3g}" for key, value in rest.items() if value is not None)
        lines.append(f"| {case['case']} | {case['backend']} | {case['seconds'] * 1e6:.1f} | {shown} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name in OURS:
        capability = backends.capabilities()[backends.Backend(name)]
        if not capability.available:
            sys.exit(f"{name}: {capability.reason}")
    sys.exit(main(*sys.argv[1:]))
