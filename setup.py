"""Builds the native library; all else about the package is in pyproject.toml.

It is a plain C library for ctypes, so its name has no Python version in it. Without a compiler the
package installs all the same, and ONNX Runtime computes everything.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = Path("runtime/native")
SOURCES = (
    "api", "checksum", "layer", "steps", "attention", "routing", "pool",
    "avx512", "avx2", "neon", "plain",
)  # fmt: skip
SUFFIXES = {"win32": "pocketmoe.dll", "darwin": "libpocketmoe.dylib"}
# The same for all files: each says by pragma for which processors it is. -ffp-contract=off keeps
# quantized products the same in all instruction sets.
FLAGS = (
    "-std=c++17", "-O3", "-g1", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
    "-fvisibility=hidden", "-fPIC", "-pthread",
)  # fmt: skip


class BuildLibrary(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        folder = fullname.split(".")[:-1]
        return str(Path(*folder, SUFFIXES.get(sys.platform, "libpocketmoe.so")))

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []  # no PyInit_


setup(
    ext_modules=[
        Extension(
            "pocketmoe.runtime.native.libpocketmoe",
            [str(FOLDER / f"{name}.cpp") for name in SOURCES],
            depends=[str(path) for pattern in ("*.h", "*.inl") for path in FOLDER.glob(pattern)],
            extra_compile_args=list(FLAGS),
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary},
)
