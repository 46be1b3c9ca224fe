"""`/v1/chat/completions`: from a request's body to what is generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import InputError
from ...runtime.generation.grammar import Grammar
from ...runtime.generation.template import Message
from ..refusals import RequestError, refusal_of, unsupported, wrong
from ..service import Service
from .chat_answer import CallTask, ChatAnswer
from .fields import Fields
from .json_body import check_depth, parse_object
from .messages import read_messages
from .models import check_model
from .options import read_options
from .parameters import (
    CHAT_LOGPROBS,
    CHAT_REFUSED,
    CHAT_TEMPLATE_KWARGS,
    MAX_COMPLETION_TOKENS,
    MAX_TOKENS,
    MODALITIES,
    MODEL,
    TOP_LOGPROBS,
)
from .prompts import check_length, encode_prompt
from .request import GenerationRequest, check_bias, check_grammar, new_heading
from .response_format import read_format
from .tools import Tools, read_tools


def read_chat(service: Service, body: bytes) -> GenerationRequest:
    """Raises RequestError."""
    fields = Fields(parse_object(body, service.most_values))
    check_model(service, fields.read(MODEL))
    fields.refuse(CHAT_REFUSED)
    fields.read(MODALITIES)
    messages = read_messages(fields)
    tools = read_tools(fields)
    variables = fields.read(CHAT_TEMPLATE_KWARGS) or {}
    options = read_options(fields, chat_max_tokens(fields), alternatives(fields))
    grammar = read_format(fields)
    fields.finish()
    check_bias(service, options)
    if not isinstance(variables, dict) or {"messages", "tools"} & variables.keys():
        raise wrong("chat_template_kwargs", "must be an object of further variables")
    check_depth(variables, "chat_template_kwargs")
    task, beginning = None, ""
    if tools is not None:
        if grammar is not None:
            raise wrong("response_format", "and tools cannot be used together; leave one out")
        if service.call_style is None:
            raise wrong("tools", f"cannot be offered: {service.why_no_tools}", "unsupported_tools")
        variables = {**variables, "tools": list(tools.definitions)}
        task = CallTask(tools, service.call_style, service.mark_token(service.call_style))
        beginning, grammar = how_to_call(task, tools)
    ids = encode_chat(service, messages, variables, beginning)
    if task is None:
        check_grammar(service, grammar, "response_format")
    else:
        check_call_grammar(service, grammar, task.tools)
    heading = new_heading(service, "chat.completion", options)
    spell = None if options.logprobs is None else service.spell
    answer = ChatAnswer(heading, options.choices, task, spell)
    return GenerationRequest(options, [ids], grammar, answer)


def check_call_grammar(service: Service, grammar: Grammar | None, tools: Tools) -> None:
    """Raises RequestError, of the tool because of which it cannot be compiled."""
    try:
        check_grammar(service, grammar, "tools")
    except RequestError:
        for index, schema in enumerate(tools.schemas.values()):
            param = f"tools[{index}].function.parameters"
            try:
                check_grammar(service, Grammar.json_schema(schema), param)
            except RequestError as error:
                raise RequestError(f"{param}: {error}", status=error.status, param=param) from error
        raise


def encode_chat(
    service: Service, messages: Sequence[Message], variables: dict[str, Any], beginning: str
) -> list[int]:
    """beginning: of the answer, which the model is to continue."""
    template = service.session.chat_template
    if template is None:
        raise wrong(
            "messages", "need a chat template, which the bundle has not; use /v1/completions"
        )
    check_length(service, sum(len(message["content"]) for message in messages), "messages")
    try:
        text = template.render(messages, **variables)
    except InputError as error:
        raise refusal_of(error, "messages") from error
    return encode_prompt(service, text + beginning, "messages", add_special_tokens=False)


def how_to_call(task: CallTask, tools: Tools) -> tuple[str, Grammar | None]:
    """How the answer begins, and what it must fit."""
    form, key = task.style.form, task.style.key
    if not tools.needed:
        if not tools.strict:
            return "", None
        answer = form.answer_grammar(tools.schemas, key)
        if answer is None:
            raise unsupported(tools.strict, "or make it false, or name a tool in tool_choice")
        return "", Grammar.lark(answer)
    beginning = form.beginning(tools.needed)
    if beginning is None:
        raise wrong("tool_choice", "must name one function with this model's chat template")
    schemas = {name: tools.schemas[name] for name in tools.needed}
    return beginning, Grammar.lark(form.call_grammar(schemas, key))


def chat_max_tokens(fields: Fields) -> int | None:
    """max_completion_tokens, or max_tokens, its earlier name."""
    new, old = fields.read(MAX_COMPLETION_TOKENS), fields.read(MAX_TOKENS)
    if new is not None and old is not None and new != old:
        raise wrong("max_tokens", "is another name of max_completion_tokens; give one of them")
    return old if new is None else new


def alternatives(fields: Fields) -> int | None:
    wanted, top = fields.read(CHAT_LOGPROBS), fields.read(TOP_LOGPROBS)
    if top is not None and not wanted:
        raise wrong("top_logprobs", "needs logprobs to be true")
    return (top or 0) if wanted else None
