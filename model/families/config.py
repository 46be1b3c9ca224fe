"""Reading a checkpoint's config.json strictly: what is not understood is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from ...errors import ConfigError
from ..spec import RopeKind, RopeSpec
from .rope_reader import read_rope

# Keys that every Hugging Face config may carry and that change nothing in inference;
# quantization_config, which does, is read by model.encodings.
IRRELEVANT = frozenset(
    """
    _attn_implementation_autoset _name_or_path architectures attention_dropout auto_map
    chunk_size_feed_forward dtype hidden_dropout id2label initializer_range is_decoder
    is_encoder_decoder label2id model_type output_attentions output_hidden_states
    output_router_logits pad_token_id problem_type quantization_config return_dict
    router_aux_loss_coef tokenizer_class torch_dtype transformers_version unsloth_version use_cache
    """.split()
)
ALL_KINDS: tuple[RopeKind, ...] = get_args(RopeKind)

_MISSING = object()


class ConfigReader:
    """Takes values out of a config, checking each; `finish` refuses whatever was not taken.

    section: name of the object within config.json that is read; "" for the whole of it.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        irrelevant: frozenset[str] = frozenset(),
        section: str = "",
        family: str | None = None,
    ):
        self._config = config
        self._unread = set(config) - irrelevant - (frozenset() if section else IRRELEVANT)
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
                f"config.json: {self._prefix}{name} is missing (family {self.family})"
            )
        return default

    def integer(self, name: str, default: Any = _MISSING) -> int:
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refusal(name, "an integer")
        return value

    def number(self, name: str, default: Any = _MISSING) -> float:
        value = self.take(name, default)
        if not is_number(value):
            raise self.refusal(name, "a number")
        return float(value)

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """A list of so many numbers greater than 0."""
        values = self.take(name)
        if not isinstance(values, (list, tuple)) or not all(
            is_number(value) and value > 0 for value in values
        ):
            raise self.refusal(name, "a list of numbers greater than 0")
        if len(values) != length:
            raise self.refusal(name, f"{length} numbers, not {len(values)}")
        return tuple(float(value) for value in values)

    def flag(self, name: str, default: Any = _MISSING) -> bool:
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
            isinstance(item, int) and not isinstance(item, bool) for item in values
        ):
            raise self.refusal(name, "a list of integers")
        return tuple(values)

    def require(self, name: str, *allowed: Any) -> None:
        """The value, where there is one, must be one of those that the family expresses."""
        value = self.take(name, allowed[0])
        if value not in allowed:
            raise self.refusal(name, " or ".join(repr(item) for item in allowed))

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

    def rope(
        self,
        *,
        head_dim: int,
        theta: float = 10_000.0,
        interleaved: bool = False,
        kinds: tuple[RopeKind, ...] = ALL_KINDS,
        partial: float | None = None,
        extra: tuple[str, ...] = (),
    ) -> RopeSpec:
        """Rotary embeddings, from either generation of config keys.

        theta: where the config names no base. kinds: those that the family has. partial: default of
        partial_rotary_factor; None for families that rotate whole heads. extra: further keys of
        rope_scaling, which the family takes with `rope_value`.

        Raises:
            ConfigError: a key is unknown, missing, of another type or out of range.
        """
        return read_rope(self, head_dim, theta, interleaved, kinds, partial, extra)

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

    def rope_value(self, name: str, default: Any = _MISSING) -> float:
        """One number of rope_parameters or rope_scaling."""
        return self.rope_section().number(name, default)

    def refusal(self, name: str, expected: str) -> ConfigError:
        return ConfigError(
            f"config.json: {self._prefix}{name} = {self._config.get(name)!r} is not supported for "
            f"{self.family}: expected {expected}"
        )

    def finish(self) -> None:
        """Raises ConfigError for a value that nothing has read."""
        unread = sorted(name for name in self._unread if self._config[name] is not None)
        if unread:
            raise ConfigError(
                f"config.json: {self._prefix}{unread[0]} = {self._config[unread[0]]!r} is not "
                f"understood for {self.family}; remove the key if it does not change the "
                "computation"
            )


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
