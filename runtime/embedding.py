"""Embedding rows, read from disk as tokens need them: the table takes no memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..bundle.manifest import EMBEDDING, Manifest
from ..errors import BundleError


class Embedding:
    """backbone/embedding.bin: `[vocab_size, hidden_size]` float16 or float32."""

    def __init__(self, root: Path, manifest: Manifest):
        self._path = root / EMBEDDING
        if manifest.embedding_dtype not in ("float16", "float32"):
            raise BundleError(f"{root} has embeddings of an unknown type; compile the bundle again")
        spec = manifest.spec
        dtype = np.dtype(manifest.embedding_dtype)
        if manifest.files[EMBEDDING].size != spec.vocab_size * spec.hidden_size * dtype.itemsize:
            raise BundleError(f"{self._path} is not as long as its table; compile the bundle again")
        self._row = np.empty(spec.hidden_size, dtype)
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BundleError(f"{self._path} cannot be opened ({error.strerror})") from error
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, token_ids: np.ndarray, out: np.ndarray) -> None:
        """Fills `out`, float32 `[T, hidden_size]`, with the rows of `token_ids`, int64 `[T]`."""
        row = self._row
        for index, token in enumerate(token_ids.tolist()):
            try:
                count = os.preadv(self._fd, [row.data], token * row.nbytes)
            except OSError as error:
                raise BundleError(f"{self._path} cannot be read ({error.strerror})") from error
            if count != row.nbytes:
                raise BundleError(f"{self._path} ends before token {token}; compile it again")
            out[index] = row

    def close(self) -> None:
        os.close(self._fd)
