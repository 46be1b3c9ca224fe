"""A checkpoint directory: what is in it, held against its config; and writing one.

A checkpoint is `config.json`, one `model.safetensors` or the shards that
`model.safetensors.index.json` lists, and usually `tokenizer.json`.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError
from .encodings import find_encoding
from .encodings.encoding import Encoding
from .families import Family, find_family
from .families.names import Place
from .headers import StoredTensor, read_header
from .parameters import Shape, parameter_shapes
from .spec import ModelSpec
from .tensors import Source, TensorReader

if TYPE_CHECKING:
    import torch

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = ("F32", "F16", "BF16")

_SAMPLE = 1 << 16  # bytes

# Buffers that old checkpoints hold, made from the config alone.
_BUFFERS = ("rotary_emb.inv_freq", "masked_bias")
_PREDICTORS = re.compile(r"(?:.*?\.)?mtp(?=[._])")


class Checkpoint:
    """A checkpoint whose headers have been read and checked against its config.

    files: the file of each tensor. dtypes: how each parameter is stored, a type of safetensors or
    the name of the encoding. encoding: its name; None where there is none. skipped: lines about
    tensors that are left out, as they are those of layers that predict tokens further ahead.

    Raises (when opened):
        CheckpointError: a file is missing, unreadable or truncated; a tensor is missing, has
            another shape or type than the config says, or is one that the config does not know.
        ConfigError: the family, the encoding or a value of the config is not supported.
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
            self._encoding: Encoding | None = find_encoding(self.config)
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {error}") from error
        self.encoding = self._encoding.name if self._encoding is not None else None
        listed = self._listed_files()
        self._headers = self._read_headers(listed)
        self.files = {name: tensor.file for name, tensor in self._headers.items()}
        self._sources = self._find_sources(listed)
        self._used = {name for source in self._sources.values() for name in source.names}
        self.dtypes = {
            parameter: next(iter(source.tensors.values())).dtype
            if source.matrix is None
            else str(self.encoding)
            for parameter, source in self._sources.items()
        }
        self.skipped = self._check_rest()

    @property
    def tokenizer_path(self) -> Path:
        """`tokenizer.json`, whether it exists or not."""
        return self.path / "tokenizer.json"

    def tensors(self) -> TensorReader:
        """A reader to be used in a `with` block; leaving it closes the files."""
        return TensorReader(self._sources)

    def stored_bytes(self) -> int:
        """Size of the parameters as they are stored."""
        return sum(self._headers[name].nbytes for name in self._used)

    def _listed_files(self) -> dict[str, str]:
        """Tensor name → file name by the index; `{"": file}` where there is no index."""
        index_path, single = self.path / INDEX_FILE, self.path / SINGLE_FILE
        if index_path.exists():
            weight_map = read_json(index_path).get("weight_map")
            if not isinstance(weight_map, dict) or not all(
                isinstance(name, str) and Path(name).name == name for name in weight_map.values()
            ):
                raise CheckpointError(f"{index_path}: weight_map is missing or names other folders")
            return weight_map
        if single.exists():
            return {"": SINGLE_FILE}
        raise CheckpointError(
            f"{self.path} has neither {SINGLE_FILE} nor {INDEX_FILE}; "
            "pocketmoe reads safetensors checkpoints"
        )

    def _read_headers(self, listed: Mapping[str, str]) -> dict[str, StoredTensor]:
        headers: dict[str, StoredTensor] = {}
        for file_name in sorted(set(listed.values())):
            file = self.path / file_name
            if not file.is_file():
                raise CheckpointError(
                    f"{file} is missing, and {INDEX_FILE} lists it; download the checkpoint again"
                )
            for name, tensor in read_header(file).items():
                if listed.get(name, file_name) == file_name:
                    headers[name] = tensor
        return headers

    def _find_sources(self, listed: Mapping[str, str]) -> dict[str, Source]:
        """Holds every parameter against its tensors."""
        sources = {}
        for parameter, shape in parameter_shapes(self.spec).items():
            location = self.family.locate(parameter)
            place, name = location.place, location.name
            if self._encoding is not None and len(shape) == 2:
                # Encodings hold the rows of a matrix in order, whatever the plain layout is.
                rows = shape[0] if place.rows == "all" else 2 * shape[0]
                matrix = self._encoding.find(name, (rows, shape[1]), self._headers)
                if matrix is not None:
                    experts = (self._num_experts(parameter),) if place.stacked else ()
                    tensors = {
                        key: self._tensor(part.tensor, (*experts, *part.shape), part.dtypes, listed)
                        for key, part in matrix.parts.items()
                    }
                    sources[parameter] = Source(shape, location, tensors, matrix)
                    continue
            expected = place.stored_shape(shape, self._num_experts(parameter))
            tensor = self._tensor(name, expected, DTYPES, listed)
            sources[parameter] = Source(shape, location, {"": tensor})
        return sources

    def _num_experts(self, parameter: str) -> int:
        """Experts of the layer that a parameter belongs to."""
        part, _, rest = parameter.partition(".")
        router = self.spec.layers[int(rest.partition(".")[0])].router if part == "layers" else None
        return router.num_experts if router is not None else 1

    def _tensor(
        self, name: str, shape: Shape, dtypes: tuple[str, ...], listed: Mapping[str, str]
    ) -> StoredTensor:
        """The tensor of that name, if it is as it has to be."""
        tensor = self._headers.get(name)
        if tensor is None:
            where = self.path / listed.get(name, "")
            raise CheckpointError(f"{where}: tensor {name} is missing; config.json asks for it")
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file}: tensor {name} has shape {list(tensor.shape)}, but config.json "
                f"says {list(shape)}"
            )
        if tensor.dtype not in dtypes:
            encoded = f" for {self.encoding}" if self.encoding else ""
            raise CheckpointError(
                f"{tensor.file}: tensor {name} is stored as {tensor.dtype}; "
                f"pocketmoe reads {', '.join(dtypes)}{encoded}"
            )
        return tensor

    def _check_rest(self) -> tuple[str, ...]:
        """Of tensors that no parameter is made of: refuses those that the model would miss, passes
        over those without effect, and returns lines about layers that are skipped."""
        prefixes = [f"{prefix.rstrip('.')}." for prefix in self.family.predictors(self.config)]
        skipped: Counter[str] = Counter()
        for name in sorted(self._headers.keys() - self._used):
            prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
            match = _PREDICTORS.match(name)
            if prefix is not None:
                skipped[prefix.rstrip(".")] += 1
            elif match is not None:
                skipped[match.group()] += 1
            elif not self._is_without_effect(name):
                raise CheckpointError(
                    f"{self._headers[name].file}: tensor {name} {list(self._headers[name].shape)} "
                    "has no place in the model that config.json describes; a key of config.json is "
                    "missing or wrong, or the family has a part that pocketmoe does not know"
                )
        return tuple(
            f"multi-token prediction: {prefix} ({count} tensor{'s' if count > 1 else ''})"
            for prefix, count in sorted(skipped.items())
        )

    def _is_without_effect(self, name: str) -> bool:
        if name.endswith(_BUFFERS):
            return True
        if self.spec.tie_word_embeddings and name == self.family.locate("head.weight").name:
            embedding = self._headers[self.family.locate("embed.weight").name]
            return _is_copy(self._headers[name], embedding)
        module, _, last = name.rpartition(".")
        if self._encoding is None:
            return False
        if last in self._encoding.extras:
            return True
        # Older packers of GPTQ give each matrix a bias, zero where the model has none.
        return (
            last == "bias" and f"{module}.qweight" in self._used and _is_zero(self._headers[name])
        )


