"""What the pages and the README show runs as it is written: Python as a whole, commands as far as their flags."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from cone_kernels import ConeProbe
from cone_kernels.cli import main
from tests.support.places import ROOT
from tests.support.tiny_checkpoints import WORDS, word_tokenizer
from tests.support.tiny_models import tiny_model

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def named() -> dict[str, Any]:
    """What the pages speak of without making it: a model, a corpus, tensors, what a training job has."""
    torch.manual_seed(0)
    model, tokenizer = tiny_model("bert"), word_tokenizer()
    texts = [" ".join(WORDS[(i * 7 + j * 3) % 90] for j in range(2 + i % 5)) for i in range(40)]
    batches = [dict(tokenizer(texts[i : i + 8], padding=True, return_tensors="pt")) for i in range(0, 40, 8)]
    states = []
    for half in (batches[:2], batches[2:]):
        with ConeProbe(model) as probe, torch.inference_mode():
            for batch in half:
                model(**batch)
        states.append(probe.state)
    masked_model = tiny_model("bert", model_class="BertForMaskedLM")
    row = {"input_ids": [2, 4, 5, 3], "attention_mask": [1] * 4, "labels": [2, 4, 5, 3]}
    return {
        "torch": torch,
        "model": model,
        "masked_model": masked_model,
        "tokenizer": tokenizer,
        "texts": texts,
        "batches": batches,
        "batch": batches[0],
        "loader": batches,
        "optimizer": torch.optim.SGD(model.parameters(), 1e-3),
        "rows": [row] * 16,
        "collator": None,
        "state": states[0],
        "other": states[1],
        "vectors": torch.randn(60, 12) + 1,
        "labels": [0, 1] * 30,
        "x": torch.randn(30, 6),
        "c": torch.eye(6),
        "hidden_states": torch.randn(2, 5, 6),
        "mask": torch.ones(2, 5),
    }


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_runs_from_top_to_bottom(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = named()
    for text in blocks(page, "python"):
        exec(compile(text, str(page), "exec"), names)


COMMANDS = sorted(
    {
        (page.name, line.split("#")[0].strip())
        for page in PAGES
        for text in blocks(page, "")
        for line in text.splitlines()
        if line.startswith("cone ")
    }
)


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands_have_flags_that_there_are(page: str, line: str) -> None:
    name, command, arguments = main.resolve_command(click.Context(main), shlex.split(line)[1:])
    assert command is not None
    command.make_context(name, arguments, resilient_parsing=False)
