"""Reading a checkpoint's config.json strictly: what is not understood is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import ConfigError

# Keys that every Hugging Face config may carry and that change nothing in inference.
IRRELEVANT = frozenset(
    """
    _name_or_path architectures attention_dropout auto_map chunk_size_feed_forward dtype
    hidden_dropout id2label initializer_range is_decoder is_encoder_decoder label2id model_type
    output_attentions output_hidden_states output_router_logits pad_token_id problem_type
    return_dict router_aux_loss_coef torch_dtype transformers_version unsloth_version use_cache
    """.split()
)

_MISSING = object()


class ConfigReader:
    """Takes values out of a config, checking each; `finish` refuses whatever was not taken."""

    def __init__(self, config: Mapping[str, Any], irrelevant: frozenset[str] = frozenset()):
        self._config = config
        self._unread = set(config) - IRRELEVANT - irrelevant
        self.family = str(config.get("model_type"))

    def take(self, name: str, default: Any = _MISSING) -> Any:
        """The raw value; null counts as absent."""
        self._unread.discard(name)
        value = self._config.get(name)
        if value is not None:
            return value
        if default is _MISSING:
            raise ConfigError(f"config.json: {name} is missing (family {self.family})")
        return default

    def integer(self, name: str, default: Any = _MISSING) -> int:
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refusal(name, "an integer")
        return value

    def number(self, name: str, default: Any = _MISSING) -> float:
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.refusal(name, "a number")
        return float(value)

    def flag(self, name: str, default: Any = _MISSING) -> bool:
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self.refusal(name, "true or false")
        return value

    def optional_integer(self, name: str) -> int | None:
        return None if self.take(name, None) is None else self.integer(name)

    def optional_number(self, name: str) -> float | None:
        return None if self.take(name, None) is None else self.number(name)

    def integers(self, name: str, default: Any = _MISSING) -> tuple[int, ...]:
        """A list of integers; one integer counts as a list of one."""
        value = self.take(name, default)
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

    def rope_theta(self, default: float) -> float:
        """The base of plain rotary embeddings, from either generation of config keys."""
        theta = self.optional_number("rope_theta")
        for name in ("rope_parameters", "rope_scaling"):
            rope = self.take(name, {})
            if not isinstance(rope, dict):
                raise self.refusal(name, "an object or null")
            kind = rope.get("rope_type", rope.get("type", "default"))
            if kind != "default":
                raise ConfigError(
                    f"config.json: {name}.rope_type = {kind!r} is not supported for {self.family} "
                    "(only 'default' is)"
                )
            extra = sorted(set(rope) - {"rope_type", "type", "rope_theta"})
            if extra:
                raise ConfigError(
                    f"config.json: {name}.{extra[0]} = {rope[extra[0]]!r} is not understood "
                    f"for {self.family}"
                )
            if "rope_theta" in rope:
                theta = rope["rope_theta"]
                if isinstance(theta, bool) or not isinstance(theta, (int, float)):
                    raise ConfigError(
                        f"config.json: {name}.rope_theta = {theta!r} is not supported for "
                        f"{self.family}: expected a number"
                    )
        return default if theta is None else float(theta)

    def refusal(self, name: str, expected: str) -> ConfigError:
        return ConfigError(
            f"config.json: {name} = {self._config.get(name)!r} is not supported for "
            f"{self.family}: expected {expected}"
        )

    def finish(self) -> None:
        """Raises ConfigError for a value that nothing has read."""
        unread = sorted(name for name in self._unread if self._config[name] is not None)
        if unread:
            raise ConfigError(
                f"config.json: {unread[0]} = {self._config[unread[0]]!r} is not understood for "
                f"{self.family}; remove the key if it does not change the computation"
            )
