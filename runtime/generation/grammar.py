"""Text that fits a grammar: a JSON schema, a regular expression, or a Lark grammar. llguidance
tells which tokens may follow."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import numpy as np

from ...errors import InputError
from .grammar_memory import LONGEST, limits
from .vocabulary import Vocabulary, in_one_line, need_llguidance

Kind = Literal["JSON schema", "regular expression", "Lark grammar"]
# Between the parts of JSON, as people and programs write it. Without a limit, a model could go on
# with spaces for ever.
_SPACE = r"(\x20{0,4}|(\r?\n){1,2}[\x20\t]{0,64})"
# llguidance makes a state for each remainder by "multipleOf", without a limit: half a KiB for each,
# and 10⁸ end the process, as no memory is left. Factors of 10 cost nothing; several numbers may
# have to hold at once, so their product counts.
_MULTIPLE = re.compile(r'"multipleOf"\s*:\s*([-+.0-9eE]+)')
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_MOST_REMAINDERS = 4000


@dataclass(frozen=True)
class Grammar:
    """What a text must fit. Make one by the methods below, and give it to `Session.generate`, which
    compiles it. It needs the extra `structured`.

    Attributes:
        kind: "JSON schema", "regular expression" or "Lark grammar".
        source: its text.
    """

    kind: Kind
    source: str

    @staticmethod
    def json_schema(schema: Mapping[str, Any] | bool | str) -> Grammar:
        """JSON that fits a schema. Keywords that llguidance does not know are refused when a
        generation starts.

        Args:
            schema: the schema, or its JSON text.

        Raises:
            InputError: it is no JSON, or neither an object nor a boolean.
        """
        try:
            value = json.loads(schema) if isinstance(schema, str) else schema
            if not isinstance(value, (Mapping, bool)):
                raise InputError("a JSON schema is an object or a boolean")
            if not isinstance(value, bool) and "x-guidance" in value:
                raise InputError("the JSON schema has 'x-guidance', which is not heeded; remove it")
            value = value if isinstance(value, bool) else dict(value)
            return Grammar("JSON schema", json.dumps(value, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"the JSON schema is not valid JSON: {in_one_line(str(error))}"
            ) from error

    @staticmethod
    def json_object() -> Grammar:
        """Any JSON object."""
        return Grammar.json_schema({"type": "object"})

    @staticmethod
    def regex(pattern: str) -> Grammar:
        """The whole text fits a regular expression, in the syntax of Rust's crate `regex`.

        Raises:
            InputError: it is no text, or not valid UTF-8.
        """
        return Grammar("regular expression", _text(pattern))

    @staticmethod
    def lark(text: str) -> Grammar:
        """A context-free grammar, in llguidance's variant of Lark's syntax.

        Raises:
            InputError: it is no text, or not valid UTF-8.
        """
        return Grammar("Lark grammar", _text(text))


class Matcher:
    """Follows a text through a grammar, token by token.

    Raises:
        InputError: llguidance cannot compile the grammar; the reason is in it.
    """

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary):
        self._grammar, self._vocabulary = grammar, vocabulary
        llguidance = need_llguidance()
        self._matcher = llguidance.LLMatcher(
            vocabulary.tokens, _compiled(grammar), log_level=0, limits=limits(llguidance)
        )
        self._check("cannot be compiled")
        self._mask = np.zeros(-(-vocabulary.size // 32), np.int32)
        self.allowed()  # tells whether any text fits

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids of tokens that end a text."""
        return self._vocabulary.ends

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> np.ndarray:
        """Ids of tokens that may follow, int64 `[n]`, ascending; those that end the text only where
        it may end.

        Raises:
            InputError: none, or the grammar is too complex.
        """
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check("cannot be followed")
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")
        ids = np.flatnonzero(bits[: self._vocabulary.size])
        if not len(ids):
            raise InputError(f"the {self._grammar.kind} allows no token here; give another one")
        return ids

    def add(self, token: int) -> None:
        """Raises InputError where `token` was not allowed."""
        self._matcher.consume_token(token)
        self._check("cannot be followed")

    def _check(self, what: str) -> None:
        if self._matcher.is_error():
            reason = in_one_line(self._matcher.get_error())
            if reason.startswith("NoExtension"):
                raise InputError(f"no text fits the {self._grammar.kind}; give another one")
            if "too big" in reason or "too many states" in reason:
                kind = self._grammar.kind
                raise InputError(f"the {kind} is too large ({reason}); give it fewer parts")
            raise InputError(f"the {self._grammar.kind} {what}: {reason}")


def _check_multiples(grammar: Grammar) -> None:
    """Raises InputError where numbers have to be multiples of what is too large."""
    text = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), grammar.source)
    remainders = 1
    for wanted in {found[1] for found in _MULTIPLE.finditer(text)}:
        try:
            number = int("".join(map(str, Decimal(wanted).as_tuple().digits)))
        except (ArithmeticError, ValueError):  # no number, which llguidance tells
            continue
        for factor in (2, 5):
            while number and number % factor == 0:
                number //= factor
        remainders *= max(1, number)
        if remainders > _MOST_REMAINDERS:
            raise InputError(
                f"the {grammar.kind} cannot be compiled: multipleOf is too large; at most "
                f"{_MOST_REMAINDERS}, beside factors of 10, and all of them together"
            )


def _compiled(grammar: Grammar) -> str:
    if len(grammar.source) > LONGEST:
        raise InputError(
            f"the {grammar.kind} is too large: it has {len(grammar.source)} characters, at most "
            f"{LONGEST} are taken; give it fewer parts"
        )
    make = need_llguidance().LLMatcher
    if grammar.kind != "regular expression":
        _check_multiples(grammar)
    if grammar.kind == "JSON schema":
        overrides = {"whitespace_flexible": True, "whitespace_pattern": _SPACE, "lenient": False}
        source = "{}" if grammar.source == "true" else grammar.source
        try:
            compiled = make.grammar_from_json_schema(
                source,
                overrides=overrides if source != "false" else None,  # which wants an object
            )
        except ValueError as error:
            raise InputError(
                f"the JSON schema cannot be compiled: {in_one_line(str(error))}"
            ) from error
    elif grammar.kind == "regular expression":
        compiled = make.grammar_from_regex(grammar.source)
    else:
        compiled = make.grammar_from_lark(grammar.source)
    return str(compiled)


def _text(text: object) -> str:
    if not isinstance(text, str):
        raise InputError(f"a grammar is text, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"the grammar is not valid UTF-8 at character {error.start}") from error
    return text
