"""Models from a folder or the Hugging Face hub, with their tokenizers."""

from cone_kernels.models.loading import LoadedModel, ModelError, load_model

__all__ = ["LoadedModel", "ModelError", "load_model"]
