"""The files of recordings: there as a whole or not at all, also on a full disk."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pocketmoe
from pocketmoe import files
from pocketmoe.errors import BundleError, InputError
from pocketmoe.runtime.cpu import runner as host_runner
from pocketmoe.runtime.recording import timeline as trace_module
from pocketmoe.runtime.recording.routes import read_routes
from pocketmoe.tests.support.session_runs import decode

TOKENS = np.random.default_rng(0).integers(1, 384, 90).tolist()


class FullDisk(io.FileIO):
    """A file on a disk that has room for so many writes of a whole buffer."""

    room = 0

    def write(self, data: Any) -> int:
        self.room -= 1
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.fixture
def with_room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Gives recordings that are opened from now on so many writes; the first is when they open."""

    def limit(room: int) -> None:
        monkeypatch.setattr(FullDisk, "room", room)

        def opened(path: Path, mode: str, encoding: str) -> io.TextIOWrapper:
            return io.TextIOWrapper(io.BufferedWriter(FullDisk(path, "w")), encoding=encoding)

        monkeypatch.setattr(files, "open", opened, raising=False)

    return limit


class TestFiles:
    def test_they_are_there_after_an_error(self, tiny_bundle: Path, tmp_path: Path) -> None:
        routes, trace = tmp_path / "r.csv.gz", tmp_path / "t.json"

        def interrupted() -> None:
            with pocketmoe.open(tiny_bundle, record_routes=routes, trace=trace) as session:
                session.forward(TOKENS[:3])
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert read_routes(routes).visits
        assert json.loads(trace.read_text())["traceEvents"]

    def test_none_is_made_where_the_bundle_does_not_open(
        self, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> None:
            raise BundleError("broken")

        monkeypatch.setattr(host_runner, "load_engines", broken)
        with pytest.raises(BundleError, match="broken"):
            pocketmoe.open(tiny_bundle, record_routes=tmp_path / "r", trace=tmp_path / "t")
        assert list(tmp_path.iterdir()) == []

    def test_they_cannot_be_written(self, tiny_bundle: Path, tmp_path: Path) -> None:
        for options in ({"record_routes": "r"}, {"trace": "t"}):
            there = {name: tmp_path / "none" / file for name, file in options.items()}
            with pytest.raises(InputError, match="cannot be written"):
                pocketmoe.open(tiny_bundle, **there)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="cannot be written"):
            pocketmoe.open(tiny_bundle, record_routes=tmp_path / "r", trace=tmp_path / "none" / "t")
        with pytest.raises(InputError, match="give two files"):
            pocketmoe.open(tiny_bundle, record_routes=tmp_path / "r", trace=tmp_path / "r")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("option", ["record_routes", "trace"])
    def test_nothing_but_a_file_is_replaced(
        self, option: str, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        pipe, folder = tmp_path / "pipe", tmp_path / "folder"
        os.mkfifo(pipe)
        folder.mkdir()
        (tmp_path / "link").symlink_to(pipe)
        (tmp_path / "circle").symlink_to(tmp_path / "circle")
        before = sorted(tmp_path.iterdir())
        for path, wrong in (
            (pipe, "a device or a pipe"),
            (tmp_path / "link", "a device or a pipe"),
            (Path("/dev/null"), "a device or a pipe"),
            (folder, "is a folder"),
            (Path("/"), "is a folder"),
            (tmp_path / "circle", "cannot be written"),
        ):
            with pytest.raises(InputError, match=wrong) as error:
                pocketmoe.open(tiny_bundle, **{option: path})  # type: ignore[arg-type]
            assert str(path) in str(error.value)
            assert "\n" not in str(error.value)
        assert sorted(tmp_path.iterdir()) == before
        assert Path("/dev/null").is_char_device()

    def test_a_link_stays_and_leads_to_the_new_file(
        self, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        there = tmp_path / "there"
        there.mkdir()
        (there / "old.csv").write_text("# route_trace v1\n")
        routes, trace = tmp_path / "routes", tmp_path / "trace"
        routes.symlink_to(Path("there") / "old.csv")
        trace.symlink_to(there / "new.json")
        with pocketmoe.open(tiny_bundle, record_routes=routes, trace=trace) as session:
            session.forward(TOKENS[:3])
            assert (there / "old.csv").read_text() == "# route_trace v1\n"
        assert routes.is_symlink()
        assert trace.is_symlink()
        assert read_routes(there / "old.csv").visits
        assert json.loads((there / "new.json").read_text())
        assert len(list(there.iterdir())) == 2
        with pytest.raises(InputError, match="give two files"):
            pocketmoe.open(tiny_bundle, record_routes=routes, trace=there / "old.csv")


@pytest.mark.slow
class TestFullDisk:
    OPTIONS = ("record_routes", "trace")

    @pytest.fixture(autouse=True)
    def often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pocketmoe.runtime.recording.route_log._MOST_KEPT", 3)
        monkeypatch.setattr(trace_module, "_MOST_KEPT", 5)

    @pytest.mark.parametrize("room", [1, 2])
    @pytest.mark.parametrize("option", OPTIONS)
    def test_the_run_goes_on(
        self,
        option: str,
        room: int,
        with_room: Callable[[int], None],
        tiny_bundle: Path,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        path = tmp_path / "file"
        before = "# route_trace v1\n" if option == "record_routes" else '{"traceEvents":[\n'
        path.write_text(before)
        with pocketmoe.open(tiny_bundle) as session:
            expected = session.forward(TOKENS)
        with_room(room)
        with pocketmoe.open(tiny_bundle, **{option: path}) as session:  # type: ignore[arg-type]
            for _ in range(8):
                session.reset()
                assert session.forward(TOKENS).tobytes() == expected.tobytes()
            decode(session, TOKENS[:40])
            assert len(list(tmp_path.iterdir())) == 1  # it stopped while the session was open
        warned = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
        assert warned == [f"{path} is not made: {os.strerror(errno.ENOSPC)}"]
        assert path.read_text() == before

    @pytest.mark.parametrize("option", OPTIONS)
    def test_it_is_found_out_at_the_end(
        self,
        option: str,
        with_room: Callable[[int], None],
        tiny_bundle: Path,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with_room(1)
        path = tmp_path / "file"

        def failing() -> None:
            options: Any = {option: path}
            with pocketmoe.open(tiny_bundle, **options) as session:
                session.forward(TOKENS[:1])
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            failing()
        assert "file is not made: No space" in caplog.text
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("option", OPTIONS)
    def test_another_error_stays(
        self,
        option: str,
        with_room: Callable[[int], None],
        tiny_bundle: Path,
        tmp_path: Path,
    ) -> None:
        with_room(1)

        def failing(*_: object) -> None:
            raise BundleError("broken")

        options: Any = {option: tmp_path / "file"}
        with pocketmoe.open(tiny_bundle, **options) as session:
            session.forward(TOKENS[:2])
            with pytest.raises(BundleError, match="broken"):
                session.forward(TOKENS, observe=failing)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("option", OPTIONS)
    def test_it_is_full_from_the_start(
        self, option: str, with_room: Callable[[int], None], tiny_bundle: Path, tmp_path: Path
    ) -> None:
        with_room(0)
        options: Any = {option: tmp_path / "file"}
        with pytest.raises(InputError, match="file cannot be written"):
            pocketmoe.open(tiny_bundle, **options)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["taken.json", "taken.csv.gz", ""])
def test_what_is_no_recording_is_not_replaced(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name if name else Path()
    if name:
        path.write_text('{"a user\'s": "own"}\n')
    for option in ("trace", "record_routes"):
        with pytest.raises(InputError, match="give another name" if name else "is a folder"):
            pocketmoe.open(tiny_bundle, **{option: path})  # type: ignore[arg-type]
    if name:
        assert path.read_text() == '{"a user\'s": "own"}\n'
        assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["routes.csv", "routes.csv.gz"])
def test_an_older_recording_is_replaced(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    sizes = []
    for tokens in ([1, 2, 3], [1] * 40):
        with pocketmoe.open(tiny_bundle, record_routes=tmp_path / name) as session:
            session.forward(tokens)
        sizes.append(len(read_routes(tmp_path / name).visits))
    assert 0 < sizes[0] <= sizes[1]
    assert [file.name for file in tmp_path.iterdir()] == [name]
