"""torch's own attention of packed rows, under a stand-in for its kernel, which runs on GPUs alone."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from cone_kernels.cli import main
from cone_kernels.models import load_model
from cone_kernels.models.varlen_attention import varlen_attention
from cone_kernels.runs.runner import run
from tests.support.stand_in_gpu import stand_in_gpu
from tests.support.tiny_checkpoints import save_checkpoint, sentences

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [*sentences(24), "w7"]


def plain_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """What torch documents of `varlen_attn`, with the arguments of torch 2.11, sequence by sequence."""
    assert query.shape == key.shape == value.shape
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert cu_seq_q.dtype == torch.int32
    assert max_q == max_k >= int(cu_seq_q.diff().max())
    parts = []
    for start, stop in itertools.pairwise(cu_seq_q.tolist()):
        at = torch.arange(stop - start, device=query.device)
        ahead = at - at[:, None]  # of the key, for each query
        back, forth = (stop - start if size < 0 else size for size in window_size)
        rows = [part[start:stop].transpose(0, 1) for part in (query, key, value)]
        parts.append(scaled_dot_product_attention(*rows, (-ahead <= back) & (ahead <= forth), scale=scale))
    return torch.cat(parts, 1).transpose(0, 1)


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", plain_varlen)


def definition(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float) -> Tensor:
    """(B, T, H, D): softmax of the scores of what each query may see, (B or 1, T, T), times the values."""
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    scores = (query @ key.mT * scale).masked_fill(~seen[:, None], -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize(("causal", "window"), [*itertools.product([True, False], [None, 1, 3])])
@pytest.mark.parametrize("form", ["packed", "padded", "whole"])
def test_each_query_sees_what_the_definition_lets_it_see(form: str, causal: bool, window: int | None) -> None:
    batch, tokens = (1, 13) if form == "packed" else (3, 7)
    query, key, value = (
        torch.randn(batch, heads, tokens, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(heads + at))
        for at, heads in enumerate((4, 2, 2))
    )
    mask, options = None, {}
    lengths = torch.tensor([7, 1, 4])
    ahead = torch.arange(tokens) - torch.arange(tokens)[:, None]
    seen = torch.ones(batch, tokens, tokens, dtype=torch.bool)
    if causal:
        seen &= ahead <= 0
    if window is not None:
        seen &= ahead.abs() < window
    if form == "packed":
        starts = torch.tensor([0, 7, 8, 12, 13], dtype=torch.int32)
        of_token = torch.repeat_interleave(torch.arange(4), starts.diff())
        seen &= of_token == of_token[:, None]
        options = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": 7, "max_length_k": 7}
    if form == "padded":
        mask = torch.arange(tokens) < lengths[:, None]
        seen &= mask[:, None]
        seen |= ~mask[:, :, None]  # what padding sees does not count
    layer = nn.Linear(1, 1)
    layer.is_causal = causal
    got, weights = varlen_attention(layer, query, key, value, mask, scaling=0.3, sliding_window=window, **options)
    wanted = definition(query, key, value, seen, 0.3)
    if mask is not None:
        wanted = wanted * mask[..., None, None]
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    assert weights is None


def test_what_the_kernel_does_not_have_is_refused() -> None:
    rows = torch.randn(1, 2, 5, 4)
    for name, given in {"dropout": 0.1, "softcap": 30.0, "s_aux": torch.zeros(2)}.items():
        with pytest.raises(ValueError, match=f"attention: got 'varlen' for a layer with {name}"):
            varlen_attention(nn.Identity(), rows, rows, rows, None, **{name: given})
    with pytest.raises(ValueError, match="for a layer with a cache"):
        varlen_attention(nn.Identity(), rows[:, :, 4:], rows, rows, None)


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "gpt2", "llama", "qwen3"])
def test_sums_are_those_of_transformers_own_attention(tmp_path: Path, architecture: str) -> None:
    save_checkpoint(tmp_path, architecture)
    packed = run(load_model(tmp_path, "cpu", attention="varlen"), TEXTS, packed=True, token_budget=50)
    alone = run(load_model(tmp_path, "cpu"), TEXTS, batch_size=1)
    assert packed.batches < alone.batches / 3
    for found, wanted in ((packed.state.token, alone.state.token), (packed.state.sentence, alone.state.sentence)):
        for name in wanted.fields:
            torch.testing.assert_close(found.sums[name], wanted.sums[name], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "attention"),
    [(["--dtype", "bfloat16"], "varlen"), (["--dtype", "bfloat16", "--attention", "sdpa"], None), ([], None)],
)
def test_on_a_gpu_and_in_16_bits_packed_takes_it_by_itself(
    tmp_path: Path, options: list[str], attention: str | None
) -> None:
    save_checkpoint(tmp_path / "model")
    (tmp_path / "corpus.txt").write_text("\n".join(TEXTS))
    command = ["layers", "--model", str(tmp_path / "model"), "--corpus", str(tmp_path / "corpus.txt"), "--packed"]
    with stand_in_gpu():
        done = CliRunner().invoke(main, [*command, "--device", "cuda", *options, "--json", "-"])
    if attention is None:
        assert done.exit_code == 1
        assert "packed: got True with attention 'sdpa', which does not keep packed sentences apart" in done.stderr
        return
    assert done.exit_code == 0, done.output
    found: Any = json.loads(done.stdout)
    assert found["model"]["attention"] == attention
    plain = CliRunner().invoke(main, [*command[:-1], "--dtype", "bfloat16", "--device", "cpu", "--json", "-"])
    for got, wanted in zip(found["layers"], json.loads(plain.stdout)["layers"], strict=True):
        assert got["sentence"]["anisotropy"] == pytest.approx(wanted["sentence"]["anisotropy"], abs=0.01)
