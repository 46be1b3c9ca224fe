"""Devices: the one of threads, which has to be as strict as hardware, and the calls to CUDA."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from pocketmoe.errors import EngineError
from pocketmoe.runtime import gpu
from pocketmoe.runtime.gpu import cuda_graph
from pocketmoe.runtime.gpu.cuda_device import CudaDevice
from pocketmoe.runtime.gpu.cuda_graph import GraphCapture
from pocketmoe.runtime.gpu.device import Device
from pocketmoe.runtime.gpu.errors import DeviceMemoryError
from pocketmoe.runtime.gpu.speed import measure_device
from pocketmoe.tests.support.gpu.cuda_stand_in import CudaStandIn, Status
from pocketmoe.tests.support.gpu.host_device import HostDevice


class TestHostDevice:
    def test_streams_run_beside_the_caller_and_events_order_them(self) -> None:
        late = {"upload"}
        device = HostDevice(delay=lambda kind, nbytes: 0.02 if kind in late else 0)
        copies, compute = device.stream(), device.stream()
        event = device.event()
        host, there, back = device.allocate_host(64), device.allocate(64), device.allocate_host(64)
        host.data[:] = 5
        for waits in (False, True):
            back.data[:] = 0
            compute.clear(there.address, 64)
            compute.synchronize()
            copies.upload(there.address, host.address, 64)
            copies.record(event)
            if waits:
                compute.wait(event)
            compute.download(back.address, there.address, 64)
            compute.synchronize()
            assert back.data.any() == waits
            event.wait()
        assert back.data.tolist() == [5] * 64

    def test_addresses_outside_of_memory_are_errors(self) -> None:
        device = HostDevice()
        stream = device.stream()
        host, there = device.allocate_host(64), device.allocate(64)
        for call in (
            lambda: stream.upload(there.address, host.address, 65),
            lambda: stream.upload(host.address, host.address + 1, 1),
            lambda: stream.download(there.address, host.address, 1),
            lambda: stream.copy(there.address, host.address, 1),
            lambda: stream.clear(there.address + 60, 5),
            lambda: stream.copy(there.address + 1, there.address, 2),
        ):
            with pytest.raises(EngineError, match=r"outside of|overlaps"):
                call()
        address = there.address
        there.free()
        there.free()
        with pytest.raises(EngineError, match="outside of device memory"):
            stream.clear(address, 1)

    def test_failures_of_work_come_with_the_next_call(self) -> None:
        device = HostDevice()
        stream, event = device.stream(), device.event()

        def fails() -> None:
            raise ValueError("no such expert")

        stream.call(fails)
        stream.record(event)
        with pytest.raises(EngineError, match="no such expert"):
            event.wait()
        with pytest.raises(EngineError, match="no such expert"):
            stream.synchronize()

    def test_memory_is_counted(self) -> None:
        device = HostDevice(1000)
        first = device.allocate(600)
        with pytest.raises(DeviceMemoryError, match="500 B more was asked for, and 400 B is free"):
            device.allocate(500)
        with pytest.raises(EngineError, match="600 bytes of device memory were not freed"):
            device.close()
        first.free()
        device.allocate(1000).free()
        device.close()

    @pytest.mark.parametrize("unified", [False, True])
    def test_its_speed_is_measured(self, unified: bool) -> None:
        device = HostDevice(64 << 20, unified=unified)
        speed = measure_device(device)
        assert speed.memory_bandwidth > 0
        assert (speed.link_bandwidth is None) == unified
        device.close()


class TestCuda:
    @pytest.mark.parametrize("unified", [False, True])
    @pytest.mark.parametrize("registers", [False, True])
    def test_memory_streams_and_events(self, unified: bool, registers: bool) -> None:
        runtime = CudaStandIn(unified=unified, registers=registers)
        device: Device = CudaDevice(runtime)
        info = device.info
        assert (info.name, info.compute_capability) == ("Stand-in 4090", "8.9")
        assert (info.unified, info.driver) == (unified, "13.0")
        host, there, other = device.allocate_host(4096), device.allocate(256), device.allocate(256)
        assert (host.device_address != 0) == unified
        host.data[:256] = np.arange(256)
        stream, event = device.stream(), device.event()
        stream.upload(there.address, host.address, 256)
        stream.copy(other.address, there.address, 256)
        stream.clear(there.address, 256)
        stream.record(event)
        stream.wait(event)
        stream.download(host.address + 256, other.address, 256)
        event.wait()
        stream.synchronize()
        assert host.view(np.uint8, (256,), 256).tolist() == list(range(256))
        with pytest.raises(DeviceMemoryError, match=r"2\.0 GiB more was asked for"):
            device.allocate(2 << 30)
        for item in (host, there, other, stream, event):
            item.free()
            item.free()
        assert not runtime.blocks
        assert not runtime.registered
        assert not runtime.made
        device.close()

    def test_errors_have_their_name(self) -> None:
        runtime = CudaStandIn(failing={"cudaStreamSynchronize": Status.cudaErrorIllegalAddress})
        stream = CudaDevice(runtime).stream()
        with pytest.raises(
            EngineError, match=r"cudaStreamSynchronize failed: cudaErrorIllegalAddress \(in words\)"
        ):
            stream.synchronize()

    def test_host_memory_that_cannot_be_pinned_says_so(self) -> None:
        runtime = CudaStandIn(failing={"cudaHostRegister": Status.cudaErrorMemoryAllocation})
        with pytest.raises(EngineError, match=r"cannot be pinned; give a smaller --host-memory"):
            CudaDevice(runtime).allocate_host(4096)

    def test_every_name_is_one_of_cuda_python(self) -> None:
        runtime = pytest.importorskip("cuda.bindings.runtime")
        folder = Path(gpu.__file__).parent
        for file in ("cuda_device.py", "cuda_graph.py"):
            text = (folder / file).read_text(encoding="utf-8")
            names = set(re.findall(r"(?:runtime|codes|kinds|attribute)\.(cuda\w+)", text))
            assert names
            for name in names:
                owners = [
                    runtime, runtime.cudaError_t, runtime.cudaMemcpyKind, runtime.cudaDeviceAttr,
                    runtime.cudaStreamCaptureMode,
                ]  # fmt: skip
                assert any(hasattr(owner, name) for owner in owners), name


class TestGraphCapture:
    def test_what_runs_a_second_time_is_captured(self) -> None:
        runtime = CudaStandIn()
        stream = CudaDevice(runtime).stream()
        capture = GraphCapture(runtime)
        runs = 0

        def enqueue() -> None:
            nonlocal runs
            runs += 1

        for fresh in (True, False, False, False, True, False, False):
            capture.run(stream, enqueue, fresh=fresh)
        assert runs == 4  # twice as it is, twice captured
        once = ["begin", "end", "launch"]
        assert runtime.launches == [*once, "launch", "launch", *once, "launch"]
        capture.free()
        assert runtime.made == {1}  # the stream

    def test_where_it_fails_all_runs_as_it_is_and_it_is_said_once(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cuda_graph, "_said", False)
        runtime = CudaStandIn(failing={"cudaGraphInstantiate": Status.cudaErrorIllegalAddress})
        stream = CudaDevice(runtime).stream()
        runs: list[int] = []
        for _ in range(2):
            capture = GraphCapture(runtime)
            for _ in range(4):
                capture.run(stream, lambda: runs.append(1), fresh=False)
        assert len(runs) == 2 * (4 + 1)
        (message,) = [record.message for record in caplog.records]
        assert "without CUDA graphs" in message
        assert "cudaErrorIllegalAddress" in message
