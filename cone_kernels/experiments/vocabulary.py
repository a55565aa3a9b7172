"""The vocabulary of a model along an axis: its input embeddings projected, the furthest tokens by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cone_kernels.statistics.extremes import Extreme, Extremes, block_rows, project

# What models of transformers that keep embeddings narrower than their layers call the linear map between the two:
# ALBERT and RemBERT; ELECTRA, ConvBERT and RoFormer; DeBERTa; OPT.
_MAPS = ("embedding_hidden_mapping_in", "embeddings_project", "embed_proj", "project_in")

# Random directions that an axis is compared with.
_RANDOM, _RANDOM_SEED = 64, 18


class VocabularyError(ValueError):
    """The model's input embeddings cannot be projected on an axis of its layers; the message says why."""


@dataclass(frozen=True)
class TokenProjection:
    """A token as the tokenizer writes it, its id, and its projection."""

    token: str
    id: int
    projection: float

    def to_dict(self) -> dict[str, Any]:
        """The token as JSON data."""
        return {"token": self.token, "id": self.id, "projection": self.projection}


@dataclass(frozen=True)
class VocabularyProjection:
    """The ends of the vocabulary along each of k axes.

    Attributes:
        tokens: how many were projected.
        projected: what stands for a token, in words.
        rows_without_token: rows of the embedding matrix, left out, that the tokenizer has no token for: padding.
        rows_not_finite: rows left out because they hold NaN or an infinity.
        tokens_without_row: tokens of the tokenizer beyond the embedding matrix.
        furthest: for each axis how far out the tokens at its two ends lie on average, in standard deviations of all
            projections.
        random_furthest: the same of random directions: "mean", and "p95", which one in twenty exceeds.
        highest, lowest: for each axis its tokens, the furthest first.
    """

    tokens: int
    projected: str
    rows_without_token: int
    rows_not_finite: int
    tokens_without_row: int
    furthest: tuple[float, ...]
    random_furthest: Mapping[str, float]
    highest: tuple[tuple[TokenProjection, ...], ...]
    lowest: tuple[tuple[TokenProjection, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """What was projected, as JSON data; the tokens belong to the axes."""
        names = ("tokens", "projected", "rows_without_token", "rows_not_finite", "tokens_without_row")
        far = {"furthest": list(self.furthest), "random_furthest": dict(self.random_furthest)}
        return {**{name: getattr(self, name) for name in names}, **far}


@dataclass(frozen=True, eq=False)
class TokenEmbeddings:
    """The input embeddings of a model, to be projected on axes of its layers.

    Attributes:
        weight: (V, e) as they are stored.
        name, linear: the model's own map from them to the width of its layers; "" and None where they are as wide.
    """

    weight: Tensor
    name: str
    linear: nn.Linear | None

    @classmethod
    def of(cls, model: nn.Module, width: int) -> TokenEmbeddings:
        """Those of a model whose layers are so wide.

        Raises:
            VocabularyError: it has none, or none that can be brought to that width.
        """
        weight = _input_embeddings(model)
        return cls(weight, *_map_to_width(model, weight.shape[1], width))

    def directions(self, axes: Tensor) -> tuple[Tensor, Tensor]:
        """The axes (k, d) as directions (k, e) of the embeddings, and what is added to a projection on each, (k,)."""
        directions = axes.to(self.weight.device)
        offset = torch.zeros(len(axes), dtype=torch.float64, device=self.weight.device)
        if self.linear is not None:
            # (W e + b)·v = e·(Wᵀ v) + b·v: the axes go to the embeddings, which are many.
            if self.linear.bias is not None:
                offset = directions @ self.linear.bias.detach().double()
            directions = directions @ self.linear.weight.detach().double()  # (k, e)
        return directions, offset

    def projected(self, ids: Tensor, axes: Tensor) -> Tensor:
        """(n, k) float64 e·v of these tokens (n,) and axes (k, d), on the CPU; NaN of a token without a row."""
        directions, offset = self.directions(axes)
        found = torch.full((len(ids), len(axes)), torch.nan, dtype=torch.float64)
        for at in torch.split(torch.arange(len(ids)), block_rows(self.weight.shape[1])):
            there = at[ids[at] < len(self.weight)]
            rows = self.weight[ids[there].to(self.weight.device)]
            found[there] = (project(rows, directions) + offset).cpu()
        return found


def project_vocabulary(model: nn.Module, tokenizer: Any, axes: Tensor, count: int) -> VocabularyProjection:
    """The tokens whose input embeddings e lie furthest along each axis, by e·v.

    The rows of `model.get_input_embeddings().weight` as they are stored: no mean is subtracted (that would shift all
    tokens of an axis alike), no position added, no norm or factor applied. Embeddings narrower than the layers go
    through the model's own linear map to their width. Read in blocks; equal projections rank by the smaller id.

    Args:
        model: a Hugging Face model.
        tokenizer: its tokenizer.
        axes: (k, d) float64, d the width of the model's layers.
        count: tokens at each end.

    Raises:
        VocabularyError: the model has no input embeddings, or none that can be brought to width d.
        ValueError: `count` is below 1.

    Examples:
        >>> found = project_vocabulary(loaded.model, loaded.tokenizer, axes(moments).centered.vectors[-1], 20)
        >>> [token.token for token in found.highest[0]]
    """
    embeddings = TokenEmbeddings.of(model, axes.shape[1])
    weight = embeddings.weight
    directions, offset = embeddings.directions(axes)
    known = sorted(set(tokenizer.get_vocab().values()))
    ids = torch.tensor([number for number in known if number < len(weight)], device=weight.device)
    extremes, not_finite = Extremes(count, len(axes)), 0
    beside = _random_directions(weight.shape[1], weight.device)
    projections: list[Tensor] = []
    for block in torch.split(ids, block_rows(weight.shape[1])):
        rows = weight[block]
        finite = rows.isfinite().all(1)
        not_finite += int((~finite).sum())
        extremes.add(block[finite], project(rows[finite], directions) + offset)
        # A matrix product may round as it likes here.
        projections.append(rows[finite].float() @ torch.cat([directions, beside]).float().mT)
    far = _how_far_out(torch.cat(projections), count)
    random = far[len(axes) :]
    return VocabularyProjection(
        tokens=len(ids) - not_finite,
        projected="input embeddings" if embeddings.linear is None else f"input embeddings through {embeddings.name}",
        rows_without_token=len(weight) - len(ids),
        rows_not_finite=not_finite,
        tokens_without_row=len(known) - len(ids),
        furthest=tuple(far[: len(axes)].tolist()),
        random_furthest={"mean": float(random.mean()), "p95": float(random.quantile(0.95))},
        highest=tuple(_named(tokenizer, extremes.highest(axis)) for axis in range(len(axes))),
        lowest=tuple(_named(tokenizer, extremes.lowest(axis)) for axis in range(len(axes))),
    )


def _random_directions(dim: int, device: torch.device) -> Tensor:
    """(r, d) float64, always the same ones."""
    generator = torch.Generator().manual_seed(_RANDOM_SEED)
    drawn = torch.randn(_RANDOM, dim, dtype=torch.float64, generator=generator)
    return torch.nn.functional.normalize(drawn, dim=1).to(device)


def _how_far_out(projections: Tensor, count: int) -> Tensor:
    """(r,) of projections (V, r) on r directions: how many standard deviations from the mean both ends lie."""
    projections = projections.double()
    z = (projections - projections.mean(0)) / projections.std(0, correction=0)
    ends = [z.topk(min(count, len(z)), dim=0, largest=largest).values for largest in (True, False)]
    far: Tensor = (ends[0].mean(0) - ends[1].mean(0)) / 2
    return far.cpu()


def _input_embeddings(model: nn.Module) -> Tensor:
    try:
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        embeddings = None
    weight = getattr(embeddings, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        raise VocabularyError(f"{type(model).__name__} has no matrix of input embeddings")
    return weight.detach()


def _map_to_width(model: nn.Module, from_width: int, to_width: int) -> tuple[str, nn.Linear | None]:
    """The model's own map from its embeddings to its layers, by its module name; None where both are as wide."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in _MAPS
        and isinstance(module, nn.Linear)
        and (module.in_features, module.out_features) == (from_width, to_width)
    ]
    if len(found) == 1:
        return found[0]
    if from_width == to_width:
        return "", None
    raise VocabularyError(
        f"the input embeddings of {type(model).__name__} have width {from_width}, its layers {to_width}, "
        "and no linear map of one token's embedding to that width is known"
    )


def _named(tokenizer: Any, extremes: tuple[Extreme, ...]) -> tuple[TokenProjection, ...]:
    names = tokenizer.convert_ids_to_tokens([extreme.index for extreme in extremes])
    pairs = zip(names, extremes, strict=True)
    return tuple(TokenProjection(str(name), extreme.index, extreme.projection) for name, extreme in pairs)
