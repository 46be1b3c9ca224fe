"""TensorRT for RTX in the tests: it builds engines without a GPU, where it can be installed."""

import pytest

from pocketmoe.engines.libraries import RTX, load_tensorrt
from pocketmoe.errors import EngineError


def why_missing() -> str | None:
    try:
        load_tensorrt(RTX)
    except EngineError as error:
        return str(error)
    return None


needs_rtx = pytest.mark.skipif(
    why_missing() is not None, reason=f"builds real engines: {why_missing()}"
)
