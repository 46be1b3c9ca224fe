"""The `tiny` preset as a checkpoint and as bundles, made once for all tests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SOURCE = (
    "import os\nfrom pathlib import Path\n\n\n"
    "def main(arguments: list[str]) -> int:\n"
    '    """Print the size of every file."""\n'
    "    for name in sorted(arguments):\n"
    "        size = os.stat(Path(name)).st_size\n"
    "        if size is None or not size:\n            continue\n"
    '        print(f"{name}: {size} bytes")\n'
    "    return 0\n",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n"
    "    def push(self, item):\n        self.items.append(item)\n\n"
    "    def pop(self):\n        return self.items.pop()\n",
)


@pytest.fixture(scope="session", autouse=True)
def no_user_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the measured targets of whoever runs the tests out of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCKETMOE_CONFIG", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: at these sizes threads only get into each other's way."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `tiny` preset with random weights, wide enough that routing is uneven."""
    from pocketmoe.model.checkpoint_writer import write_checkpoint
    from pocketmoe.model.corpus import train_tokenizer
    from pocketmoe.model.families import find_family
    from pocketmoe.model.module import Decoder
    from pocketmoe.model.presets import find_preset
    from pocketmoe.model.train import initialize

    config = {**find_preset("tiny"), "initializer_range": 0.2}
    model = Decoder(find_family(config).read_config(config))
    initialize(model, config, seed=0)
    parameters = {
        name: tensor for name, tensor in model.state_dict().items() if name != "head.weight"
    }
    tokenizer = train_tokenizer(SOURCE, config["vocab_size"])
    path = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_checkpoint(path, config, parameters, {"tokenizer.json": tokenizer.to_str()})
    return path


@pytest.fixture(scope="session")
def compile_tiny(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Compiles the tiny checkpoint for the CPU at a precision, as `--precision` is written."""
    from pocketmoe.compiler.compile import compile_bundle
    from pocketmoe.compiler.precision import parse_precision
    from pocketmoe.targets import find_target

    def compile_at(precision: str) -> Path:
        target = find_target("cpu")
        path = tmp_path_factory.mktemp("bundle") / "tiny"
        parsed = parse_precision([precision], 32, target)
        compile_bundle(tiny_checkpoint, path, target=target, precision=parsed)
        return path

    return compile_at


@pytest.fixture(scope="session")
def tiny_bundle(compile_tiny: Callable[[str], Path]) -> Path:
    """int4 experts, int8 backbone and head."""
    return compile_tiny("experts=int4,backbone=int8,head=int8")


@pytest.fixture(scope="session")
def tiny_bundle_fp32(compile_tiny: Callable[[str], Path]) -> Path:
    return compile_tiny("fp32")