def _is_copy(tensor: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors are the same, going by their first and last bytes."""
    if (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
        return False
    last = max(tensor.nbytes - _SAMPLE, 0)
    return all(_bytes(tensor, start) == _bytes(other, start) for start in (0, last))


def _is_zero(tensor: StoredTensor) -> bool:
    return not any(any(_bytes(tensor, start)) for start in range(0, tensor.nbytes, _SAMPLE))


def _bytes(tensor: StoredTensor, start: int) -> bytes:
    """Up to so many bytes of a tensor from `start` on."""
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.offset + start)
        return stream.read(min(_SAMPLE, tensor.nbytes - start))


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
    """Writes config.json, model.safetensors and `texts` (file name → content) into a directory.

    Raises:
        ConfigError: the family does not hold each parameter in a tensor of its own.
    """
    from safetensors.torch import save

    family = find_family(config)
    for place in (family.locate(name).place for name in parameters):
        if place != Place(place.name):
            raise ConfigError(f"checkpoints of family {family.model_type} can only be read")
    path.mkdir(parents=True, exist_ok=True)
    weights = path / (SINGLE_FILE + ".tmp")
    tensors = {family.locate(name).name: tensor.contiguous() for name, tensor in parameters.items()}
    weights.write_bytes(save(tensors, metadata={"format": "pt"}))
    os.replace(weights, path / SINGLE_FILE)
    for name, text in {"config.json": json.dumps(dict(config), indent=2) + "\n", **texts}.items():
        temporary = path / (name + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path / name)
