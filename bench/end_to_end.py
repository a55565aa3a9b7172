"""What watching a model costs: whole runs and forwards under a probe, against the bare forward of the same sentences.

python -m bench.end_to_end [--device cuda|cpu] [--shape NAME ...] [--sentences N] [--out FILE]

Models have random weights, bfloat16 on a GPU and float32 on a CPU, and the sentences are as long as SNLI's. Steady
figures are medians of passes in turn, after one pass of each; the first pass, in which a GPU's libraries make a plan
for each new shape of a batch, is timed apart.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.generated import SHAPES, sentences, write_model
from bench.timing import medians
from cone_kernels import ConeProbe
from cone_kernels.models import LoadedModel, load_model
from cone_kernels.runs.batches import length_batches
from cone_kernels.runs.runner import TOKEN_BUDGET, run
from cone_kernels.state.cone_state import ConeState

BARE, PLAIN, PROBE, MOMENTS = "bare", "plain torch's hidden states", "probe", "probe, second moments"
RUN, RUN_MOMENTS = "run", "run, second moments"
Pass = Callable[[], ConeState | None]


def batches_of(loaded: LoadedModel, texts: Sequence[str]) -> list[Tensor]:
    """Token ids (B, T) of all sentences at once, in batches without padding, on the model's device."""
    ids = loaded.tokenizer(list(texts))["input_ids"]
    cut = length_batches([len(row) for row in ids], TOKEN_BUDGET[loaded.device.type])
    return [torch.tensor([ids[index] for index in batch]).to(loaded.device) for batch in cut]


@contextmanager
def passes(loaded: LoadedModel, batches: Sequence[Tensor]) -> Iterator[dict[str, Pass]]:
    """Forwards of all batches by what is done beside them; each returns when the device is done.

    The probes are attached throughout, as in a run or a job, and paused while they have no turn; a pass under one
    gives its state, of these sentences. Plain torch takes the mean over the tokens of every layer, in float32, and
    keeps nothing.
    """

    def forward(**options: bool) -> None:
        for batch in batches:
            output = loaded.model(input_ids=batch, attention_mask=torch.ones_like(batch), **options)
            for layer in output.hidden_states or () if options else ():
                layer.float().mean(1)
        synchronize(loaded.device)

    with ExitStack() as attached, torch.inference_mode():

        def probed(second_moment: bool) -> Pass:
            probe = attached.enter_context(ConeProbe(loaded.model, second_moment=second_moment))
            probe.pause()

            def one_pass() -> ConeState:
                probe.reset()
                probe.resume()
                forward()
                probe.pause()
                _ = probe.state.sentence.sums  # what still waits to be added is part of the work
                synchronize(loaded.device)
                return probe.state

            return one_pass

        yield {
            BARE: forward,
            PLAIN: lambda: forward(output_hidden_states=True),
            PROBE: probed(second_moment=False),
            MOMENTS: probed(second_moment=True),
        }


def measured(loaded: LoadedModel, texts: Sequence[str], rounds: int = 2) -> dict[str, Any]:
    """Seconds of the passes and of whole runs, first and steady, and how they compare with the bare forward.

    Returns:
        sentences, tokens; batches and shapes (distinct (B, T)) of the bare forward; run_batches and run_shapes of a
        run; first_seconds, seconds: by what was done; over_bare: what each costs beyond the bare forward;
        run_speed: sentences per second of a whole run over those of the bare forward.
    """
    batches = batches_of(loaded, texts)
    first: dict[str, float] = {}
    with passes(loaded, batches) as by_name:
        for name, one_pass in by_name.items():
            first[name] = _seconds(one_pass)
        seconds = medians(by_name, rounds=rounds)
    over_bare = {name: taken / seconds[BARE] - 1 for name, taken in seconds.items() if name != BARE}

    def whole(second_moment: bool = False) -> None:
        run(loaded, texts, second_moment=second_moment)
        synchronize(loaded.device)

    with _shapes_seen(loaded) as run_batches:
        first[RUN] = _seconds(whole)
    seconds[RUN] = _seconds(whole)
    seconds[RUN_MOMENTS] = _seconds(partial(whole, second_moment=True))
    return {
        "sentences": len(texts),
        "tokens": sum(batch.numel() for batch in batches),
        "batches": len(batches),
        "shapes": len({batch.shape for batch in batches}),
        "run_batches": len(run_batches),
        "run_shapes": len(set(run_batches)),
        "first_seconds": first,
        "seconds": seconds,
        "over_bare": over_bare,
        "run_speed": {name: seconds[BARE] / seconds[name] for name in (RUN, RUN_MOMENTS)},
    }


def synchronize(device: torch.device) -> None:
    """Waits until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(one_pass: Pass) -> float:
    start = time.perf_counter()
    one_pass()
    return time.perf_counter() - start


@contextmanager
def _shapes_seen(loaded: LoadedModel) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of what the model is called with, calibration included."""
    seen: list[tuple[int, ...]] = []

    def note(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(tuple(kwargs["input_ids"].shape))

    handle = loaded.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--shape", action="append", choices=list(SHAPES), help="default: BERT-large, MiniLM; CPU: small"
    )
    parser.add_argument("--sentences", type=int, help="default 16384, on a CPU 300")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON, shape after shape")
    arguments = parser.parse_args()
    on_gpu = arguments.device.startswith("cuda")
    shapes = arguments.shape or (["BERT-large", "MiniLM"] if on_gpu else ["small"])
    texts = sentences(arguments.sentences or (16_384 if on_gpu else 300))
    found: dict[str, Any] = {}
    for shape in shapes:
        with tempfile.TemporaryDirectory() as folder:
            dtype = torch.bfloat16 if on_gpu else torch.float32
            write_model(Path(folder), shape, dtype=dtype, device=arguments.device)
            loaded = load_model(folder, device=arguments.device, dtype="auto")
        found[shape] = measured(loaded, texts)
        print(f"{shape}: {json.dumps(found[shape], indent=2)}", flush=True)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
