"""Quantized checkpoints as they are published, one file per scheme. This table is the list of them.

An encoding turns matrices back into floating point. Which ones are encoded shows in the tensors
that lie in the files: a matrix that is there in a float type is plain. Lists of modules that were
left as they are need not be read for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ....errors import ConfigError
from . import awq, compressed_tensors, fp8, gptq, mxfp4
from .encoding import SECTION, Encoding

_READERS: dict[str, Callable[[Mapping[str, Any]], Encoding]] = {
    awq.NAME: awq.read_awq,
    compressed_tensors.NAME: compressed_tensors.read_compressed_tensors,
    fp8.NAME: fp8.read_fp8,
    gptq.NAME: gptq.read_gptq,
    mxfp4.NAME: mxfp4.read_mxfp4,
}


def find_encoding(config: Mapping[str, Any]) -> Encoding | None:
    """The encoding that a config.json names; None where it has no quantization_config.

    Raises:
        ConfigError: it names one that is not known, or a value that the encoding does not express.
    """
    section = config.get(SECTION)
    if section is None:
        return None
    if not isinstance(section, dict):
        raise ConfigError(f"config.json: {SECTION} = {section!r} is not an object")
    method = section.get("quant_method")
    if not isinstance(method, str) or method not in _READERS:
        raise ConfigError(
            f"config.json: {SECTION}.quant_method = {method!r} is not supported "
            f"({', '.join(_READERS)} are); use the model's unquantized checkpoint"
        )
    return _READERS[method](config)
