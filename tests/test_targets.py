"""The table of devices is consistent, and a wrong name is answered with the nearest."""

import dataclasses
import json

import pytest

from pocketmoe.errors import TargetError
from pocketmoe.targets import TARGETS, Target, find_target

FIGURES = ("memory_bytes", "memory_bandwidth", "link_bandwidth", "storage_bandwidth")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_figure_has_its_source(target: Target) -> None:
    fields = {field.name for field in dataclasses.fields(Target)}
    assert set(target.sources) <= fields
    for name in FIGURES:
        figure = getattr(target, name)
        assert figure is None or figure > 0
        assert figure is None or name in target.sources
    assert target.precisions
    assert (target.link_bandwidth is None) or not target.unified_memory


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_target_can_be_hashed_and_written_as_json(target: Target) -> None:
    assert {target: 1}[find_target(target.name)] == 1
    assert json.loads(json.dumps(dataclasses.asdict(target)))["name"] == target.name


def test_names_are_unique() -> None:
    names = [target.name for target in TARGETS]
    assert len(set(names)) == len(names)


def test_a_target_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        find_target("cpu").name = "gpu"  # type: ignore[misc]


@pytest.mark.parametrize("name", ["cpus", "CPU", "gpu"])
def test_a_near_miss_names_the_nearest(name: str) -> None:
    with pytest.raises(TargetError, match=r"did you mean cpu\?.*pocketmoe targets"):
        find_target(name)


@pytest.mark.parametrize("name", ["", "quantum-toaster", "c\np\nu"])
def test_any_other_name_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(TargetError, match="pocketmoe targets") as refusal:
        find_target(name)
    assert "\n" not in str(refusal.value)
