"""`cone vectors` as a user runs it: what it prints and writes, parts, the page, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cone_kernels.cli import main
from cone_kernels.runs.vectors_pass import SHARD_ROWS

N = SHARD_ROWS + 300

pytestmark = pytest.mark.usefixtures("one_thread")


def cone(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files, ids of their rows, and a state."""
    folder = tmp_path_factory.mktemp("vectors")
    rows = np.random.default_rng(0).standard_normal((N, 8)).astype(np.float32) + 0.4
    rows[4] = 0
    np.save(folder / "a.npy", rows[:5000])
    np.save(folder / "b.npy", rows[5000:])
    (folder / "ids.txt").write_text("".join(f"id-{row}\n" for row in range(len(rows))))
    assert cone("vectors", folder / "a.npy", "--second-moment", "--save-state", folder / "s").exit_code == 0
    return folder


def data_of(done: Result) -> dict[str, Any]:
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_as_a_user_runs_it(folder: Path, tmp_path: Path) -> None:
    files = [folder / "a.npy", folder / "b.npy"]
    done = cone("vectors", *files, "--axis", "2", "--top", "2", "--ids", folder / "ids.txt", "--json", tmp_path / "r")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "r").read_text())
    assert found["vectors"]["rows"] == N
    assert found["sentence"]["n_zero"] == 1
    assert f"{found['sentence']['anisotropy']:.4f} ± " in done.stdout
    assert f"a.npy and 1 more: {N:,} vectors, 8 wide, float32" in done.stdout
    for component in found["axis"]["components"]:
        for end in ("top", "bottom"):
            assert [one["id"] for one in component[end]] == [f"id-{one['index']}" for one in component[end]]
            assert component[end][0]["id"] in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()[1:]) <= 80
    assert f"{N:,} vectors in " in done.stderr
    assert " ".join(found["summary"][-1].split()) in " ".join(done.stdout.split())
    alone = cone("vectors", folder / "a.npy", "--json", "-", "--max-bad", "0")
    assert alone.exit_code == 3
    assert json.loads(alone.stdout)["axis"] is None
    assert "Error: 1 were left out; --max-bad allows 0" in alone.stderr


def test_parts_are_merged_by_the_command(folder: Path, tmp_path: Path) -> None:
    files = [folder / "a.npy", folder / "b.npy"]
    for at in range(2):
        done = cone("vectors", *files, "--shard", f"{at}/2", "--save-state", tmp_path / str(at))
        assert done.exit_code == 0, done.output
    merged = cone("merge", tmp_path / "0", tmp_path / "1", "-o", tmp_path / "whole")
    assert merged.stderr == f"{tmp_path / 'whole'}: {N:,} of {N:,} vectors, the state of all\n"
    shown = data_of(cone("show", tmp_path / "whole", "--json", "-"))
    whole = data_of(cone("vectors", *files, "--json", "-"))
    assert shown["sentence"] == whole["sentence"]
    assert shown["manifest"]["state_fingerprint"] == whole["manifest"]["state_fingerprint"]


def test_a_state_is_shown_compared_turned_and_centred(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert cone("vectors", folder / "b.npy", "--second-moment", "--save-state", other).exit_code == 0
    shown = cone("show", folder / "s")
    assert "keeps       first-order sums, second moments" in shown.stdout
    assert "s: 5,000 vectors, 8 wide, float32" in shown.stdout
    compared = cone("compare", folder / "s", other)
    assert compared.exit_code == 0, compared.output
    assert "a: s (5,000 vectors, 8 wide)" in compared.stdout
    assert "token" not in compared.stdout
    turned = data_of(cone("rotation", "--state", folder / "s", "--state", other, "--json", "-"))
    assert {model["layer"] for model in turned["models"]} == {"output"}
    centred = cone("center", "--state", folder / "s", "--output", tmp_path / "c")
    assert centred.exit_code == 0, centred.output
    assert (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "Missing argument 'FILE...'"),
        (["{folder}/nothing.npy"], 1, "Error: vectors: there is no file {folder}/nothing.npy"),
        (["{folder}/ids.txt"], 1, "ends in '.txt'; it must end in .npy"),
        (["{folder}/cut.npy"], 1, "{folder}/cut.npy is cut short in row 2"),
        (["{folder}/objects.npy"], 1, "holds Python objects"),
        (["{folder}/a.npy", "{folder}/a.npy"], 1, "is named twice"),
        (["{folder}/a.npy", "--ids", "{folder}/few.txt"], 1, "has 1 lines for 5,000 vectors"),
        (["{folder}/a.npy", "--scale", "2"], 1, "only int8 and uint8 have one"),
        (["{folder}/a.npy", "--resume"], 2, "--resume goes with --checkpoint"),
        (["{folder}/a.npy", "--axis", "1", "--shard", "0/2"], 2, "--axis and --shard: give one of them"),
        (["{folder}/a.npy", "--json", "{folder}/a.npy"], 2, "is named twice"),
        (["{folder}/a.npy", "--axis", "9"], 1, "k: got 9; it must be at most 8"),
    ],
)
def test_failures_are_one_line(folder: Path, arguments: list[str], code: int, words: str) -> None:
    (folder / "cut.npy").write_bytes((folder / "a.npy").read_bytes()[:200])
    np.save(folder / "objects.npy", np.array([[1, "a"]], dtype=object), allow_pickle=True)
    (folder / "few.txt").write_text("one\n")
    done = cone("vectors", *(argument.format(folder=folder) for argument in arguments))
    assert (done.exit_code, done.stdout) == (code, "")
    assert words.format(folder=folder) in done.stderr
    assert code == 2 or len(done.stderr.splitlines()) == 1


def test_vectors_are_opened_by_the_command(folder: Path, tmp_path: Path) -> None:
    files = ["--vectors", folder / "a.npy", "--vectors", folder / "b.npy"]
    done = cone("center", *files, "--write", tmp_path / "o.npy", "--json", tmp_path / "r", "--method", "whitening")
    assert done.exit_code == 0, done.output
    assert "mean cosine of two vectors" in done.stdout
    # A long path begins on a line of its own.
    assert f"written to {tmp_path / 'o.npy'}" in " ".join(done.stdout.split())
    assert f"{N:,} vectors in " in done.stderr
    found = json.loads((tmp_path / "r").read_text())
    after = data_of(cone("vectors", tmp_path / "o.npy", "--json", "-"))
    assert after["sentence"]["anisotropy"] == pytest.approx(found["after"]["value"], abs=1e-6)
    for arguments, words in (
        (["--vectors", folder / "a.npy", "--model", "m", "--corpus", "c"], "takes the place of --model and --corpus"),
        (["--state", folder / "s", "--write", "x.npy"], "--write goes with --vectors"),
        (["--vectors", folder / "a.npy", "--write", folder / "a.npy"], "is named twice"),
    ):
        wrong = cone("center", *arguments)
        assert (wrong.exit_code, wrong.stdout) == (2, "")
        assert words in wrong.stderr
    refused = cone("center", "--vectors", folder / "a.npy", "--device", "cpu")
    assert (refused.exit_code, refused.stderr) == (
        1,
        "Error: device: got a value together with vectors; no model is run, so leave it out\n",
    )
