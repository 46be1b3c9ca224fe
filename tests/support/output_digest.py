"""What sessions compute, as digests, and the engine of their backbone: a line for each bundle. A
program, so that it can be run with other settings of the environment:
python tests/support/output_digest.py SET BUNDLE [BUNDLE ...]

SET: an instruction set of the native kernels; `numpy` for the best one with everything that Python
computes left to numpy.
"""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import numpy as np

import pocketmoe
from pocketmoe.runtime.native import portable_math
from pocketmoe.runtime.native.kernels import NativeKernels

WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 1.5, "top_k": 40},
)
PROMPT = "def main(path):\n    import os\n"


def of_bundle(bundle: str) -> str:
    """Of logits of a prompt and of single tokens; and of text, the likeliest and two drawn ones."""
    with pocketmoe.open(bundle, context=256) as session:
        ids = session.encode(PROMPT * 4)
        logits = [session.forward(ids).copy()]
        logits += [session.forward([token], last_only=True).copy() for token in ids[:10]]
        texts = []
        for how in WAYS:
            session.reset()
            pieces = session.generate(PROMPT, max_new_tokens=40, seed=1, **how)
            texts.append("".join(map(str, pieces)))
        engine = session.stats.backbone_engine
    parts = np.concatenate(logits).tobytes(), "\0".join(texts).encode()
    return " ".join([*(hashlib.sha256(part).hexdigest()[:16] for part in parts), engine])


def main() -> None:
    name, *bundles = sys.argv[1:]
    if name == "numpy":
        portable_math._kernels = lambda: None  # type: ignore[assignment]
    else:
        NativeKernels.__init__.__kwdefaults__["instruction_set"] = name  # type: ignore[index]
    for bundle in bundles:
        print(of_bundle(bundle))


if __name__ == "__main__":
    main()
