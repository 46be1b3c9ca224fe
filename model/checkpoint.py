"""Reading a checkpoint directory lazily, and writing one.

A checkpoint is `config.json`, one `model.safetensors` or the shards that
`model.safetensors.index.json` lists, and usually `tokenizer.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError
from .families import Family, find_family
from .parameters import Shape, parameter_shapes
from .spec import ModelSpec

if TYPE_CHECKING:
    import torch

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {"F32": 4, "F16": 2, "BF16": 2}


class Checkpoint:
    """A checkpoint whose headers have been read and checked against its config.

    Raises (when opened):
        CheckpointError: a file is missing, unreadable or truncated; a tensor is missing or has
            another shape or type than the config says.
        ConfigError: the family or a value of the config is not supported.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_dir():
            what = "is a file" if self.path.exists() else "does not exist"
            raise CheckpointError(
                f"checkpoint {self.path} {what}; give a directory with config.json and "
                "*.safetensors"
            )
        self.config = read_json(self.path / "config.json")
        try:
            self.family: Family = find_family(self.config)
            self.spec: ModelSpec = self.family.read_config(_with_generation_config(self))
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {error}") from error
        self.files = self._tensor_files()
        self.dtypes = self._check_tensors()

    @property
    def tokenizer_path(self) -> Path:
        """`tokenizer.json`, whether it exists or not."""
        return self.path / "tokenizer.json"

    def tensors(self) -> TensorReader:
        """A reader to be used in a `with` block; leaving it unmaps the files."""
        return TensorReader(self)

    def stored_bytes(self) -> int:
        """Size of the parameters as they are stored."""
        total = 0
        for name, shape in parameter_shapes(self.spec).items():
            size = DTYPES[self.dtypes[name]]
            for length in shape:
                size *= length
            total += size
        return total

    def _tensor_files(self) -> dict[str, Path]:
        """Checkpoint tensor name → file."""
        index_path, single = self.path / INDEX_FILE, self.path / SINGLE_FILE
        if index_path.exists():
            weight_map = read_json(index_path).get("weight_map")
            if not isinstance(weight_map, dict) or not all(
                isinstance(name, str) and Path(name).name == name for name in weight_map.values()
            ):
                raise CheckpointError(f"{index_path}: weight_map is missing or names other folders")
            files = {name: self.path / file for name, file in weight_map.items()}
        elif single.exists():
            files = dict.fromkeys(self._header(single), single)
        else:
            raise CheckpointError(
                f"{self.path} has neither {SINGLE_FILE} nor {INDEX_FILE}; "
                "pocketmoe reads safetensors checkpoints"
            )
        for file in sorted(set(files.values())):
            if not file.is_file():
                raise CheckpointError(
                    f"{file} is missing, and {INDEX_FILE} lists it; download the checkpoint again"
                )
        return files

    def _header(self, file: Path) -> dict[str, tuple[Shape, str]]:
        """Tensor name → shape and dtype. Reads no weights."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="numpy") as handle:
                slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
                return {
                    name: (tuple(part.get_shape()), part.get_dtype())
                    for name, part in slices.items()
                }
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} cannot be read ({error}); it may be truncated: download it again"
            ) from error

    def _check_tensors(self) -> dict[str, str]:
        """Holds every parameter against its tensor; returns parameter → dtype."""
        headers = {file: self._header(file) for file in sorted(set(self.files.values()))}
        dtypes = {}
        for parameter, expected in parameter_shapes(self.spec).items():
            name = self.family.tensor_name(parameter)
            file = self.files.get(name)
            if file is None or name not in headers[file]:
                where = file or self.path
                raise CheckpointError(f"{where}: tensor {name} is missing; config.json asks for it")
            shape, dtype = headers[file][name]
            if shape != expected:
                raise CheckpointError(
                    f"{file}: tensor {name} has shape {list(shape)}, but config.json says "
                    f"{list(expected)}"
                )
            if dtype not in DTYPES:
                raise CheckpointError(
                    f"{file}: tensor {name} is stored as {dtype}; "
                    f"pocketmoe reads {', '.join(DTYPES)}"
                )
            dtypes[parameter] = dtype
        return dtypes


class TensorReader:
    """Reads tensors one by one; the files stay mapped only until the `with` block ends."""

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint
        self._handles: dict[Path, Any] = {}

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._handles.clear()

    def read(self, parameter: str) -> torch.Tensor:
        """One parameter, in the dtype that it is stored in."""
        from safetensors import SafetensorError, safe_open

        name = self._checkpoint.family.tensor_name(parameter)
        file = self._checkpoint.files[name]
        try:
            if file not in self._handles:
                self._handles[file] = safe_open(file, framework="pt")
            return self._handles[file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: tensor {name} cannot be read ({error})") from error


def _with_generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config, with the end-of-text ids of generation_config.json, which has the last word."""
    path = checkpoint.path / "generation_config.json"
    if not path.exists():
        return checkpoint.config
    generation = read_json(path)
    ids = {
        key: generation[key]
        for key in ("eos_token_id", "bos_token_id")
        if generation.get(key) is not None
    }
    return {**checkpoint.config, **ids}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: the file is missing, unreadable, or not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; is {path.parent} a checkpoint?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return data


def write_checkpoint(
    path: Path,
    config: Mapping[str, Any],
    parameters: Mapping[str, torch.Tensor],
    texts: Mapping[str, str],
) -> None:
    """Writes config.json, model.safetensors and `texts` (file name → content) into a directory."""
    from safetensors.torch import save

    family = find_family(config)
    path.mkdir(parents=True, exist_ok=True)
    weights = path / (SINGLE_FILE + ".tmp")
    tensors = {family.tensor_name(name): tensor.contiguous() for name, tensor in parameters.items()}
    weights.write_bytes(save(tensors, metadata={"format": "pt"}))
    os.replace(weights, path / SINGLE_FILE)
    for name, text in {"config.json": json.dumps(dict(config), indent=2) + "\n", **texts}.items():
        temporary = path / (name + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path / name)
