"""A centering as a module of sentence-transformers, so that `encode` returns centred vectors."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from cone_kernels.centering import Centering
from cone_kernels.extras import require

require("sentence_transformers", "train", "CenteringModule")

from sentence_transformers.base.modules import Module  # noqa: E402

_FILE = "centering.safetensors"


class CenteringModule(Module):  # type: ignore[misc]
    """Applies a centering to the sentence vectors of a `SentenceTransformer`.

    It belongs where the vectors are those that it was fitted on: one that was fitted on a model's output at the very
    end; one that was fitted on the last layer after the Pooling, before Normalize where there is one, in a model that
    pools as the layer was pooled.

    A saved model names this class in its modules.json, and sentence-transformers loads classes of other packages only
    with `SentenceTransformer(folder, trust_remote_code=True)`.

    Args:
        centering: what is applied; its width is that of the vectors.

    Raises:
        TypeError: `centering` is no `Centering`.

    Examples:
        >>> model = SentenceTransformer("all-MiniLM-L6-v2")  # Transformer, Pooling, Normalize
        >>> model.append(CenteringModule(Centering.load("centering.safetensors")))  # `cone center -o` of its output
        >>> model.encode(["Two dogs run."])
    """

    def __init__(self, centering: Centering) -> None:
        super().__init__()
        if not isinstance(centering, Centering):
            raise TypeError(f"centering: got {type(centering).__name__}; it must be a Centering")
        self.centering = centering

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Centres `features["sentence_embedding"]` (B, D), in place of what was there."""
        vectors: Tensor = features["sentence_embedding"]
        features["sentence_embedding"] = self.centering(vectors)
        return features

    def get_embedding_dimension(self) -> int:
        """The width of the vectors."""
        return self.centering.dim

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Writes the centering into the module's folder; always as safetensors.

        Raises:
            ValueError: `safe_serialization` is False.
        """
        if not safe_serialization:
            raise ValueError(
                "safe_serialization: got False; it must be True, as a centering is saved as safetensors only"
            )
        self.centering.save(os.path.join(output_path, _FILE))

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> CenteringModule:
        """Reads what `save` wrote, from a folder or the hub.

        Raises:
            FileNotFoundError: the model has no such file.
            StateFileError: the file is damaged.
        """
        found = cls.load_file_path(
            model_name_or_path,
            _FILE,
            subfolder=subfolder,
            token=token,
            cache_folder=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
        )
        if found is None:
            raise FileNotFoundError(f"{model_name_or_path} has no {subfolder}/{_FILE}")
        return cls(Centering.load(found))

    def __repr__(self) -> str:
        return f"CenteringModule({self.centering!r})"
