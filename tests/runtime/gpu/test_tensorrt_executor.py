"""What the runtime asks of TensorRT: a stand-in notes it, and the real bindings have every name."""

from __future__ import annotations

import ast
import enum
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pocketmoe.bundle.gpu_graphs import Engine, EngineSet, TensorInfo
from pocketmoe.engines import kernel_cache
from pocketmoe.errors import BundleError, EngineError
from pocketmoe.runtime.gpu import tensorrt_executor
from pocketmoe.runtime.gpu.errors import DeviceMemoryError
from pocketmoe.runtime.gpu.executor import DECODE, PROMPT
from pocketmoe.runtime.gpu.tensorrt_executor import TensorRtLoader
from pocketmoe.tests.support.gpu.host_device import HostDevice

X = TensorInfo("x", "float32", (-1, 64))
GATE = TensorInfo("gate", "int4", (32, 64))
OUT = TensorInfo("out", "float32", (-1, 64))
SEGMENT = "device/segment_000.onnx"


class Dtype(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT4 = 9
    INT64 = 8


class Mode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class Context:
    def __init__(self, log: list[tuple[Any, ...]], name: str):
        self._log, self._name = log, name
        self.works = True

    def __getattr__(self, call: str) -> Any:
        def noted(*arguments: Any) -> bool:
            self._log.append((self._name, call, *arguments))
            return self.works

        return noted


class StandIn:
    """The module of a toolchain: one engine with two profiles, whose calls are noted."""

    DataType = Dtype
    TensorIOMode = Mode
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(NONE="none")

    class ILogger:
        class Severity(enum.Enum):
            INTERNAL_ERROR = 0
            ERROR = 1
            WARNING = 2
            INFO = 3

    def __init__(self, tensors: tuple[tuple[TensorInfo, Mode], ...], error: str = ""):
        self.log: list[tuple[Any, ...]] = []
        self.configs: list[Any] = []
        self.contexts: list[Context] = []
        self._tensors = {info.name: (info, mode) for info, mode in tensors}
        self._error = error
        self.num_io_tensors = len(tensors)
        self.num_optimization_profiles = 2
        self.device_memory_size_v2 = 5000

    def Runtime(self, messages: Any) -> StandIn:
        self._messages = messages
        return self

    def deserialize_cuda_engine(self, data: bytes) -> StandIn | None:
        if not self._error:
            return self
        self._messages.log(self.ILogger.Severity.ERROR, self._error)
        return None

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_dtype(self, name: str) -> Dtype:
        names = {"float32": Dtype.FLOAT, "float16": Dtype.HALF, "int4": Dtype.INT4}
        return names[self._tensors[name][0].dtype]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][0].shape

    def get_tensor_mode(self, name: str) -> Mode:
        return self._tensors[name][1]

    def create_runtime_config(self) -> Any:
        cache = SimpleNamespace(deserialize=lambda data: True, serialize=lambda: b"kernels")
        config = SimpleNamespace(
            create_runtime_cache=lambda: cache,
            set_runtime_cache=lambda found: None,
            set_execution_context_allocation_strategy=lambda strategy: None,
            cuda_graph_strategy=None,
        )
        self.configs.append(config)
        return config

    def create_execution_context(self, _: Any) -> Context:
        self.contexts.append(Context(self.log, f"context {len(self.contexts)}"))
        return self.contexts[-1]


RIGHT = ((X, Mode.INPUT), (GATE, Mode.INPUT), (OUT, Mode.OUTPUT))


class Capture:
    """Notes whether what it runs is fresh."""

    def __init__(self) -> None:
        self.fresh: list[bool] = []

    def run(self, stream: Any, enqueue: Any, *, fresh: bool) -> None:
        self.fresh.append(fresh)
        enqueue()

    def free(self) -> None:
        self.fresh.append(False)


def make_loader(
    root: Path, trt: StandIn, toolchain: str = "tensorrt", capture: Any = None
) -> TensorRtLoader:
    file = f"engines/{toolchain}-10.3-sm87/segment_000.engine"
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_bytes(b"engine")
    engines = EngineSet(toolchain, "10.3", "8.7", None, (Engine(SEGMENT, file, (X, GATE), (OUT,)),))
    return TensorRtLoader(root, engines, trt, HostDevice(), (SEGMENT,), capture)


