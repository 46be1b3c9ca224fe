"""Runs pocketmoe on the GPU of this machine, and prints what came out, in under eight minutes.

    python bench/gpu/gpu_check.py [--backend cuda] [--shape olmoe-1b-7b] [--layers N]
                                     [--seconds 450]
    python bench/gpu/gpu_check.py --device host       # no GPU: the same script on small shapes

1. The device: what its memory and its link reach.
2. The demo model against the PyTorch module in float32, for each backend that works here: KL
   divergence and top-1 agreement over a text.
3. Pages in few slots against all of them in the GPU's memory: the same bytes.
4. Models in the shape of OLMoE and Qwen3-30B-A3B with random weights: tokens per second with all,
   half and a quarter of the experts in the GPU's memory, where pages were found, and the share of
   the limit that memory, link and disk set.

What cannot run says why, and the script goes on. It ends with exit code 1 where numbers are wrong.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from pocketmoe.analysis.evaluation.reference import run_reference
from pocketmoe.analysis.evaluation.scores import evaluate
from pocketmoe.analysis.evaluation.windows import cut_windows
from pocketmoe.bench.lib.shapes import SHAPES, with_layers
from pocketmoe.bench.make_bundle import make_bundle
from pocketmoe.bench.quality.quality_reference import read_tokens
from pocketmoe.bundle.manifest import read_manifest
from pocketmoe.commands.console import print_table
from pocketmoe.compiler.compile import compile_bundle
from pocketmoe.compiler.precision import parse_precision
from pocketmoe.engines.hardware import start_cuda
from pocketmoe.errors import EngineError, PocketMoEError
from pocketmoe.model.checkpoint.checkpoint import Checkpoint
from pocketmoe.runtime.gpu.backends import Backend, find_backend, onnx_backend
from pocketmoe.runtime.gpu.cuda_device import CudaDevice
from pocketmoe.runtime.gpu.device import Device
from pocketmoe.runtime.gpu.loading import TierSizes, graphs_of
from pocketmoe.runtime.gpu.speed import DeviceSpeed, measure_device
from pocketmoe.runtime.session import Session
from pocketmoe.sizes import format_size
from pocketmoe.targets import find_target
from pocketmoe.tests.support.gpu.device_session import open_on_device
from pocketmoe.tests.support.gpu.host_device import HostDevice

DEMO = Path(__file__).parents[2] / "model/demo"
BACKENDS = ("tensorrt-rtx", "tensorrt", "cuda")
SHARES = (("all", 1.0), ("half", 0.5), ("a quarter", 0.25))
COLUMNS = ["check", "with", "result"]
SPEED_COLUMNS = [
    "shape", "backend", "experts on the GPU", "prompt", "decode", "limit", "reached", "GPU", "host",
    "disk", "link per token",
]  # fmt: skip
TARGET = "rtx-4090"  # what graphs are compiled for; they are the same for every GPU
KL_LIMIT, TOP1_LIMIT = 2e-2, 0.95

Row = tuple[str, ...]


class Check:
    """What all sections share: the device, and the backends that work for a bundle."""

    def __init__(self, on_host: bool, backends: tuple[str, ...], folder: Path, seconds: float):
        self.on_host, self.names, self.folder = on_host, backends, folder
        self.device: Device = HostDevice() if on_host else CudaDevice(start_cuda())
        self.ends = time.monotonic() + seconds
        self.rows: list[Row] = []
        self.failed = False

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def say(self, check: str, what: str, result: str, right: bool | None = None) -> None:
        """right: whether numbers are as they have to be, where that can be said."""
        mark = "" if right is None else ("; right" if right else "; WRONG")
        self.failed |= right is False
        self.rows.append((check, what, result + mark))
        click.echo(f"{check}, {what}: {result}{mark}", err=True)

    def backends(self, bundle: Path) -> Iterator[Backend]:
        """Those that work for it; the others are told of."""
        manifest = read_manifest(bundle)
        if self.on_host:
            yield onnx_backend(bundle, graphs_of(manifest, str(bundle)), manifest, self.device)
            return
        for name in self.names:
            try:
                if name != "cuda":
                    self._build(bundle, name)
                found = find_backend(name, bundle, read_manifest(bundle))
            except PocketMoEError as error:
                self.say("backend", name, f"not run: {error}")
                continue
            yield replace(found, device=self.device)

    def _build(self, bundle: Path, toolchain: str) -> None:
        """Engines for this GPU: TensorRT for RTX as on a machine without one, TensorRT here."""
        from pocketmoe.engines.build import add_engines
        from pocketmoe.engines.hardware import find_gpu

        if any(item.toolchain == toolchain for item in read_manifest(bundle).engines):
            return
        started = time.monotonic()
        if toolchain == "tensorrt":
            add_engines(bundle, toolchain=toolchain, gpu=find_gpu())
        else:
            capability = self.device.info.compute_capability
            add_engines(bundle, toolchain=toolchain, compute_capabilities=(capability,))
        self.say("engines", toolchain, f"built in {time.monotonic() - started:.0f} s")

    def open(self, bundle: Path, backend: Backend, **options: Any) -> Session:
        device = HostDevice() if self.on_host else self.device
        if self.on_host:  # each session has its own
            manifest = read_manifest(bundle)
            backend = onnx_backend(bundle, graphs_of(manifest, str(bundle)), manifest, device)
        return open_on_device(bundle, device, backend=backend, **options)


def check_numbers(check: Check, tokens: int) -> None:
    """The demo model: its quality, and the same bytes from any number of slots."""
    bundle = check.folder / "demo"
    target = find_target(TARGET)
    precision = parse_precision(["fp16"], 64, target)
    compile_bundle(DEMO, bundle, target=target, precision=precision)
    ids = read_tokens(Checkpoint(DEMO), None, tokens)
    windows = cut_windows(ids, 512)
    reference = run_reference(Checkpoint(DEMO), windows, check.folder)
    for backend in check.backends(bundle):
        try:
            with check.open(bundle, backend) as session:
                found = evaluate(session, windows, reference.logits)
                whole = run(session, ids)
                top_k = max(layer.top_k for layer in session.manifest.footprint.experts)
            kl, top1 = found.kl_mean or 0.0, found.top1_agreement or 0.0
            check.say(
                "demo model, fp16, against PyTorch", backend.engine,
                f"KL {kl:.1e}, the same first token in {top1:.1%} of {found.tokens}",
                kl < KL_LIMIT and top1 > TOP1_LIMIT,
            )  # fmt: skip
            for slots, host in ((top_k + 1, 2), (3 * top_k, 8)):
                sizes = TierSizes(slots=slots, host_slots=host)
                with check.open(bundle, backend, sizes=sizes) as session:
                    paged = run(session, ids)
                check.say(
                    "paged against resident", backend.engine,
                    f"{slots} slots on the GPU, {host} on the host", np.array_equal(paged, whole),
                )  # fmt: skip
        except PocketMoEError as error:
            check.say("demo model", backend.engine, f"failed: {error}", right=False)


def run(session: Session, ids: list[int]) -> np.ndarray:
    """A prompt, the rest of a batch, and single tokens."""
    session.reset()
    calls = [ids[:200], ids[200:230], *([token] for token in ids[230:240])]
    return np.concatenate([session.forward(call) for call in calls])


def check_speed(check: Check, shape: str, layers: int | None, speed: DeviceSpeed) -> list[Row]:
    config = SHAPES[shape]
    if check.on_host:
        config = smaller(config)
    elif layers is not None:
        config = with_layers(config, min(layers, config["num_hidden_layers"]))
    label = f"{shape}, {config['num_hidden_layers']} layers"
    bundle = check.folder / shape
    precision = parse_precision((), 64, find_target("cpu"))
    started = time.monotonic()
    try:
        make_bundle(config, bundle, precision=precision, gpu_context=512)
    except (PocketMoEError, OSError) as error:
        check.say("speed", label, f"not run: {error}")
        return []
    check.say("speed", label, f"bundle written in {time.monotonic() - started:.0f} s")
    rows = []
    for backend in check.backends(bundle):
        for name, share in SHARES:
            if check.left < 30:
                check.say("speed", f"{label}, {name}", "not run: the time is up")
                continue
            try:
                rows.append(measure(check, bundle, backend, label, name, share, speed))
            except PocketMoEError as error:
                check.say("speed", f"{label}, {name}, {backend.engine}", f"failed: {error}")
    return rows


def measure(
    check: Check,
    bundle: Path,
    backend: Backend,
    label: str,
    name: str,
    share: float,
    speed: DeviceSpeed,
) -> Row:
    prompt, warm, steps = (20, 4, 8) if check.on_host else (128, 16, 64)
    slots = max(9, round(share * read_manifest(bundle).num_pages))
    options = {"sizes": TierSizes(slots=slots), "verify_pages": False}
    with check.open(bundle, backend, **options) as session:
        manifest = session.manifest
        ids = np.random.default_rng(0).integers(0, manifest.spec.vocab_size, prompt).tolist()
        began = time.perf_counter()
        token = int(session.forward(ids, last_only=True)[0].argmax())
        prompt_seconds = time.perf_counter() - began

        def decode(count: int) -> None:
            nonlocal token
            for _ in range(count):
                token = int(session.forward([token], last_only=True)[0].argmax())

        decode(warm)
        before, began = session.counters, time.perf_counter()
        decode(steps)
        seconds = time.perf_counter() - began
        done, stats = session.counters - before, session.stats
    requests = max(1, done.page_hits + done.page_misses)
    storage = stats.read_bytes_per_second
    footprint = manifest.footprint
    least = max(
        (stats.backbone_bytes + footprint.token_page_bytes) / speed.memory_bandwidth,
        done.link_bytes / steps / speed.link_bandwidth if speed.link_bandwidth else 0.0,
        done.bytes_read / steps / storage if done.bytes_read and storage else 0.0,
    )
    host = done.page_hits - done.gpu_page_hits
    return (
        label, backend.engine, f"{name}: {stats.gpu_slots} of {stats.num_pages}",
        f"{prompt / prompt_seconds:.0f} tok/s", f"{steps / seconds:.1f} tok/s",
        f"{1 / least:.0f} tok/s", f"{steps / seconds * least:.1%}",
        f"{done.gpu_page_hits / requests:.1%}", f"{host / requests:.1%}",
        f"{done.page_misses / requests:.1%}", format_size(round(done.link_bytes / steps)),
    )  # fmt: skip


def smaller(config: dict[str, Any]) -> dict[str, Any]:
    """Of the same family, and quick on a CPU."""
    small = {
        "hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "num_experts": 16,
        "vocab_size": 512,
    }  # fmt: skip
    changed = {**config, **{key: value for key, value in small.items() if key in config}}
    changed.update({key: 1 for key in ("eos_token_id", "bos_token_id") if key in config})
    return with_layers(changed, 3)


def guarded(check: Check, section: str, work: Callable[[], Any]) -> Any:
    """One section's failure is not the next one's."""
    try:
        return work()
    except (PocketMoEError, OSError, ImportError) as error:
        check.say(section, "all of it", f"failed: {error}", right=False)
        return None


@click.command(help="Check pocketmoe on the GPU of this machine.")
@click.option("--device", type=click.Choice(["gpu", "host"]), default="gpu", show_default=True)
@click.option("--backend", "backends", type=click.Choice(BACKENDS), multiple=True)
@click.option("--shape", "shapes", type=click.Choice(list(SHAPES)), multiple=True)
@click.option("--layers", type=click.IntRange(1), help="of the shapes, at most so many")
@click.option("--tokens", default=512, show_default=True, type=click.IntRange(240), help="of text")
@click.option("--seconds", default=450, show_default=True, help="after which nothing is begun")
def main(
    device: str, backends: tuple[str, ...], shapes: tuple[str, ...], layers: int | None,
    tokens: int, seconds: int,
) -> None:  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as folder:
        try:
            check = Check(device == "host", backends or BACKENDS, Path(folder), seconds)
        except EngineError as error:
            raise click.ClickException(
                f"{error} (--device host runs the script without)"
            ) from error
        info = check.device.info
        speed = measure_device(check.device)
        link = speed.link_bandwidth
        check.say(
            "device", info.name,
            f"capability {info.compute_capability}, driver of CUDA {info.driver or 'none'}, "
            f"memory {format_size(round(speed.memory_bandwidth))}/s, "
            f"link {format_size(round(link)) + '/s' if link else 'none'}",
        )  # fmt: skip
        guarded(check, "numbers", lambda: check_numbers(check, tokens))
        rows: list[Row] = []
        for shape in shapes or ("olmoe-1b-7b", "qwen3-30b-a3b"):
            found = guarded(check, shape, lambda s=shape: check_speed(check, s, layers, speed))
            rows += found or []
    print_table(f"gpu_check on {info.name}", COLUMNS, check.rows)
    if rows:
        print_table("random weights; experts int4, backbone int8", SPEED_COLUMNS, rows)
    sys.exit(check.failed)


if __name__ == "__main__":
    main()
