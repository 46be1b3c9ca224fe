"""A conversation with a session: what was said so far, and the next answer."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from ..errors import ContextError
from .generation.pieces import Piece
from .generation.template import Message

if TYPE_CHECKING:
    from .generation.generation import Generation
    from .session import Session


class Conversation:
    """The messages of one conversation.

    system: what the system message says; None for no such message. sampling: arguments of
    `Session.generate`. Where the bundle has no chat template, the messages are one text, which
    the model continues.
    """

    def __init__(self, session: Session, *, system: str | None = None, **sampling: Any):
        self._session = session
        self._sampling = sampling
        self.messages: list[Message] = []
        self.last: Generation | None = None  # the one of the last answer
        if system is not None:
            self.messages.append({"role": "system", "content": system})

    def answer(self, text: str, **sampling: Any) -> Generator[Piece, None, None]:
        """Says `text` as the user; yields the answer as it is made. sampling: for this one alone.

        An answer that is broken off is kept as far as it came. Where nothing came, the text is
        forgotten with it. What the session has seen of the conversation is not run again.

        Raises:
            ContextError: the conversation does not fit into the context.
            InputError: the template refuses it, or a sampling argument is wrong.
        """
        asked: list[Message] = [*self.messages, {"role": "user", "content": text}]
        said, whole = "", False
        try:
            generation = self._session.generate(
                self._prompt(asked), **{**self._sampling, **sampling}
            )
            self.last = generation
        except ContextError as error:
            if len(self.messages) < 2:  # the first text alone does not fit
                raise
            raise ContextError(self._full()) from error
        try:
            with generation:
                for piece in generation:
                    said += piece.text
                    yield piece
            whole = True
        finally:
            if said or whole:
                self.messages = [*asked, {"role": "assistant", "content": said}]

    def _prompt(self, messages: list[Message]) -> str | list[Message]:
        if self._session.chat_template is not None:
            return messages
        return "".join(message["content"] for message in messages)

    def _full(self) -> str:
        context, longest = self._session.context, self._session.manifest.spec.max_context
        more = f", or use a context of up to {longest}" if context < longest else ""
        return (
            f"the conversation does not fit into the context of {context} tokens any more; "
            f"start a new one{more}"
        )
