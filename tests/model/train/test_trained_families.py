"""Training takes any family's config, and the checkpoint that it writes is read as it was."""

from pathlib import Path

import pytest
import torch

from pocketmoe.errors import ConfigError
from pocketmoe.model.checkpoint.checkpoint import Checkpoint
from pocketmoe.model.families import FAMILIES, find_family
from pocketmoe.model.module import Decoder
from pocketmoe.model.train.checkpoint_writer import write_checkpoint
from pocketmoe.model.train.schedule import Schedule
from pocketmoe.model.train.training import (
    initialize,
    make_optimizers,
    read_training_config,
    train_step,
)
from pocketmoe.tests.support.slow import slow

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = [
    case
    for family in FAMILIES
    for case in (
        (family, "default"),
        *(slow(family, variant) for variant in FAMILIES[family].variants),
    )
]


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_a_step_and_what_is_written(family: str, variant: str, tmp_path: Path) -> None:
    changes = {} if variant == "default" else FAMILIES[family].variants[variant]
    config = {**FAMILIES[family].tiny, **changes}
    model = Decoder(find_family(config).read_config(config))
    initialize(model, config, seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizers = make_optimizers(model, Schedule(steps=1))
    ids = torch.randint(0, model.spec.vocab_size, (2, 33), generator=torch.Generator())
    loss, _ = train_step(model, ids, 0.01, optimizers)
    assert 0 < loss < 100
    parameters = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name != "head.weight" or not model.spec.tie_word_embeddings
    }
    changed = [name for name in parameters if not torch.equal(parameters[name], before[name])]
    assert len(changed) > len(parameters) / 2
    write_checkpoint(tmp_path / "out", config, parameters, {})
    with Checkpoint(tmp_path / "out").tensors() as reader:
        for name, expected in parameters.items():
            assert torch.equal(torch.cat(list(reader.tiles(name))), expected), name


def test_a_quantized_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    with pytest.raises(ConfigError, match="remove quantization_config"):
        read_training_config(tmp_path)
