"""Reading a checkpoint's config.json strictly: what is not understood is refused by name."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ...errors import ConfigError
from ...numeric import is_integer, is_real
from .common_keys import ABSENT_PARTS, IRRELEVANT

# No count of a model comes near these, and all that is made of them stays finite and quick.
LARGEST_INTEGER = 2**31 - 1
LARGEST_COUNTS = {
    "num_hidden_layers": 4096,
    "num_nextn_predict_layers": 64,
    "num_mtp_layers": 64,
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 65536
    ),
}
# Magnitudes of numbers other than 0.
NUMBER_RANGE = (1e-12, 1e12)
# What rotary embeddings are made of stays finite between these, and published models are far
# within.
POSITIVE_RANGE = (1e-6, 1e12)

_MISSING = object()
_SHOWN = 100  # characters of a value in an error


class ConfigReader:
    """Takes values out of a config, checking each; `finish` refuses whatever was not taken.

    section: name of the object within the file that is read; "" for the whole of it.
    file: the name that errors give.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        irrelevant: frozenset[str] = frozenset(),
        section: str = "",
        family: str | None = None,
        file: str = "config.json",
    ):
        self._config, self._file = config, file
        self._unread = set(config) - irrelevant - (frozenset() if section else IRRELEVANT)
        self._absent_parts = {} if section else ABSENT_PARTS
        self._prefix = f"{section}." if section else ""
        self._rope: ConfigReader | None = None
        self.family = str(config.get("model_type")) if family is None else family

    def take(self, name: str, default: Any = _MISSING) -> Any:
        """The raw value; null counts as absent."""
        self._unread.discard(name)
        value = self._config.get(name)
        if value is not None:
            return value
        if default is _MISSING:
            raise ConfigError(
                f"{self._file}: {self._prefix}{name} is missing (family {self.family})"
            )
        return default

    def integer(self, name: str, default: Any = _MISSING) -> int:
        self._refuse_null(name, "an integer")
        value = self.take(name, default)
        if not is_integer(value):
            raise self.refusal(name, "an integer")
        largest = LARGEST_COUNTS.get(name, LARGEST_INTEGER)
        if abs(value) > largest:
            raise self.refusal(name, f"an integer of at most {largest}")
        return value

    def number(self, name: str, default: Any = _MISSING) -> float:
        self._refuse_null(name, "a number")
        value = self.take(name, default)
        least, most = NUMBER_RANGE
        if not is_number(value) or (value != 0 and not least <= abs(value) <= most):
            raise self.refusal(name, f"a number: 0, or of magnitude {least:g} to {most:g}")
        return float(value)

    def positive(self, name: str, default: Any = _MISSING) -> float:
        """A number within POSITIVE_RANGE."""
        value = self.number(name, default)
        if not is_positive(value):
            raise self.refusal(name, "a number from {:g} to {:g}".format(*POSITIVE_RANGE))
        return value

    def positives(self, name: str, length: int) -> tuple[float, ...]:
        """A list of so many numbers within POSITIVE_RANGE."""
        values = self.take(name)
        if not isinstance(values, (list, tuple)) or not all(map(is_positive, values)):
            raise self.refusal(name, "a list of numbers from {:g} to {:g}".format(*POSITIVE_RANGE))
        if len(values) != length:
            raise self.refusal(name, f"{length} numbers, not {len(values)}")
        return tuple(float(value) for value in values)

    def flag(self, name: str, default: Any = _MISSING) -> bool:
        self._refuse_null(name, "true or false")
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self.refusal(name, "true or false")
        return value

    def optional_integer(self, name: str, default: int | None = None) -> int | None:
        """An integer; None for null, the default where there is no such key."""
        if name in self._config:
            default = None
        return default if self.take(name, None) is None else self.integer(name)

    def optional_number(self, name: str, default: float | None = None) -> float | None:
        """A number; None for null, the default where there is no such key."""
        if name in self._config:
            default = None
        return default if self.take(name, None) is None else self.number(name)

    def integers(self, name: str, default: Any = _MISSING) -> tuple[int, ...]:
        """A list of integers; one integer counts as a list of one, null as an empty one."""
        value = self.take(name, () if name in self._config else default)
        values = [value] if isinstance(value, int) else value
        if not isinstance(values, (list, tuple)) or not all(
            is_integer(item) and abs(item) <= LARGEST_INTEGER for item in values
        ):
            raise self.refusal(name, f"a list of integers of at most {LARGEST_INTEGER}")
        return tuple(values)

    def require(self, name: str, *allowed: Any) -> None:
        """The value, where there is one, must be one of those that the family expresses.

        In a section null counts as absent: tools write it for what they leave unset.
        """
        if not self._prefix and None not in allowed:
            self._refuse_null(name, " or ".join(repr(item) for item in allowed))
        value = self.take(name, allowed[0])
        if value not in allowed:
            raise self.refusal(name, " or ".join(repr(item) for item in allowed))

    def has(self, name: str) -> bool:
        """Whether there is such a key, be it null."""
        return name in self._config

    def key_value_heads(self, default: int | None = None) -> int:
        """num_key_value_heads; with null, or absent without a default, each head has its own."""
        heads = self.integer("num_attention_heads")
        given = self.optional_integer("num_key_value_heads", default)
        return heads if given is None else given

    def head_dim(self, default: int | None = None) -> int:
        """head_dim; with null, or absent without a default, `split_head_dim`."""
        given = self.optional_integer("head_dim", default)
        return self.split_head_dim() if given is None else given

    def split_head_dim(self) -> int:
        """hidden_size / num_attention_heads: the size of a head where no key gives it."""
        return self.integer("hidden_size") // max(self.integer("num_attention_heads"), 1)

    def layer_types(self, num_layers: int) -> tuple[bool, ...] | None:
        """Of each layer whether `layer_types` gives it a sliding window; None without that key."""
        types = self.take("layer_types", None)
        if types is None:
            return None
        kinds = ("full_attention", "sliding_attention")
        if not isinstance(types, (list, tuple)) or not all(kind in kinds for kind in types):
            raise self.refusal("layer_types", f"a list of {kinds[0]} and {kinds[1]}")
        if len(types) != num_layers:
            raise self.refusal("layer_types", f"{num_layers} of them, one for each layer")
        return tuple(kind == "sliding_attention" for kind in types)

    def rope_section(self) -> ConfigReader:
        """What rope_parameters or rope_scaling holds."""
        if self._rope is None:
            given = {name: self.take(name, {}) for name in ("rope_parameters", "rope_scaling")}
            for name, values in given.items():
                if not isinstance(values, dict):
                    raise self.refusal(name, "an object or null")
            scaling = given["rope_scaling"]
            if scaling and given["rope_parameters"] not in ({}, scaling):
                raise self.refusal("rope_scaling", "the same as rope_parameters")
            name = "rope_scaling" if scaling else "rope_parameters"
            self._rope = ConfigReader(given[name], section=name, family=self.family)
        return self._rope

    def _refuse_null(self, name: str, expected: str) -> None:
        """null is no way to ask for a default: others read it as false, or fail."""
        if self.has(name) and self._config[name] is None:
            raise self.refusal(name, expected)

    def refusal(self, name: str, expected: str) -> ConfigError:
        return ConfigError(
            f"{self._file}: {self._text(name)} is not supported for {self.family}: "
            f"expected {expected}"
        )

    def finish(self) -> None:
        """Raises ConfigError for values that nothing has read, all of them in its line."""
        unread = sorted(
            name for name in self._unread if self._config[name] != self._absent_parts.get(name)
        )
        if unread:
            one = len(unread) == 1
            are, those = ("is", "the key if it does") if one else ("are", "those that do")
            raise ConfigError(
                f"{self._file}: {', '.join(map(self._text, unread))} {are} not understood for "
                f"{self.family}; remove {those} not change the computation"
            )

    def _text(self, name: str) -> str:
        """`key = value` on one line, long values cut off."""
        value = repr(self._config.get(name))
        return f"{self._prefix}{name} = {value if len(value) <= _SHOWN else value[:_SHOWN] + '…'}"


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and an integer not too large for floating point."""
    return is_real(value) and abs(value) <= sys.float_info.max


def is_positive(value: Any) -> bool:
    """Whether it is a number within POSITIVE_RANGE."""
    least, most = POSITIVE_RANGE
    return is_number(value) and least <= value <= most