def test_only_what_changed_is_bound_and_each_profile_has_a_context(tmp_path: Path) -> None:
    trt = StandIn(RIGHT)
    loader = make_loader(tmp_path, trt)
    executor = loader.load(SEGMENT)
    loader.ready()
    stream = SimpleNamespace(handle=77)
    places = {"x": (256, (1, 64)), "gate": (512, (32, 64)), "out": (1024, (1, 64))}
    for name, (address, shape) in places.items():
        executor.bind(name, address, shape)
    del trt.log[:]
    executor.run(stream, DECODE)  # type: ignore[arg-type]
    calls = [call[1:] for call in trt.log]
    assert {call[0] for call in trt.log} == {"context 0"}
    assert calls[0][0] == "set_device_memory"
    assert calls[0][2] == 5000
    assert ("set_input_shape", "x", (1, 64)) in calls
    assert ("set_tensor_address", "gate", 512) in calls
    assert not any(call[:2] == ("set_input_shape", "gate") for call in calls)
    assert calls[-1] == ("execute_async_v3", 77)
    del trt.log[:]
    executor.run(stream, DECODE)  # type: ignore[arg-type]
    assert [call[1:] for call in trt.log] == [("execute_async_v3", 77)]
    executor.bind("gate", 768, (32, 64))
    executor.bind("x", 256, (1, 64))
    del trt.log[:]
    executor.run(stream, DECODE)  # type: ignore[arg-type]
    assert [c[1:] for c in trt.log] == [
        ("set_tensor_address", "gate", 768), ("execute_async_v3", 77)
    ]  # fmt: skip
    executor.bind("x", 256, (9, 64))
    del trt.log[:]
    executor.run(stream, PROMPT)  # type: ignore[arg-type]
    calls = [call[1:] for call in trt.log]
    assert {call[0] for call in trt.log} == {"context 1"}
    assert ("set_input_shape", "x", (9, 64)) in calls
    assert ("set_tensor_address", "gate", 768) in calls
    executor.close()
    loader.close()


def test_decoding_segments_are_captured_by_hand_where_the_toolchain_does_not(
    tmp_path: Path,
) -> None:
    capture = Capture()
    executor = make_loader(tmp_path, StandIn(RIGHT), capture=lambda: capture).load(SEGMENT)
    stream: Any = SimpleNamespace(handle=77)
    for name, shape in (("x", (1, 64)), ("gate", (32, 64)), ("out", (1, 64))):
        executor.bind(name, 256, shape)
    for profile in (DECODE, DECODE, PROMPT, DECODE):
        executor.run(stream, profile)
    executor.bind("x", 512, (1, 64))
    executor.run(stream, DECODE)
    assert capture.fresh == [True, False, False, True]


def test_for_rtx_graphs_are_its_own_and_kernels_are_kept(tmp_path: Path) -> None:
    trt = StandIn(RIGHT)
    loader = make_loader(tmp_path, trt, "tensorrt-rtx")
    loader.load(SEGMENT)
    assert [config.cuda_graph_strategy for config in trt.configs] == ["whole", None]
    strategies = [item.dynamic_shapes_kernel_specialization_strategy for item in trt.configs]
    assert strategies == ["none", "none"]
    loader.close()
    kept = tmp_path / "engines/tensorrt-rtx-10.3-sm87" / kernel_cache.KERNELS
    assert kept.read_bytes() == b"kernels"
    assert [path.name for path in kept.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ((*RIGHT, (TensorInfo("rows", "float32", (1,)), Mode.INPUT)), "another input rows"),
        (RIGHT[:1] + RIGHT[2:], "another input gate"),
        (((replace(X, dtype="float16"), Mode.INPUT), *RIGHT[1:]), "another input x"),
        ((*RIGHT[:2], (replace(OUT, shape=(-1, 32)), Mode.OUTPUT)), "another output out"),
    ],
)
def test_tensors_that_are_not_the_manifests_are_refused(
    tensors: Any, words: str, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=f"{words} than the manifest says; build the engines"):
        make_loader(tmp_path, StandIn(tensors)).load(SEGMENT)


def test_what_cannot_be_loaded_or_run_says_what_tensorrt_says(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"wrong version.*`pocketmoe build .* on this device"):
        make_loader(tmp_path, StandIn(RIGHT, "wrong\nversion")).load(SEGMENT)
    with pytest.raises(DeviceMemoryError):
        make_loader(tmp_path, StandIn(RIGHT, "CUDA: out of memory")).load(SEGMENT)
    loader = make_loader(tmp_path, StandIn(RIGHT))
    with pytest.raises(BundleError, match=r"has no engine for device/token_000\.onnx"):
        loader.load("device/token_000.onnx")
    trt = StandIn(RIGHT)
    executor = make_loader(tmp_path, trt).load(SEGMENT)
    for context in trt.contexts:
        context.works = False
    executor.bind("x", 256, (999, 64))
    with pytest.raises(EngineError, match=r"does not take x of shape \[999, 64\]"):
        executor.run(SimpleNamespace(handle=1), DECODE)  # type: ignore[arg-type]


def test_every_name_is_one_of_the_bindings() -> None:
    """Both interfaces, as far as one is installed."""
    from pocketmoe.engines.libraries import load_tensorrt

    try:
        trt = load_tensorrt("tensorrt-rtx")
    except EngineError as error:
        pytest.skip(str(error))
    owners = {
        "trt": trt, "_trt": trt, "engine": trt.ICudaEngine, "context": trt.IExecutionContext,
        "config": trt.IRuntimeConfig, "_cache": trt.IRuntimeCache, "_runtime": trt.Runtime,
    }  # fmt: skip
    checked = 0
    for module in (tensorrt_executor, kernel_cache):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = ast.unparse(node.value).rpartition(".")[2]
                if owner in owners:
                    assert hasattr(owners[owner], node.attr), f"{owner}.{node.attr}"
                    checked += 1
    assert checked > 15
