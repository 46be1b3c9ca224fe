"""The context of a session: its length, and the tokens that may go into it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import ContextError, InputError
from ..model.spec import ModelSpec
from ..numeric import is_integer

DEFAULT_CONTEXT = 4096


def choose_context(wanted: object, spec: ModelSpec, where: str) -> int:
    """The context in tokens: what is wanted, or 4096, or what the model can see if that is less.

    Raises:
        ContextError: the model cannot see as much; `where` names it.
        InputError: it is no whole number.
    """
    longest = spec.max_context
    if wanted is None:
        return min(longest, DEFAULT_CONTEXT)
    if not is_integer(wanted):
        raise InputError(f"context must be a whole number of tokens, not {wanted!r}")
    if not 1 <= int(wanted) <= longest:
        raise ContextError(f"context must be from 1 to {longest} tokens for {where}, not {wanted}")
    return int(wanted)


def check_tokens(
    token_ids: Sequence[int], spec: ModelSpec, *, position: int, context: int
) -> np.ndarray:
    """Token ids as int64 `[T]`, which are to follow `position` others in a context.

    Raises:
        InputError: no tokens, or ids that the vocabulary does not have.
        ContextError: they do not fit.
    """
    ids = np.asarray(token_ids)
    if ids.size == 0:
        raise InputError("the prompt is empty; give at least one token")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InputError("token ids must be a flat sequence of whole numbers")
    outside = ids[(ids < 0) | (ids >= spec.vocab_size)]
    if outside.size:
        raise InputError(f"token id {outside[0]} is not from 0 to {spec.vocab_size - 1}")
    if position + len(ids) > context:
        raise ContextError(
            f"{position + len(ids)} tokens are more than the context of {context} tokens; "
            f"shorten the text{longer_context(spec, context)}"
        )
    return ids.astype(np.int64)


def longer_context(spec: ModelSpec, context: int) -> str:
    """The rest of a sentence: the other remedy for a full context, where there is one."""
    if context == spec.max_context:
        return ""
    return f", or open the bundle with a context of up to {spec.max_context}"
