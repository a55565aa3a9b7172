"""The files of a model, in a folder or a repository of the hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GGUF = ".gguf"


class ModelError(ValueError):
    """A model cannot be loaded as asked; the message names it and what is missing."""


class NoOutputError(ModelError):
    """The output of a model cannot be computed; its layers can. The message says why, to follow "because"."""


@dataclass(frozen=True)
class Source:
    """Where the files of a model are.

    Attributes:
        name: a folder, one file that is the whole model, or the id of a repository of the hub.
        revision: branch, tag or commit of a repository.
        gguf_file: of a folder or a repository the name of the GGUF file that is the model; None for other models.
    """

    name: str
    revision: str | None = None
    gguf_file: str | None = None

    @property
    def whole(self) -> Path | None:
        """The file that is the whole model; None where there are others beside it."""
        path = Path(self.name).expanduser()
        return path if path.is_file() else None

    @property
    def folder(self) -> Path | None:
        """The folder; None for a repository of the hub, and for one file."""
        path = Path(self.name).expanduser()
        return path if path.is_dir() else None

    @property
    def gguf(self) -> Path | None:
        """The GGUF file that is asked for, or the whole model, or the only weights of a folder; None for other models.

        Raises:
            ModelError: there is no such file, or none is asked for of a folder with several.
        """
        if self.gguf_file is not None:
            return self._named_gguf(self.gguf_file)
        if self.whole is not None:
            return self.whole if self.whole.suffix.lower() == GGUF else None
        if self.folder is None or self._weights_by_name(""):
            return None
        found = sorted(self.folder.glob(f"*{GGUF}"))
        if len(found) > 1:
            listed = ", ".join(path.name for path in found[:4]) + (", ..." if len(found) > 4 else "")
            has = f"it has {len(found)} GGUF files; give one of them: {listed}, by its path or as gguf_file"
            raise ModelError(f"model: the folder {self.name!r} cannot be loaded: {has}")
        return found[0] if found else None

    def _named_gguf(self, filename: str) -> Path:
        got = f"gguf_file: got {filename!r}"
        if not filename.lower().endswith(GGUF):
            raise ModelError(f"{got}; it must end in {GGUF}")
        if self.whole is not None:
            raise ModelError(f"{got} with the file {self.name}; it must be left out, for the file is the model")
        found = self.file(filename)
        if found is None:
            where = f"the folder {self.name!r}" if self.folder else f"the hub id {self.name!r}, or in the cache of it"
            raise ModelError(f"{got}; there is no such file in {where}")
        return found

    def file(self, filename: str) -> Path | None:
        """A file of the folder or repository, downloaded where need be; None where there is none."""
        if self.folder is not None:
            path = self.folder / filename
            return path if path.is_file() else None
        if self.whole is not None:
            return None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(self.name, filename, revision=self.revision))
        except (EntryNotFoundError, LocalEntryNotFoundError):
            return None

    def json(self, filename: str) -> Any:
        """What a JSON file holds; None where there is none.

        Raises:
            ModelError: the file is not JSON.
        """
        path = self.file(filename)
        if path is None:
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"model: {filename} of {self.name} cannot be read: {error!r}") from None

    def commit(self, subfolder: str) -> str | None:
        """The commit of a repository's files, which the hub's client keeps under snapshots/COMMIT."""
        found = self.file(self.gguf_file or inside(subfolder, "config.json"))
        parts = found.parts if found and self.folder is None else ()
        return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None

    def weights(self, subfolder: str = "") -> list[Path]:
        """The files of weights, those of one kind, by name; empty where there are none."""
        if self.whole is not None:
            return [self.whole]
        if self.gguf_file is not None:
            return [self._named_gguf(self.gguf_file)]
        named = self._weights_by_name(subfolder)
        return [self.gguf] if not (named or subfolder) and self.gguf is not None else named

    def _weights_by_name(self, subfolder: str) -> list[Path]:
        for stem in ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin"):
            index = self.json(inside(subfolder, f"{stem}.index.json"))
            names = [stem] if index is None else sorted(set(index["weight_map"].values()))
            files = [self.file(inside(subfolder, name)) for name in names]
            found = [file for file in files if file is not None]
            if found and len(found) == len(files):
                return found
        return []


def inside(subfolder: str, filename: str) -> str:
    """The name of a file of a subfolder, which is empty for the folder itself.

    Examples:
        >>> inside("1_Pooling", "config.json"), inside("", "config.json")
        ('1_Pooling/config.json', 'config.json')
    """
    return f"{subfolder}/{filename}" if subfolder else filename
