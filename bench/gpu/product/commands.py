"""The commands that run a model, with every option that touches a device."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import transformers
from PIL import Image
from safetensors.torch import load_file

from bench.gpu.product.case import Case, Place, Results
from bench.gpu.product.differences import SIXTEEN_BITS
from cone_kernels.names import METHODS
from tests.support.tiny_checkpoints import WORDS, word_tokenizer
from tests.support.tiny_encoders import SIDE, tiny_encoder

# Several shards, the last one not full.
_SHARDS = ("--shard-size", "128")
# As transformers says it, in this release or that.
_NO_FLASH_ATTENTION = r"package (for FlashAttention2|flash_attn) (doesn't seem to be|seems to be not) installed"
_GPU_BACKENDS = ("cuda", "triton")


class CommandError(RuntimeError):
    """A command ended with another exit code than 0; the message is what it printed."""


def cone(*arguments: object) -> str:
    """What `cone ARGUMENTS` prints on stdout, run in this process.

    Raises:
        CommandError: its exit code is not 0.
    """
    from click.testing import CliRunner

    from cone_kernels.cli import main

    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if done.exit_code != 0:
        raise CommandError(f"cone {arguments[0]}, exit code {done.exit_code}: {done.output.strip()}")
    return done.stdout


def command_cases() -> list[Case]:
    """Each command, with the options that touch a device."""
    plain = _command("layers")
    moments = _command("layers", "--second-moment")
    return [
        Case("layers --torch-compile", _command("layers", "--torch-compile"), plain),
        Case("layers --workers 2", _command("layers", "--workers", "2"), plain),
        Case("run of two models", _whole_run),
        Case("rotation of two models", _command("rotation", "--k", "2", models=2)),
        Case("layers", plain),
        Case("layers --second-moment", moments),
        *(
            Case(
                f"layers --second-moment --backend {name}",
                _command(*_MOMENTS, "--backend", name),
                moments,
                backend=name,
            )
            for name in _GPU_BACKENDS
        ),
        *(
            Case(f"layers --dtype {dtype}", _rounded(dtype), tolerance=SIXTEEN_BITS)
            for dtype in ("float16", "bfloat16")
        ),
        Case("layers --pooling model", _command("layers", "--pooling", "model")),
        Case("axis --layer -1", _command("axis", "--layer", "-1")),
        Case("layers --token-budget auto", _command("layers", "--token-budget", "auto"), plain),
        Case("layers --attention eager", _command("layers", "--attention", "eager"), plain),
        Case(
            "layers --packed",
            _rounded("bfloat16", "--packed"),
            _rounded("bfloat16"),
            tolerance=SIXTEEN_BITS,
            refusal="packed: got True with attention 'sdpa'",  # torch's own for packed rows needs a GPU
        ),
        Case(
            "layers --packed --attention flash_attention_2",
            _rounded("bfloat16", "--packed", "--attention", "flash_attention_2"),
            _rounded("bfloat16"),
            tolerance=SIXTEEN_BITS,
            refusal=_NO_FLASH_ATTENTION,
        ),
        Case("pooling", _command("pooling")),
        Case("pooling --pooling all", _command("pooling", "--pooling", "all")),
        Case("axis --k 2 --save-vectors", _axis),
        Case("tokens", _command("tokens")),
        Case("modality-gap", _gap),
        *(Case(f"center --method {method}", _command("center", "--method", method)) for method in METHODS),
        Case("layers --checkpoint, then --resume", _resumed, moments),
        Case("layers --shard of two, then merge and show", _merged, _shown),
        Case("layers --save-state of two models, then compare, show and center", _compared),
    ]


_MOMENTS = ("layers", "--second-moment")


def _command(*arguments: str, models: int = 1) -> Results:
    """What a command's JSON says."""

    def results(place: Place, device: str) -> Any:
        return json.loads(cone(*arguments, *_inputs(place, device, models), "--json", "-"))

    return results


def _rounded(dtype: str, *options: str) -> Results:
    """`layers` in 16 bits, without the dimensions of which rounding may change the order."""
    return _command("layers", "--rogue", "0", "--dtype", dtype, *options)


def _inputs(place: Place, device: str, models: int = 1) -> list[object]:
    named = [part for model in place.models[:models] for part in ("--model", model)]
    return [*named, "--corpus", place.corpus, "--device", device, *_SHARDS]


def _whole_run(place: Place, device: str) -> Any:
    out = place.scratch / "run"
    cone("run", *_inputs(place, device, models=2), "--pooling", "all", "--out", out)
    files = sorted(file.name for file in out.iterdir())
    return {"files": files, "results": json.loads((out / "results.json").read_text(encoding="utf-8"))}


def _axis(place: Place, device: str) -> Any:
    vectors = place.scratch / "vectors.safetensors"
    found = cone("axis", *_inputs(place, device), "--k", "2", "--save-vectors", vectors, "--json", "-")
    return {"result": json.loads(found), "vectors": load_file(vectors)}


def _gap(place: Place, device: str) -> Any:
    folder, photos, captions = (place.scratch / name for name in ("clip", "photos", "captions.txt"))
    tiny_encoder("clip").save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    sizes: Any = {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": False}
    transformers.CLIPImageProcessorPil(**sizes).save_pretrained(folder)
    photos.mkdir()
    noise = np.random.default_rng(0)
    for at in range(70):
        Image.fromarray(noise.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(photos / f"{at:02}.png")
    words = [" ".join(WORDS[(i * 7 + i // 9 + j * 3) % len(WORDS)] for j in range(1 + i * 5 % 9)) for i in range(70)]
    captions.write_text("\n".join(words) + "\n", encoding="utf-8")
    named = ("--model", folder, "--images", photos, "--captions", captions)
    return json.loads(cone("modality-gap", *named, "--device", device, "--json", "-"))


def _resumed(place: Place, device: str) -> Any:
    checkpoint = ("--checkpoint", place.scratch / "checkpoint", "--checkpoint-every", "0")
    run = (*_MOMENTS, *_inputs(place, device), *checkpoint)
    cone(*run)
    return json.loads(cone(*run, "--resume", "--json", "-"))


def _merged(place: Place, device: str) -> Any:
    parts = [place.scratch / f"part-{part}" for part in range(2)]
    for part, file in enumerate(parts):
        cone(*_MOMENTS, *_inputs(place, device), "--shard", f"{part}/2", "--save-state", file)
    cone("merge", *parts, "--output", place.scratch / "whole")
    return json.loads(cone("show", place.scratch / "whole", "--json", "-"))


def _shown(place: Place, device: str) -> Any:
    cone(*_MOMENTS, *_inputs(place, device), "--save-state", place.scratch / "whole")
    return json.loads(cone("show", place.scratch / "whole", "--json", "-"))


def _compared(place: Place, device: str) -> Any:
    states = [place.scratch / f"state-{model}" for model in range(2)]
    for model, state in zip(place.models, states, strict=True):
        cone(*_MOMENTS, "--model", model, "--corpus", place.corpus, "--device", device, "--save-state", state)
    return {
        "compare": json.loads(cone("compare", *states, "--json", "-")),
        "show": json.loads(cone("show", states[0], "--json", "-")),
        "center": json.loads(cone("center", "--state", states[0], "--method", "whitening", "--json", "-")),
    }
