"""What a model is compared with: its architecture with random weights, or the model on tokens in a random order."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cone_kernels.models.compiled_blocks import compile_blocks
from cone_kernels.models.source import ModelError
from cone_kernels.names import BASELINES

if TYPE_CHECKING:
    from cone_kernels.models.loaded import LoadedModel

_SEED = 18


def baseline_of(loaded: LoadedModel, baseline: str) -> LoadedModel:
    """The baseline of a model, which itself stays as it is.

    Args:
        loaded: the model.
        baseline: one of `cone_kernels.names.BASELINES`. "random-weights": new weights, drawn as the architecture does
            before training, always the same ones; modules after the transformer that have weights of their own give no
            output then. "shuffled-tokens": the tokens of each shard in an order drawn by chance, the special ones and
            the lengths of sentences as they are; always the same order.

    Raises:
        ModelError: the architecture cannot be made anew.
        ValueError: there is no such baseline, or the tokens are those of images.

    Examples:
        >>> baseline_of(load_model("sentence-transformers/all-MiniLM-L6-v2"), "random-weights").info["baseline"]
        'random-weights'
    """
    if baseline not in BASELINES:
        raise ValueError(f"baseline: got {baseline!r}; it must be one of {', '.join(BASELINES)}")
    info = {**loaded.info, "baseline": baseline}
    if baseline == "shuffled-tokens":
        if loaded.image_processor is not None:
            raise ValueError("baseline: got 'shuffled-tokens' for a model of images; it must be random-weights")
        return replace(loaded, info=info)
    model = _with_random_weights(loaded.model)
    if info["compiled"]:
        compile_blocks(model)
    info["weights_sha256"] = None
    output = loaded.output
    if output is not None and output.weights_sha256 is not None:
        reason = "modules after the transformer have weights of their own, and those of this baseline are random"
        info["output"] = {"modules": list(output.modules), "reason": reason}
        output = None
    return replace(loaded, model=model, output=output, info=info)


def _with_random_weights(model: Any) -> Any:
    import torch

    like = next(model.parameters())
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            made = type(model)(copy.deepcopy(model.config))
    # The class of any architecture is called here, and fails in ways of its own.
    except Exception as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"baseline: {type(model).__name__} cannot be made with random weights: {why}") from error
    return made.to(like.device, like.dtype).eval()
