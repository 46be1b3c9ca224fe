"""Under a grammar no token is drawn that it does not allow, and what is whole fits it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import pocketmoe.runtime.loaded
from pocketmoe import Grammar, Session
from pocketmoe.errors import BudgetError, InputError
from pocketmoe.runtime.generation.grammar import Matcher
from pocketmoe.runtime.generation.grammar_memory import GRAMMAR, bytes_while_made
from pocketmoe.runtime.generation.vocabulary import Vocabulary
from pocketmoe.tests.support.examples import examples
from pocketmoe.tests.support.paths import ROOT
from pocketmoe.tests.support.waiting import PATIENCE

llguidance = pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "bé", "🙂"]}, "maxItems": 3},
        "more": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/point"}]},
    },
    "required": ["name", "age", "more"],
    "additionalProperties": False,
    "$defs": {
        "point": {
            "type": "object",
            "properties": {"x": {"type": "number", "minimum": -1, "maximum": 1}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}
SCHEMAS: list[Any] = [
    PERSON,
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 5},
    {"enum": ["yes", "no", 3, None]},
    {"const": {"a": [1, "\n"]}},
    {"type": "string", "pattern": "^[a-f]{3,8}$"},
    {"type": "string", "format": "date"},
    {"type": "integer", "multipleOf": 5, "minimum": 5, "maximum": 95},
    {"type": ["integer", "null"], "maximum": 1000, "minimum": -1000},
]
HOT: list[dict[str, Any]] = [
    {},
    {"temperature": 3.0},
    {"temperature": 9.0, "top_k": 4},
    {"temperature": 1.5, "top_p": 0.6, "repetition_penalty": 1.6},
    {"temperature": 2.0, "min_p": 0.02, "presence_penalty": 1.5},
]


@pytest.fixture(scope="module")
def session(tiny_bundle_fp32: Path) -> Iterator[Session]:
    with pocketmoe.open(tiny_bundle_fp32) as session:
        yield session


class TestGenerated:
    @pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
    def test_json_fits_its_schema(self, schema: Any, session: Session) -> None:
        grammar, validator = Grammar.json_schema(schema), jsonschema.Draft202012Validator(schema)
        whole = 0
        for seed, how in enumerate(HOT * 2):
            made = session.generate("x", max_new_tokens=400, grammar=grammar, seed=seed, **how)
            text = made.text()
            if made.finish_reason == "stop":
                whole += 1
                validator.validate(json.loads(text))
        assert whole >= 6

    def test_the_schema_that_anything_fits(self, session: Session) -> None:
        made = session.generate("x", max_new_tokens=40, grammar=Grammar.json_schema(True))
        if (text := made.text()) and made.finish_reason == "stop":
            json.loads(text)

    def test_json_objects(self, session: Session) -> None:
        for seed in range(4):
            made = session.generate(
                "x", max_new_tokens=400, grammar=Grammar.json_object(), temperature=2, seed=seed
            )
            text = made.text()
            assert text.lstrip().startswith("{")
            if made.finish_reason == "stop":
                assert isinstance(json.loads(text), dict)

    @pytest.mark.parametrize(
        "pattern", ["(ab|cd){2,4}x?", "[0-9]{1,3}[.][0-9]{2}", "é+🙂|日本", "a?", "[^a-z]{3}"]
    )
    def test_text_fits_its_pattern(self, pattern: str, session: Session) -> None:
        for seed, how in enumerate(HOT):
            made = session.generate(
                "x", max_new_tokens=60, grammar=Grammar.regex(pattern), seed=seed, **how
            )
            assert re.fullmatch(pattern, made.text())
            assert made.finish_reason == "stop"

    def test_a_lark_grammar(self, session: Session) -> None:
        grammar = Grammar.lark('start: "(" (start | /[0-9]{1,4}/) ")"')
        for seed in range(5):
            made = session.generate(
                "x", max_new_tokens=60, grammar=grammar, temperature=1.0, seed=seed
            )
            text = made.text()
            if made.finish_reason == "stop":
                assert re.fullmatch(r"\(+[0-9]{1,4}\)+", text)
                assert text.count("(") == text.count(")")

    def test_no_bias_lets_another_token_through(self, session: Session) -> None:
        spec = session.manifest.spec
        bias = dict.fromkeys(range(spec.vocab_size), 100.0)
        bias |= {session.tokenizer.token_to_id(digit): -100.0 for digit in "123"}
        for how in HOT:
            made = session.generate(
                "x", max_new_tokens=9, grammar=Grammar.regex("[123]{6}"), logit_bias=bias, **how
            )
            assert re.fullmatch("[123]{6}", made.text())

    def test_the_end_comes_only_where_the_text_may_end(self, session: Session) -> None:
        (end,) = session.manifest.spec.eos_token_ids
        for pattern, length in (("[ab]{5}", 5), ("[ab]{3,9}", 3), ("[ab]{2}|[ab]{7}", 2)):
            made = session.generate(
                "x", max_new_tokens=50, grammar=Grammar.regex(pattern), logit_bias={end: 1000.0}
            )
            assert re.fullmatch(pattern, made.text())
            assert len(made.text()) >= length
            assert made.finish_reason == "stop"

    def test_too_few_tokens(self, session: Session) -> None:
        made = session.generate("x", max_new_tokens=3, grammar=Grammar.regex("[ab]{9}ab"))
        assert re.fullmatch("[ab]+", made.text())
        assert made.finish_reason == "length"

    def test_a_stop_string_goes_first(self, session: Session) -> None:
        made = session.generate(
            "x", max_new_tokens=30, grammar=Grammar.regex("aab[cd]{5}"), stop=["b"]
        )
        assert made.text() == "aa"
        assert made.finish_reason == "stop"


class TestMatcher:
    @settings(max_examples=examples(40), deadline=None)
    @given(seed=st.integers(0, 2**32 - 1))
    def test_any_way_through_it_fits(self, session: Session, seed: int) -> None:
        """Tokens drawn evenly among those that are allowed, until nothing else is left."""
        random = np.random.default_rng(seed)
        schema = SCHEMAS[int(random.integers(len(SCHEMAS)))]
        matcher = Matcher(Grammar.json_schema(schema), session.model.vocabulary())
        tokens: list[int] = []
        while not matcher.complete and len(tokens) < 600:
            tokens.append(int(random.choice(matcher.allowed())))
            matcher.add(tokens[-1])
        if matcher.complete:
            jsonschema.validate(json.loads(session.tokenizer.decode(tokens)), schema)

    def test_tokens_that_the_tokenizer_lacks(self, session: Session) -> None:
        """Models round their vocabulary up."""
        matcher = Matcher(
            Grammar.lark("start: /(.|\\n)*/"), Vocabulary(session.tokenizer, 500, (0,))
        )
        known = session.tokenizer.get_vocab_size()
        assert known < 500
        allowed = matcher.allowed()
        assert len(allowed) > known // 2
        assert allowed.max() < known

    def test_several_ends(self, session: Session) -> None:
        matcher = Matcher(Grammar.regex("[0-9]{1,3}"), Vocabulary(session.tokenizer, 384, (0, 300)))
        assert not {0, 300} & set(matcher.allowed().tolist())
        matcher.add(session.tokenizer.token_to_id("1"))
        assert {0, 300} < set(matcher.allowed().tolist())
        assert not matcher.complete
        matcher.add(300)
        assert matcher.complete

    def test_a_token_that_was_not_allowed(self, session: Session) -> None:
        matcher = Matcher(Grammar.regex("[0-9]"), Vocabulary(session.tokenizer, 384, (0,)))
        with pytest.raises(InputError, match=r"no text fits|cannot be followed"):
            matcher.add(session.tokenizer.token_to_id("a"))

    def test_a_tokenizer_that_pads_and_cuts(self, session: Session) -> None:
        tokenizer = Tokenizer.from_str(session.tokenizer.to_str())
        tokenizer.enable_truncation(2)
        tokenizer.enable_padding(length=64)
        assert (
            len(Matcher(Grammar.regex("[0-9]"), Vocabulary(tokenizer, 384, (0,))).allowed()) >= 10
        )
        assert tokenizer.truncation is not None


class TestMemory:
    @pytest.mark.parametrize("tokens", [512, 48_000])
    def test_it_takes_no_more_than_is_reckoned(self, tokens: int) -> None:
        script = ROOT / "bench/memory/grammar_memory.py"
        command = [sys.executable, str(script), "--tokens", str(tokens), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        took = json.loads(done.stdout)
        for what, planned in took["planned"].items():
            assert took[what] <= planned
            assert took[what] > planned // 3

    def test_pages_make_room_for_the_first(
        self, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pocketmoe.runtime.loaded, "bytes_kept", bytes_while_made)
        with pocketmoe.open(tiny_bundle, context=64) as session:
            made = bytes_while_made(session.manifest.spec.vocab_size)
            session.set_memory_budget(session.plan.least + made + GRAMMAR)
            before = session.plan
            session.generate("x", max_new_tokens=2, grammar=Grammar.regex("a+")).text()
            plan = session.plan
            assert plan.grammars == made + GRAMMAR
            assert plan.total <= session.plan.budget
            assert session.stats.cache_slots == plan.slots < before.slots
            session.generate("x", max_new_tokens=2, grammar=Grammar.regex("b+")).text()
            assert session.plan == plan

    def test_there_is_no_room(self, tiny_bundle: Path) -> None:
        """It is said, what it takes too, and the session goes on without."""
        with pocketmoe.open(tiny_bundle, context=64) as session:
            session.set_memory_budget(session.plan.least + (1 << 20))
            before = session.plan
            with pytest.raises(BudgetError, match=r"and grammars .*smallest that works is") as told:
                session.generate("x", grammar=Grammar.regex("a+"))
            assert session.plan == before
            assert session.generate("x", max_new_tokens=2).text()
            smallest = re.search(r"works is (\d+MiB)", str(told.value))
            assert smallest
            session.set_memory_budget(smallest[1])
            assert session.generate("x", max_new_tokens=2, grammar=Grammar.regex("a+")).text()

    @pytest.mark.parametrize(
        ("schema", "fits"),
        [
            ({"enum": [f"{n:020x}" for n in range(1500)]}, True),
            ({"enum": [f"{n:020x}" for n in range(4000)]}, False),
            ({"enum": [f"{n:020x}" for n in range(20_000)]}, False),
            ({"properties": {f"n{n}": {"type": "string"} for n in range(280)}}, True),
            (
                {"properties": {f"n{n}": {"type": "integer", "minimum": n} for n in range(3000)}},
                False,
            ),
        ],
    )
    def test_what_would_take_more_is_refused(
        self, schema: dict[str, Any], fits: bool, session: Session
    ) -> None:
        grammar, vocabulary = Grammar.json_schema(schema), session.model.vocabulary()
        if fits:
            assert len(Matcher(grammar, vocabulary).allowed())
        else:
            with pytest.raises(InputError, match=r"JSON schema is too large.*fewer parts"):
                Matcher(grammar, vocabulary)


class TestRefusals:
    @pytest.mark.parametrize(
        ("grammar", "words"),
        [
            (Grammar.regex("("), r"the regular expression cannot be compiled: .*unclosed group"),
            (Grammar.regex("(?!a)b"), "look-around"),
            (Grammar.regex(r"[^\x00-\U0010ffff]"), "no text fits the regular expression"),
            (
                Grammar.lark("start: foo"),
                r'the Lark grammar cannot be compiled: .*unknown name: "foo"',
            ),
            (Grammar.lark(""), "the Lark grammar cannot be compiled"),
            (Grammar.json_schema({"type": "nope"}), r"the JSON schema .*: Invalid type: nope"),
            (Grammar.json_schema({"$ref": "http://example.com/x"}), "does not fetch"),
            (Grammar.json_schema({"type": "integer", "multipleOf": 99999989}), "is too large"),
            (Grammar.json_schema({"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}), "large"),
            (Grammar.lark('start: %json {"multiple\\u004ff": 9999.9989}'), "is too large"),
            (Grammar.json_schema({"$ref": "#/$defs/none"}), "JSON schema cannot be compiled"),
            (Grammar.json_schema({"not": {}}), "Unimplemented keys"),
            (Grammar.json_schema(False), "Unsatisfiable"),
            (Grammar.json_schema({"type": "array", "minItems": 3, "maxItems": 1}), "Unsatisf"),
        ],
    )
    def test_what_cannot_be_compiled(self, grammar: Grammar, words: str, session: Session) -> None:
        with pytest.raises(InputError, match=words) as caught:
            session.generate("x", grammar=grammar)
        assert len(str(caught.value).splitlines()) == 1

    @pytest.mark.parametrize(
        "schema", ["{", "nope", "[1]", "3", '"x"', 3, None, {"a": {1}}, {"a": float("nan")}, [{}]]
    )
    def test_what_is_no_schema(self, schema: Any) -> None:
        with pytest.raises(InputError, match="JSON schema"):
            Grammar.json_schema(schema)

    def test_what_is_no_text(self) -> None:
        for wrong in (b"a", 5, None):
            with pytest.raises(InputError, match="text"):
                Grammar.regex(wrong)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="UTF-8"):
            Grammar.lark("\ud800")

    def test_nesting_without_end(self) -> None:
        deep: dict[str, Any] = {}
        for _ in range(100_000):
            deep = {"items": deep}
        with pytest.raises(InputError, match="JSON schema"):
            Grammar.json_schema(deep)

    def test_without_llguidance(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "llguidance", None)
        with pytest.raises(InputError, match=r"pip install 'pocketmoe\[structured\]'"):
            session.generate("x", grammar=Grammar.regex("a"))
        assert session.generate("x", max_new_tokens=2).new_tokens == 0
