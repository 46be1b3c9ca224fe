"""A checkpoint directory: what is in it, held against its config.

A checkpoint is `config.json`, one `model.safetensors` or the shards that
`model.safetensors.index.json` lists, and usually `tokenizer.json`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, ConfigError
from ..families import Family, find_family
from ..parameters import Shape, parameter_shapes
from ..spec import ModelSpec
from .encodings import find_encoding
from .encodings.encoding import Encoding
from .headers import StoredTensor, is_copy, is_zero, read_header
from .tensors import StoredParameter, TensorReader

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = ("F32", "F16", "BF16")

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
            self.spec: ModelSpec = self._with_generation_config(
                self.family.read_config(self.config)
            )
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
        self._unproven: list[str] = []
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

    def check_leftovers(self) -> None:
        """Reads the tensors that are left out as they are said to change nothing: those which
        repeat the embedding, and biases of zero.

        Raises:
            CheckpointError: one of them is neither, so that the model would miss it.
        """
        embedding = self._headers[self.family.locate("embed.weight").name]
        for name in self._unproven:
            tensor = self._headers[name]
            if not (is_copy(tensor, embedding) if name == self._tied_head else is_zero(tensor)):
                raise self._no_place(name)

    def _with_generation_config(self, spec: ModelSpec) -> ModelSpec:
        """generation_config.json has the last word on what ends the text."""
        path = self.path / "generation_config.json"
        if not path.exists():
            return spec
        value = read_json(path).get("eos_token_id")
        if value is None:
            return spec
        ids = value if isinstance(value, list) else [value]
        if not all(type(item) is int for item in ids):
            raise ConfigError(
                f"{path.name}: eos_token_id = {value!r} is not supported: expected an integer or a "
                "list of integers"
            )
        return replace(spec, eos_token_ids=tuple(ids))

    def _listed_files(self) -> dict[str, str]:
        """Tensor name → file name by the index; `{"": file}` where there is no index."""
        index_path, single = self.path / INDEX_FILE, self.path / SINGLE_FILE
        if single.exists():  # as transformers does where there are both
            return {"": SINGLE_FILE}
        if index_path.exists():
            weight_map = read_json(index_path).get("weight_map")
            if not isinstance(weight_map, dict) or not all(
                isinstance(name, str) and Path(name).name == name for name in weight_map.values()
            ):
                raise CheckpointError(f"{index_path}: weight_map is missing or names other folders")
            return weight_map
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

    def _find_sources(self, listed: Mapping[str, str]) -> dict[str, StoredParameter]:
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
                    sources[parameter] = StoredParameter(shape, location, tensors, matrix)
                    continue
            expected = place.stored_shape(shape, self._num_experts(parameter))
            tensor = self._tensor(name, expected, DTYPES, listed)
            sources[parameter] = StoredParameter(shape, location, {"": tensor})
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
                raise self._no_place(name)
        return tuple(
            f"multi-token prediction: {prefix} ({count} tensor{'s' if count > 1 else ''})"
            for prefix, count in sorted(skipped.items())
        )

    def _is_without_effect(self, name: str) -> bool:
        """Going by names and headers; `check_leftovers` reads what that does not settle."""
        if name.endswith(_BUFFERS):
            return True
        if name == self._tied_head:
            tensor = self._headers[name]
            embedding = self._headers[self.family.locate("embed.weight").name]
            self._unproven.append(name)
            return (tensor.shape, tensor.dtype) == (embedding.shape, embedding.dtype)
        module, _, last = name.rpartition(".")
        if self._encoding is None:
            return False
        if last in self._encoding.extras:
            return True
        # Older packers of GPTQ give each matrix a bias, zero where the model has none.
        if last != "bias" or f"{module}.qweight" not in self._used:
            return False
        self._unproven.append(name)
        return True

    @property
    def _tied_head(self) -> str | None:
        """Name that the head would have if it were not tied to the embedding; None if it is not."""
        tied = self.spec.tie_word_embeddings
        return self.family.locate("head.weight").name if tied else None

    def _no_place(self, name: str) -> CheckpointError:
        tensor = self._headers[name]
        return CheckpointError(
            f"{tensor.file}: tensor {name} {list(tensor.shape)} has no place in the model that "
            "config.json describes; a key of config.json is missing or wrong, or the family has a "
            "part that pocketmoe does not know"
        )


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
