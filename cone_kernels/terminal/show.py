"""What a saved state is of, above the table of its layers or the view of its vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from cone_kernels.terminal.layers import print_layers
from cone_kernels.terminal.vectors import print_vectors

if TYPE_CHECKING:
    from cone_kernels.experiments.layers_result import LayersResult
    from cone_kernels.experiments.vectors_result import VectorsResult
    from cone_kernels.state.cone_state import ConeState, Moments


def print_state(console: Console, result: LayersResult) -> None:
    """The model, counts, fields, poolings and fingerprint of a state, and then as `print_layers`."""
    model, corpus, state = result.model, result.corpus, result.state
    known = {
        "type": model.get("model_type"),
        "dtype": model.get("dtype"),
        "weights": str(model["weights_sha256"])[:12] if model.get("weights_sha256") else None,
    }
    identity = [str(model["architecture"] or "unknown"), *(f"{what} {value}" for what, value in known.items() if value)]
    identity += ["after the final norm"] if model.get("final_norm") else []
    numbers = f"{state.layers[0]} to {state.layers[-1]}" if len(state.layers) > 1 else str(state.layers[0])
    layers = f"{len(state.layers)} ({numbers}), {state.sentence.dim} wide"
    counts = [f"{corpus['sentences']:,} sentences", f"{corpus['tokens']:,} tokens"]
    counts += [f"{corpus['dropped']['no_token']:,} sentences without a token"] if corpus["dropped"]["no_token"] else []
    counts += [f"up to {corpus['left_out']:,} of a layer zero or not finite"] if corpus["left_out"] else []
    lines = {
        "state": model["name"],
        "model": ", ".join(identity),
        "layers": layers,
        "of": ", ".join(counts),
        "keeps": _kept(state),
        "poolings": ", ".join([state.pooling, *state.poolings]),
        **({"output": _output(model, state.output)} if state.output is not None else {}),
        **({"prompt": str(model["prompt"])} if model.get("prompt") else {}),
        "fingerprint": result.manifest["state_fingerprint"],
    }
    _print_lines(console, lines)
    print_layers(console, result)


def print_vectors_state(console: Console, result: VectorsResult) -> None:
    """What of a state of vectors there is, and then as `print_vectors`."""
    lines = {"keeps": _kept(result.state), "fingerprint": result.manifest["state_fingerprint"]}
    _print_lines(console, lines)
    print_vectors(console, result)


def _output(model: dict[str, Any], output: Moments) -> str:
    about = model.get("output") or {}
    made = ", ".join(about.get("modules", []))
    return f"{output.dim} wide" + (f", of {made}; pooled by {about['pooling']}" if made else "")


def _kept(state: ConeState) -> str:
    optional = [name for name in ("second_moment", "unit_second_moment") if name in state.sentence.fields]
    return ", ".join(["first-order sums", *(name.replace("_", " ") + "s" for name in optional)])


def _print_lines(console: Console, lines: dict[str, str]) -> None:
    for what, said in lines.items():
        console.print(Text.assemble((f"{what:<12}", "dim"), str(said)), soft_wrap=True)
    console.print()
