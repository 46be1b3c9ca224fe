"""`pocketmoe report`, and the routes of a calibration for `replay` and `plan`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pocketmoe.analysis.planning.replay import belady, replay
from pocketmoe.analysis.planning.route_sources import load_routes, recorded_routes
from pocketmoe.bundle.manifest import ExpertLayer, read_manifest
from pocketmoe.bundle.pages import PageFormat
from pocketmoe.calibration.record import (
    CalibrationRecord,
    LayerRecord,
    Provenance,
    read_record,
    write_record,
)
from pocketmoe.cli import main
from pocketmoe.report.expert_figures import bits_figure, error_figures, usage_figure
from pocketmoe.report.facts import LayerError, bits_per_weight, format_name, formats_of
from pocketmoe.report.page import FIRST_LINE
from pocketmoe.report.svg import STEPS, Scale, nice_ticks, scale_colours
from pocketmoe.targets import measured_target, write_target

SOURCE = "<script>alert('x')</script> & café"
VOID = {"meta", "br", "link", "img", "hr", "input"}
SHAPES = {"path", "circle"}  # of SVG, closed by themselves


class Page(HTMLParser):
    """Keeps what a browser would see, and refuses what is not well nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.text = ""
        self._caption = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "caption":
            self._caption = ""
        elif tag == "tr":
            self.rows[self._caption].append([])
        elif tag in ("td", "th"):
            self.rows[self._caption][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SHAPES
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "caption":
            self.rows[self._caption] = []

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "caption":
            self._caption += data
        elif self.open and self.open[-1] in ("td", "th"):
            self.rows[self._caption][-1][-1] += data
        self.text += data


def make_record(
    *, layers: int = 3, experts: int = 8, top_k: int = 2, sequences: int = 4, length: int = 48,
    provenance: Provenance | None = None,
) -> CalibrationRecord:  # fmt: skip
    """Random routes; nobody goes to expert 5 of the second layer."""
    random = np.random.default_rng(0)
    tokens = sequences * length
    found = []
    for layer in range(layers):
        liking = random.normal(size=experts)
        if layer == 1:
            liking[5] = -1e9
        order = np.argsort(-(liking + random.gumbel(size=(tokens, experts))), axis=1)
        chosen = order[:, :top_k].astype(np.uint16)
        weights = random.dirichlet(np.ones(top_k), tokens).astype(np.float16)
        sums = np.bincount(chosen.ravel(), weights.ravel().astype(float), experts)
        found.append(LayerRecord(
            layer=layer, experts=chosen, weights=weights,
            usage=np.bincount(chosen.ravel(), minlength=experts).astype(np.int64),
            weight_sums=sums, input_max=np.ones(64, np.float32),
            input_square=np.ones((experts, 64), np.float32),
            inner_square=np.ones((experts, 128), np.float32),
            foreseen=None if layer == 0 else 0.5 + layer / 10,
        ))  # fmt: skip
    known = provenance or Provenance(
        "a" * 64, "olmoe", "b" * 64, "c" * 64, SOURCE, tokens, length, 7, False, "0.1.0"
    )
    ids = random.integers(0, 100, (sequences, length))
    return CalibrationRecord(known, ids, tuple(found))


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "cal"
    path.mkdir()
    write_record(path, make_record())
    return path


@pytest.fixture(scope="session")
def tiny_record(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pocketmoe.calibration.calibrate import calibrate

    folder = tmp_path_factory.mktemp("calibration")
    text = folder / "text.py"
    text.write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    calibrate(tiny_checkpoint, text, folder / "cal", tokens=512, seq_len=64)
    return folder / "cal"


def call(*arguments: str | Path, command: str = "report") -> Result:
    return CliRunner().invoke(main, [command, *map(str, arguments)])


def make_page(path: Path, output: Path, *options: str | Path) -> Page:
    result = call(path, "-o", output, *options)
    assert result.exit_code == 0, result.output
    assert str(output) in result.stdout
    return Page(output.read_text(encoding="ascii"))


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_numbers_are_the_records(record: Path, tmp_path: Path) -> None:
    page, facts = make_page(record, tmp_path / "r.html"), read_record(record)
    usage = page.rows["tokens of each expert"]
    assert usage[0] == ["layer", *map(str, range(8))]
    for row, item in zip(usage[1:], facts.layers, strict=True):
        assert row == [str(item.layer), *(f"{n:,}" for n in item.usage)]
    weight = page.rows["share of the router's weight, in %"][1:]
    for row, item in zip(weight, facts.layers, strict=True):
        shares = [float(cell) for cell in row[1:]]
        assert shares == pytest.approx(100 * item.weight_sums / item.weight_sums.sum(), abs=0.006)
    assert page.rows["experts that no token went to"][1:] == [["1", "1", "5"]]
    assert page.rows["routing foreseen"][1:] == [["1", "60.0%"], ["2", "70.0%"]]
    provenance = dict(page.rows["calibration"][1:])
    assert provenance["text"] == SOURCE
    assert provenance["tokens"] == "192: 4 sequences of 48"
    assert provenance["hash of the model"] == "a" * 64
    (title,) = [name for name in page.rows if name.startswith("layers")]
    assert page.rows[title][2][:3] == ["1", "8", "1"]


def test_hit_rates_are_those_of_a_replay(record: Path, tmp_path: Path) -> None:
    page = make_page(record, tmp_path / "r.html")
    (title,) = [name for name in page.rows if name.startswith("hit rates")]
    routes = recorded_routes(read_record(record)).routes
    unit = replace(routes, page_bytes=dict.fromkeys(routes.layers, 1))
    for row in page.rows[title][1:]:
        optimum = replay(unit, int(row[0]), belady(unit)).hit_rate
        assert row[4] == f"{optimum:.1%}"
        assert float(row[3][:-1]) <= float(row[4][:-1])
    assert page.rows[title][-1][0] == "24"


def test_a_page_that_needs_nothing_else(record: Path, tmp_path: Path) -> None:
    page = make_page(record, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="ascii")
    assert text.startswith(FIRST_LINE)
    assert not re.search(r"https?:|//|url\(|@import|@font-face", text.replace(FIRST_LINE, ""))
    assert "<script" not in text
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "img", "object")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
        if tag == "svg":
            assert {"viewbox", "viewBox"} & set(attributes)
            assert attributes.get("aria-hidden") == "true" or attributes.get("aria-label")
    names = {attributes.get("id") for _, attributes in page.tags}
    for tag, attributes in page.tags:
        if tag == "a":
            assert str(attributes["href"])[1:] in names
    styles = re.search(r"<style>(.*)</style>", text, re.DOTALL)
    assert styles is not None
    assert "prefers-color-scheme: dark" in styles[1]
    for name in re.findall(r"var\((--\w+)\)", text):
        assert f"{name}:" in text


def test_the_same_facts_make_the_same_bytes(record: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.html", tmp_path / "b.html"
    make_page(record, first)
    make_page(record, second)
    assert first.read_bytes() == second.read_bytes()


def test_a_real_record_and_its_bundle(
    tiny_record: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, manifest = read_record(tiny_record), read_manifest(tiny_bundle)
    page = make_page(tiny_bundle, tmp_path / "r.html", "--calibration", tiny_record)
    usage = page.rows["tokens of each expert"][1:]
    assert [row[1:] for row in usage] == [[f"{n:,}" for n in i.usage] for i in facts.layers]
    assert page.rows["formats"][1:] == [["int4, blocks of 32", "4.5", str(manifest.num_pages)]]
    assert dict(page.rows["bundle"][1:])["target"] == "cpu"
    assert "pocketmoe targets --measure" in page.text
    monkeypatch.setenv("POCKETMOE_CONFIG", str(tmp_path))
    figures = {"memory_bytes": 1 << 33, "memory_bandwidth": 2e10, "storage_bandwidth": 1e9}
    write_target(tmp_path / "targets.json", measured_target("local", "a machine", figures, {}))
    page = make_page(tiny_bundle, tmp_path / "r.html", "--calibration", tiny_record)
    rows = page.rows["by budget; ms are of one token"]
    assert rows[0][3:5] == ["tok/s", "limit"]
    assert rows[-1][2] == "100.0%"
    assert "Page hits" in page.text or "page hits replayed" in page.text


def test_a_bundle_alone_says_what_it_lacks(tiny_bundle: Path, tmp_path: Path) -> None:
    page = make_page(tiny_bundle, tmp_path / "r.html")
    assert "tokens of each expert" not in page.rows
    assert "report BUNDLE --calibration CAL" in page.text
    assert "No prediction" in page.text


def test_errors_of_a_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    layers = [
        {"layer": item.layer, "error": [0.01 * (n + 1) for n in range(len(item.offsets))],
         "hidden_error": 0.02}
        for item in read_manifest(bundle).experts
    ]  # fmt: skip
    layers[0]["error"] = [None, *layers[0]["error"][1:]]  # type: ignore[index]
    (bundle / "calibration.json").write_text(json.dumps({"layers": layers}))
    page = make_page(bundle, tmp_path / "r.html")
    rows = page.rows["relative error of each expert"]
    assert rows[1][1:3] == ["", "0.0200"]
    assert page.rows["errors by layer"][1][3] == "0.0200"
    for content in ("[", "[]", '{"layers": [{"layer": 0, "error": [1]}]}', '{"layers": 3}'):
        (bundle / "calibration.json").write_text(content)
        line = refused(call(bundle, "-o", tmp_path / "r.html"))
        assert "calibration.json is damaged" in line


def test_what_is_refused(record: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.html"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "neither a calibration record nor a bundle" in refused(call(empty, "-o", output))
    assert "does not exist" in refused(call(tmp_path / "none", "-o", output))
    assert "is a file" in refused(call(record / "record.json", "-o", output))
    assert "goes with a bundle" in refused(call(record, "-o", output, "--calibration", record))
    assert "goes with a bundle" in refused(call(record, "-o", output, "--target", "cpu"))
    other = refused(call(tiny_bundle, "-o", output, "--calibration", record))
    assert "is the calibration of another model" in other
    assert not output.exists()
    assert {item.name for item in tmp_path.iterdir()} == {"cal", "empty"}


def damage_arrays(record: Path) -> None:
    with (record / "arrays.npz").open("r+b") as file:
        file.seek(100)
        file.write(b"xxxx")


def change_version(record: Path) -> None:
    data = json.loads((record / "record.json").read_text())
    (record / "record.json").write_text(json.dumps({**data, "version": 99}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damage_arrays, "is damaged"),
        (change_version, "has version 99"),
        (lambda record: (record / "record.json").write_text("{"), "cannot be read"),
        (lambda record: (record / "record.json").write_text("{}"), "is no calibration record"),
    ],
)
def test_a_record_that_cannot_be_used(
    record: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(record)
    assert message in refused(call(record, "-o", tmp_path / "r.html"))
    assert message in refused(call(record, command="replay"))


def test_another_file_is_not_replaced(record: Path, tmp_path: Path) -> None:
    output = tmp_path / "mine.html"
    output.write_text("<html>mine</html>")
    assert "another kind of file" in refused(call(record, "-o", output))
    assert output.read_text() == "<html>mine</html>"
    make_page(record, output, "--force")
    make_page(record, output)  # an earlier report
    assert "is a folder" in refused(call(record, "-o", tmp_path, "--force"))
    missing = refused(call(record, "-o", tmp_path / "no" / "r.html"))
    assert "cannot be written" in missing


def test_replay_and_plan_take_a_record(tiny_record: Path, tiny_bundle: Path, record: Path) -> None:
    report = json.loads(call(tiny_record, "--json", command="replay").stdout)
    assert "of 512 calibration tokens" in report["note"]
    for row in report["rows"]:
        assert row["hit_rates"]["optimum"] == max(row["hit_rates"].values())
    result = call(tiny_bundle, "--target", "cpu", "--routes", tiny_record, "--json", command="plan")
    assert json.loads(result.stdout)["hits_from"].startswith(f"replayed: {tiny_record}, ")
    line = refused(call(tiny_bundle, "--target", "cpu", "--routes", record, command="plan"))
    assert "give routes of this model" in line


def test_routes_of_a_record_are_its_tokens_in_order(record: Path) -> None:
    facts = read_record(record)
    routes = recorded_routes(facts, tokens=60).routes
    assert len(routes.visits) == 60 * 3
    for place in (0, 47, 48, 59):  # 48 tokens of the first sequence, 12 of the second
        for number, item in enumerate(facts.layers):
            visit = routes.visits[3 * place + number]
            assert visit.layer == item.layer
            assert visit.experts == tuple(item.experts[place])
            assert visit.prompt == (place < 15)
    assert load_routes(record).routes.layers == (0, 1, 2)
    many = recorded_routes(facts, tokens=10**9).routes
    assert len(many.visits) == facts.ids.size * 3


def test_a_model_without_experts(tmp_path: Path) -> None:
    write_record(tmp_path, make_record(layers=0))
    assert "has no experts in pages" in make_page(tmp_path, tmp_path / "r.html").text
    assert "holds no routes" in refused(call(tmp_path, command="replay"))


def test_bits_count_scales(tiny_bundle: Path) -> None:
    expected = {
        ("int4", 64): 4.25, ("int4", 128): 4.125, ("int8", 32): 8.5, ("fp16", 0): 16.0,
    }  # fmt: skip
    for (precision, block), bits in expected.items():
        assert bits_per_weight(PageFormat(precision, block, 256, 128)) == bits
        assert bits_per_weight(PageFormat(precision, block, 256, 128, bias=True)) == bits
    assert format_name(PageFormat("int4", 32, 64, 64)) == "int4, blocks of 32"
    assert format_name(PageFormat("fp16", 0, 64, 64)) == "fp16"

    class Mixed(ExpertLayer):
        def format_of(self, expert: int) -> PageFormat:
            return PageFormat("int8" if expert == 1 else "int4", 32, 64, 64)

    manifest = read_manifest(tiny_bundle)
    mixed = tuple(Mixed(**vars(layer)) for layer in manifest.experts)
    assert [page.precision for page in formats_of(mixed[0])][:3] == ["int4", "int8", "int4"]
    figure = bits_figure(replace(manifest, experts=mixed))
    assert figure is not None
    assert figure.table is not None
    assert [row[0] for row in figure.table.rows] == ["int4, blocks of 32", "int8, blocks of 32"]
    assert len({key.style for key in figure.keys}) == 2


def test_extremes_have_pictures() -> None:
    one = make_record(layers=1, experts=1, top_k=1, sequences=1, length=1)
    assert usage_figure(one).scale == ("1", "1 tokens")
    assert error_figures([LayerError(0, (None, None), None)]) == []
    assert len(error_figures([LayerError(0, (0.1,), None)])) == 2
    wide = usage_figure(make_record(layers=2, experts=512, top_k=4))
    assert wide.picture.svg.count("<path") == 1024
    assert Scale(1, 100, log=True).step(100) == STEPS - 1
    assert Scale(1, 100, log=True).step(1) == 0
    assert Scale(2, 2, log=False).step(2) == STEPS - 1
    assert len(set(scale_colours())) == STEPS
    assert nice_ticks(0.93) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert nice_ticks(0.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert nice_ticks(94, 5, 93)[0] == 93


def test_a_report_needs_no_torch(record: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from pocketmoe.report.facts import gather_report\n"
        "from pocketmoe.report.page import render_report\n"
        "render_report(gather_report(Path(sys.argv[1])))\n"
        "print([n for n in ('torch', 'onnx', 'safetensors', 'matplotlib') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(record)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
