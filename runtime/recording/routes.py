"""Route files: which experts each token picked in each layer, for replaying a cache offline.

The format is that of BigMoeOnEdge's `--route-trace` (github.com/Helldez/BigMoeOnEdge), so that
traces of either tool can be read: CSV, gzipped or not. Lines with `#` come first, of which read is

    # layer=N expert_bytes=B ...

then a line of column names and a row for each expert of each token. Read are the columns `turn`,
`phase` (0 prompt, 1 decode), `step` (the token), `layer`, `expert`; others may be there. Rows are
in the order in which layers ran: a prompt's layer has the rows of all tokens of its chunk.

Written are also `slot` and `weight`, the expert's place among the token's and its share, and what
the cache that it ran with did: `residency`, whether the page was there when the layer began, and
`expert_bytes`, what was read for this row.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ...files import WholeFile

COLUMNS = (*"turn phase step layer slot expert weight residency expert_bytes".split(),)
_READ = ("turn", "phase", "step", "layer", "expert")
_LARGEST = 2**40  # of any number in the file


@dataclass(frozen=True)
class Visit:
    """One run of a layer: for a token, or for all tokens of a chunk of the prompt.

    experts: each once, in order of their last row.
    """

    layer: int
    experts: tuple[int, ...]
    prompt: bool


@dataclass(frozen=True)
class Routes:
    """page_bytes: of every layer in `visits`."""

    visits: tuple[Visit, ...]
    page_bytes: dict[int, int]

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self.page_bytes)


@dataclass(frozen=True)
class RouteRow:
    """One expert of one token; see the columns."""

    turn: int
    phase: int
    step: int
    layer: int
    slot: int
    expert: int
    weight: float
    residency: int = 0
    expert_bytes: int = 0


def read_routes(path: Path) -> Routes:
    """Reads a route file.

    Raises:
        InputError: it cannot be read, or a line is not what the format says.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rt", encoding="ascii") as lines:
            return _parse(path, lines)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file ({error})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a route file: it holds more than ASCII text") from error


def _parse(path: Path, lines: Iterable[str]) -> Routes:
    places: list[int] | None = None
    page_bytes: dict[int, int] = {}
    visits: list[Visit] = []
    run: tuple[int, ...] = ()  # what the rows of one visit share
    experts: dict[int, None] = {}
    width = 0
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        where = f"{path}, line {number}"
        if line.startswith("#"):
            page_bytes.update(_page_size(where, line))
        elif places is None:
            names = line.split(",")
            missing = [name for name in _READ if name not in names]
            if missing:
                raise InputError(f"{where}: no column {missing[0]!r}; it is no route file")
            places, width = [names.index(name) for name in _READ], len(names)
        elif line:
            fields = line.split(",")
            if len(fields) != width:
                raise InputError(f"{where}: {len(fields)} fields instead of {width}")
            turn, phase, step, layer, expert = (_number(where, fields[i]) for i in places)
            if phase not in (0, 1):
                raise InputError(f"{where}: phase {phase} is neither 0 (prompt) nor 1 (decode)")
            if layer not in page_bytes:
                raise InputError(f"{where}: no '# layer={layer} expert_bytes=...' line before it")
            key = (turn, phase, layer) if phase == 0 else (turn, phase, layer, step)
            if key != run:
                _finish(visits, run, experts)
                run, experts = key, {}
            experts.pop(expert, None)
            experts[expert] = None
    _finish(visits, run, experts)
    if not visits:
        raise InputError(f"{path} holds no routes")
    used = {visit.layer for visit in visits}
    return Routes(tuple(visits), {layer: page_bytes[layer] for layer in sorted(used)})


def _finish(visits: list[Visit], run: tuple[int, ...], experts: dict[int, None]) -> None:
    if run:
        visits.append(Visit(run[2], tuple(experts), run[1] == 0))


def _page_size(where: str, line: str) -> dict[int, int]:
    """{layer: bytes} where the line says so, else nothing."""
    words = [word.partition("=") for word in line.lstrip("#").split()]
    facts = {name: value for name, sign, value in words if sign}
    if "layer" not in facts or "expert_bytes" not in facts:
        return {}
    size = _number(where, facts["expert_bytes"])
    if size == 0:
        raise InputError(f"{where}: pages of 0 bytes")
    return {_number(where, facts["layer"]): size}


def _number(where: str, text: str) -> int:
    value = int(text) if text.isdecimal() and len(text) < 16 else _LARGEST
    if value >= _LARGEST:
        shown = repr(text if len(text) <= 40 else text[:37] + "...")
        raise InputError(f"{where}: {shown} is not a number that it can hold")
    return value


class RouteWriter:
    """Writes a route file, which is in its place once `close` was called, or a `with` block ended
    without an error.

    page_bytes: of each layer. note: who wrote it, one line. A name that ends in .gz is gzipped.
    """

    def __init__(self, path: Path, page_bytes: dict[int, int], note: str) -> None:
        self.path = path
        sizes = [f"# layer={layer} expert_bytes={size}\n" for layer, size in page_bytes.items()]
        columns = ",".join(COLUMNS) + "\n"
        self._file = WholeFile(path, "".join(["# route_trace v1\n# ", note, "\n", *sizes, columns]))

    def write(self, rows: Iterable[RouteRow]) -> None:
        """Appends rows: token by token, or a chunk's layer as a whole. Raises OSError."""
        self._file.write("".join(map(_line, rows)))

    def close(self) -> None:
        """Raises OSError; the file is discarded then."""
        self._file.finish()

    def discard(self) -> None:
        self._file.discard()

    def __enter__(self) -> RouteWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def _line(row: RouteRow) -> str:
    return (
        f"{row.turn},{row.phase},{row.step},{row.layer},{row.slot},{row.expert},{row.weight:.6g},"
        f"{row.residency},{row.expert_bytes}\n"
    )


def layer_routes(routes: Routes) -> Iterator[Routes]:
    """The routes of each layer by itself."""
    for layer, size in routes.page_bytes.items():
        yield Routes(tuple(v for v in routes.visits if v.layer == layer), {layer: size})
