"""Models from a folder or the Hugging Face hub, with their tokenizers."""

from cone_kernels.models.loaded import LoadedModel, ModelLike
from cone_kernels.models.loading import load_model
from cone_kernels.models.source import ModelError

__all__ = ["LoadedModel", "ModelError", "ModelLike", "load_model"]
