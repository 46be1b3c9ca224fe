"""A GPU graph in, a TensorRT engine out: the same code for stock TensorRT and TensorRT for RTX.

It runs on the device too, so it needs neither torch nor onnx.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle.gpu_graphs import GpuGraphs, TensorInfo, capability_name
from ..errors import EngineError
from .libraries import RTX, load_tensorrt
from .log import library_log
from .messages import first_reason, parser_reason
from .monitor import BuildProgress, make_monitor
from .profiles import OpenInput, profiles_of

if TYPE_CHECKING:
    import tensorrt as trt

# What one operation may use while TensorRT tries ways to run it: on a Jetson it is host memory.
_WORKSPACE = 1 << 30


@dataclass(frozen=True)
class BuiltEngine:
    """An engine's file, and what goes in and comes out."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


class EngineBuilder:
    """Builds engines with one toolchain.

    compute_capabilities: those that each engine is for, as "8.9"; None builds for the
    GPU that is here, as stock TensorRT always does.
    """

    def __init__(self, toolchain: str, compute_capabilities: Sequence[str] | None = None):
        """Raises EngineError where the toolchain cannot be loaded."""
        self._trt: Any = load_tensorrt(toolchain)
        self._log = library_log(self._trt)
        self._toolchain = toolchain
        self._capabilities = tuple(compute_capabilities or ())
        # Stock TensorRT times ways to run an operation: once for all segments that are alike.
        self._timings = b""

    @property
    def version(self) -> str:
        return str(self._trt.__version__)

    @property
    def _for(self) -> str:
        return " and ".join(map(capability_name, self._capabilities)) or "this GPU"

    def build(
        self,
        root: Path,
        file: str,
        graphs: GpuGraphs,
        out: Path,
        progress: BuildProgress,
        stop: threading.Event,
    ) -> BuiltEngine:
        """Writes the engine of the graph `file`, which lies below `root`, to `out`.

        Raises:
            EngineError: TensorRT cannot build it; the message names the graph, the node and why.
        """
        self._log.clear()
        try:
            builder: trt.Builder = self._trt.Builder(self._log.logger)
            typed = self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
            network: trt.INetworkDefinition = builder.create_network(1 << int(typed))
            parser = self._parse(network, root / file)  # owns weights: until the engine is built
            config = self._configure(builder, progress, stop)
            self._add_profiles(builder, config, network, graphs, file)
            inputs, outputs = self._tensors(network)
            plan: trt.IHostMemory | None = builder.build_serialized_network(network, config)
            del parser
        except (RuntimeError, TypeError) as error:  # TypeError: a constructor gave nothing
            raise self._failure(file, first_reason(self._log.errors) or str(error)) from error
        except EngineError as error:
            raise self._failure(file, str(error)) from error
        if plan is None:
            reason = first_reason(self._log.errors) or "TensorRT does not say why"
            raise self._failure(file, reason)
        with out.open("wb") as target:
            target.write(_bytes_of(plan))
        self._keep_timings(config)
        progress.end()
        return BuiltEngine(inputs, outputs)

    def _failure(self, file: str, reason: str) -> EngineError:
        return EngineError(f"{file} cannot be built for {self._for}: {reason}")

    def _parse(self, network: trt.INetworkDefinition, path: Path) -> trt.OnnxParser:
        parser: trt.OnnxParser = self._trt.OnnxParser(network, self._log.logger)
        if not parser.parse_from_file(str(path)):
            reasons = [parser_reason(parser.get_error(i)) for i in range(parser.num_errors)]
            found = reasons[0] if reasons else first_reason(self._log.errors)
            raise EngineError(found or "TensorRT cannot read it")
        if not network.num_outputs:  # any bytes can be a message of fields that nobody knows
            raise EngineError("it is not an ONNX graph")
        return parser

    def _configure(
        self, builder: trt.Builder, progress: BuildProgress, stop: threading.Event
    ) -> trt.IBuilderConfig:
        config: trt.IBuilderConfig = builder.create_builder_config()
        # float32 is what routers choose by: a wrong expert costs more than slow products.
        config.clear_flag(self._trt.BuilderFlag.TF32)
        config.progress_monitor = make_monitor(self._trt, progress, stop)
        if self._toolchain == RTX:
            self._choose_capabilities(config)
            return config
        config.set_memory_pool_limit(self._trt.MemoryPoolType.WORKSPACE, _WORKSPACE)
        cache: trt.ITimingCache = config.create_timing_cache(self._timings)
        config.set_timing_cache(cache, ignore_mismatch=False)
        return config

    def _choose_capabilities(self, config: Any) -> None:
        if not self._capabilities:
            return
        config.num_compute_capabilities = len(self._capabilities)
        for index, capability in enumerate(self._capabilities):
            name = capability_name(capability).upper()
            config.set_compute_capability(getattr(self._trt.ComputeCapability, name), index)

    def _keep_timings(self, config: trt.IBuilderConfig) -> None:
        if self._toolchain != RTX:
            self._timings = bytes(_bytes_of(config.get_timing_cache().serialize()))

    def _add_profiles(
        self,
        builder: trt.Builder,
        config: trt.IBuilderConfig,
        network: trt.INetworkDefinition,
        graphs: GpuGraphs,
        file: str,
    ) -> None:
        inputs = [_open_input(network.get_input(i)) for i in range(network.num_inputs)]
        for sizes in profiles_of(graphs, file, inputs):
            profile: trt.IOptimizationProfile = builder.create_optimization_profile()
            for item in inputs:
                if -1 in item.shape:
                    least, best, most = map(self._trt.Dims, sizes.shapes(item))
                    profile.set_shape(item.name, least, best, most)
            if config.add_optimization_profile(profile) < 0:
                raise EngineError(first_reason(self._log.errors) or "its sizes contradict")

    def _tensors(
        self, network: trt.INetworkDefinition
    ) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
        types = self._trt.DataType
        names = {
            types.FLOAT: "float32", types.HALF: "float16", types.INT64: "int64",
            types.INT8: "int8", types.UINT8: "uint8", types.INT4: "int4", types.FP8: "fp8",
        }  # fmt: skip

        def info(tensor: trt.ITensor) -> TensorInfo:
            dtype = names.get(tensor.dtype)
            if dtype is None:
                raise EngineError(f"{tensor.name} is {tensor.dtype}, which the runtime cannot bind")
            return TensorInfo(tensor.name, dtype, _sizes(tensor.shape))

        return (
            tuple(info(network.get_input(i)) for i in range(network.num_inputs)),
            tuple(info(network.get_output(i)) for i in range(network.num_outputs)),
        )


def _open_input(tensor: trt.ITensor) -> OpenInput:
    shape = _sizes(tensor.shape)
    names = tuple(
        tensor.get_dimension_name(axis) if size < 0 else None for axis, size in enumerate(shape)
    )
    return OpenInput(tensor.name, shape, names)


def _sizes(dims: Any) -> tuple[int, ...]:
    """A `Dims`, which its type stubs do not show to be a sequence."""
    return tuple(dims)


def _bytes_of(memory: Any) -> memoryview:
    """An `IHostMemory`, which its type stubs do not show to be a buffer."""
    return memoryview(memory)
