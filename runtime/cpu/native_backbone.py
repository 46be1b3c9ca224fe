"""The segments of a bundle that the native kernels run, and what they need for it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from ...bundle.manifest import Manifest
from ...bundle.weight_index import index_file, read_index, weights_file
from ..native.kernels import NativeKernels
from .native_segment import NativeSegment, can_serve
from .native_weights import Weights

_log = logging.getLogger(__name__)


class NativeBackbone:
    """The segments that the kernels can run, by index; ONNX Runtime runs the others.

    Nothing is read before `load`. weight_bytes: what their weights take; onnx_bytes: what the same
    would take in ONNX Runtime.
    """

    def __init__(self, root: Path, manifest: Manifest, kernels: NativeKernels | None):
        """kernels: None for ONNX Runtime alone.

        Raises:
            BundleError: an index of weights is damaged, or does not fit the model.
        """
        self.segments: dict[int, NativeSegment] = {}
        self.weight_bytes = self.onnx_bytes = 0
        self.engine = "onnxruntime"
        self._files: dict[int, tuple[Weights, Path]] = {}
        spec = manifest.spec
        if kernels is None or not can_serve(spec):
            return
        block = manifest.precision.block_size
        leaves = None
        for number, segment in enumerate(manifest.segments):
            index = read_index(root, manifest, segment)
            if index is not None:
                weights = Weights(index, block, root / index_file(segment))
                try:
                    made = NativeSegment(spec, segment, leaves, weights, kernels)
                except (KeyError, ValueError) as error:
                    _log.info("%s: ONNX Runtime runs it (%s)", root / segment.file, error)
                else:
                    self.segments[number] = made
                    self._files[number] = weights, root / weights_file(segment)
                    self.weight_bytes += index.size
                    self.onnx_bytes += index.loaded_bytes
            leaves = segment.router_layer
        served, all_of_them = len(self.segments), len(manifest.segments)
        if served:
            self.engine = f"native, {kernels.instruction_set}"
        if 0 < served < all_of_them:
            self.engine += f" ({served} of {all_of_them} segments), onnxruntime"

    def buffer_bytes(self, chunk: int) -> int:
        """Of the buffers between the steps."""
        return sum(4 * width * chunk for width in self._widths().values())

    def scratch_bytes(self, chunk: int) -> int:
        """What the kernels hold at most once all segments ran for so many tokens."""
        return max((one.scratch_bytes(chunk) for one in self.segments.values()), default=0)

    def load(self, chunk: int) -> None:
        """Reads the weights, and makes the buffers for up to `chunk` tokens.

        Raises:
            BundleError: a file cannot be read.
        """
        buffers = {
            name: np.empty(chunk * width, np.float32) for name, width in self._widths().items()
        }
        for number, segment in self.segments.items():
            weights, path = self._files[number]
            weights.load(path)
            segment.set_buffers(buffers)

    def _widths(self) -> dict[str, int]:
        """The largest of each buffer: segments run one after another and share them."""
        widths: dict[str, int] = {}
        for segment in self.segments.values():
            for name, width in segment.widths.items():
                widths[name] = max(width, widths.get(name, 0))
        return widths
