"""The user's folders follow the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketmoe.commands.folders import config_folder


def test_the_path_of_the_users_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POCKETMOE_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/x")
    assert config_folder() == Path("/x/pocketmoe")
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/u")
    assert config_folder() == Path("/home/u/.config/pocketmoe")
    monkeypatch.setenv("POCKETMOE_CONFIG", "/y")
    assert config_folder() == Path("/y")
