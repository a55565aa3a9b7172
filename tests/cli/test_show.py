"""`cone show`: what a saved state holds, from the file alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cone_kernels import ConeState
from cone_kernels.cli import main
from cone_kernels.experiments import layers, measure
from tests.support.tiny_checkpoints import WORDS, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def show(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["show", *map(str, arguments)])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("state")
    save_checkpoint(folder / "model")
    sentences = [*(" ".join(WORDS[i : i + 1 + i % 4]) for i in range(70)), "nothing"]
    found = folder / "tiny.safetensors"
    measure(folder / "model", sentences, second_moment=True, poolings=("mean", "cls"), save_state=found)
    return found


def test_the_json_is_that_of_layers(file: Path) -> None:
    done = show(file, "--json", "-")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == layers(state=file).to_dict()


def test_what_the_state_holds_is_said(file: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    done = show(file, "--json", report)
    assert done.exit_code == 0, done.output
    state = ConeState.load(file)
    tokens = int(state.token.count[0].sum())
    assert done.stdout.splitlines()[:7] == [
        "state       tiny",
        f"model       BertModel, type bert, dtype float32, weights {state.info['model']['weights_sha256'][:12]}",
        "layers      4 (0 to 3), 32 wide",
        f"of          71 sentences, {tokens} tokens",
        "keeps       first-order sums, second moments",
        "poolings    mean, cls",
        f"fingerprint {state.fingerprint()}",
    ]
    found = json.loads(report.read_text())
    for row in found["layers"]:
        assert f"{row['sentence']['anisotropy']:.4f} {row['sentence']['stderr']:.4f}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("width", [24, 40, 60])
def test_numbers_are_never_cut(file: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of the table's columns gives way or goes on below, every number that is shown is whole."""
    monkeypatch.setenv("COLUMNS", str(width))
    done = CliRunner().invoke(main, ["show", str(file)])
    found = layers(state=file).to_dict()["layers"]
    for row in found:
        numbers = [row[level]["anisotropy"] for level in ("sentence", "token")]
        assert all(f"{number:.4f}" in done.stdout for number in numbers)
        assert all(f"{row['geometry'][name]:.1f}" in done.stdout for name in ("participation_ratio", "rank_me"))
    compared = CliRunner().invoke(main, ["compare", str(file), str(file)])
    turned = CliRunner().invoke(main, ["rotation", "--state", str(file), "--state", str(file)])
    for text in (done.stdout, compared.stdout, turned.stdout):
        assert "…" not in text.replace("mean cosine of … less", "")
        assert "█" not in text
    assert compared.stdout.count("+0.0000") == 4 * 3 + 4 * 3


def test_a_state_made_by_hand_says_what_it_can(tmp_path: Path) -> None:
    file = tmp_path / "bare.safetensors"
    ConeState.empty([3], 5).save(file)
    done = show(file)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[1:4] == ["model       unknown", "layers      1 (3), 5 wide", "of          0 sentences, 0 tokens"]
    assert "a pair needs two" in " ".join(done.stdout.split())


def test_a_damaged_file_is_one_line(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[-1] ^= 1
    damages = {
        "missing": (None, "No such file or directory"),
        "empty": (b"", "not a readable safetensors file"),
        "text": (b"no state\n" * 99, "not a readable safetensors file"),
        "short": (content[: len(content) // 2], "not a readable safetensors file"),
        "flipped": (bytes(flipped), "its content has sha256"),
    }
    for name, (damaged, words) in damages.items():
        target = tmp_path / name
        if damaged is not None:
            target.write_bytes(damaged)
        done = show(target)
        assert (done.exit_code, done.stdout) == (1, ""), name
        assert len(done.stderr.splitlines()) == 1, name
        assert done.stderr.startswith(f"Error: {target}: "), name
        assert words in done.stderr, name


def test_the_state_is_no_output(file: Path) -> None:
    done = show(file, "--json", file)
    assert done.exit_code == 2
    assert "is named twice" in done.stderr
    assert show().exit_code == 2


def test_text_of_a_file_does_not_act_on_the_terminal(tmp_path: Path) -> None:
    """Colours, cursor movements, right-to-left marks and halves of characters in a name that somebody else wrote."""
    name = "\x1b[2J\x1b]0;owned\x07bert\x9b31m\u202e\ud83d"
    state = ConeState.empty(
        range(2), 4, info={"model": {"architecture": name, "prompt": name}, "layer_names": [name] * 2}
    )
    state.save(tmp_path / "s")
    done = CliRunner().invoke(main, ["show", str(tmp_path / "s")])
    assert done.exit_code == 0
    assert "bert" in done.stdout
    assert not set(done.stdout) & set("\x1b\x07\x9b\u202e\ud83d")
