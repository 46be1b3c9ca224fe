"""What all tests share: the `tiny` preset as a checkpoint and as bundles, and traces of graphs."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# `make test` draws a fifth of the examples. How long one takes depends on what else runs.
settings.register_profile("quick", deadline=None, max_examples=20)
settings.register_profile("all", deadline=None, max_examples=100)
settings.load_profile("all")

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


@pytest.fixture(scope="session")
def shared_traces(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Each segment is traced once, for all processes and until its sources change."""
    from pocketmoe.tests.support.shared_traces import share_traces, traces_folder

    cache = pytestconfig.cache
    folder = cache.mkdir("traces") if cache else tmp_path_factory.mktemp("traces")
    with share_traces(traces_folder(folder)):
        yield


@pytest.fixture(scope="session", autouse=True)
def shared_where_tests_compile(request: pytest.FixtureRequest) -> None:
    """Without an import of torch for tests that need none."""
    if "pocketmoe.compiler.compile" in sys.modules:
        request.getfixturevalue("shared_traces")


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
    from pocketmoe.model.families import find_family
    from pocketmoe.model.module import Decoder
    from pocketmoe.model.train.checkpoint_writer import write_checkpoint
    from pocketmoe.model.train.corpus import train_tokenizer
    from pocketmoe.model.train.presets import find_preset
    from pocketmoe.model.train.training import initialize

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
    tiny_checkpoint: Path, shared_traces: None, tmp_path_factory: pytest.TempPathFactory
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


# As Qwen's and Hermes' templates do it, without their words.
TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n"
    "{% for tool in tools %}{{ tool.function.name }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'user' and 'forbidden' in message.content %}"
    "{{ raise_exception('say something else') }}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def compile_served(
    tiny_checkpoint: Path, shared_traces: None, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str | None], Path]:
    """Compiles the tiny checkpoint with a chat template, whose words its tokenizer knows."""
    from tokenizers import Tokenizer

    from pocketmoe.compiler.compile import compile_bundle
    from pocketmoe.compiler.precision import parse_precision
    from pocketmoe.model.train.corpus import train_tokenizer
    from pocketmoe.targets import find_target

    def compile_with(template: str | None) -> Path:
        folder = tmp_path_factory.mktemp("served")
        shutil.copytree(tiny_checkpoint, folder / "checkpoint")
        tokenizer: Tokenizer = train_tokenizer(["def main():\n    return 0\n" * 4], 280)
        tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        tokenizer.save(str(folder / "checkpoint" / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
        if template is not None:
            config["chat_template"] = template
        (folder / "checkpoint" / "tokenizer_config.json").write_text(json.dumps(config))
        target = find_target("cpu")
        precision = parse_precision(["experts=int4,backbone=int8,head=int8"], 32, target)
        compile_bundle(folder / "checkpoint", folder / "tiny", target=target, precision=precision)
        return folder / "tiny"

    return compile_with


@pytest.fixture(scope="session")
def served_bundle(compile_served: Callable[[str | None], Path]) -> Path:
    """With a chat template that knows tools."""
    return compile_served(TOOL_TEMPLATE)
