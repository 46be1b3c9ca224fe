"""Every parameter of a request that generates, declared once: the readers check requests by this
table, and openapi.json is made from it."""

from __future__ import annotations

from typing import Any

from .fields import NEEDED, Object, Parameter
from .kinds import (
    Anything,
    Array,
    Boolean,
    Choice,
    Component,
    Narrowed,
    Number,
    Only,
    Text,
    Whole,
    ref,
)
from .special_kinds import Labels, Prompt, Prompts, StopTexts, TextAlone, TokenNumbers

MOST_CHOICES = 128
COMPLETION_TOKENS = 16  # OpenAI's default
SEEDS = 2**63
_MOST = 2**31 - 1
_UNUSED = "Accepted, and not used."
_OURS = "Not one of OpenAI's."

# Of both endpoints.

MODEL: Parameter[str] = Parameter("model", Text(), NEEDED, "The name that /v1/models tells.")
STREAM = Parameter(
    "stream", Boolean(), False, "Whether the answer comes in chunks, as server-sent events."
)
INCLUDE_USAGE = Parameter(
    "include_usage", Boolean(), False,
    "Whether a last chunk, without choices, has the numbers of tokens.",
)  # fmt: skip
INCLUDE_OBFUSCATION = Parameter(
    "include_obfuscation", Only(Boolean(), False), False, "Chunks are not padded here."
)
STREAM_OPTIONS = Parameter(
    "stream_options", Object((INCLUDE_USAGE, INCLUDE_OBFUSCATION)), None, "Of streams alone."
)
CHOICES = Parameter(
    "n", Whole(1, MOST_CHOICES), 1,
    f"Answers to each prompt; of all prompts together at most {MOST_CHOICES}.",
)  # fmt: skip
MAX_TOKENS = Parameter(
    "max_tokens", Whole(1, _MOST), None,
    f"Tokens of an answer at most. Left out: {COMPLETION_TOKENS} in a text completion; in a chat, "
    "as many as the context has room for. In a chat it is the earlier name of "
    "max_completion_tokens.",
)  # fmt: skip
TEMPERATURE = Parameter(
    "temperature", Number(0, 2), 1.0,
    "0 takes the likeliest token each time; the higher, the more often others are drawn.",
)  # fmt: skip
TOP_P = Parameter(
    "top_p", Number(0, 1, above=True), 1.0,
    "Tokens are drawn only from the likeliest ones that together reach this probability.",
)  # fmt: skip
MIN_P = Parameter(
    "min_p", Number(0, 1), 0.0,
    "Tokens are drawn only from those with at least this share of the likeliest one's probability. "
    f"{_OURS}",
)  # fmt: skip
TOP_K = Parameter(
    "top_k", Whole(-1, _MOST), 0,
    f"Tokens are drawn only from so many of the likeliest; 0 and -1 stand for all. {_OURS}",
)  # fmt: skip
REPETITION_PENALTY = Parameter(
    "repetition_penalty", Number(0, 10, above=True), 1.0,
    "Of tokens that the prompt or the answer has, positive logits are divided by this and negative "
    f"ones multiplied: more than 1 makes them less likely. {_OURS}",
)  # fmt: skip
FREQUENCY_PENALTY = Parameter(
    "frequency_penalty", Number(-2, 2), 0.0,
    "Taken from a token's logit once for each time that the answer has it.",
)  # fmt: skip
PRESENCE_PENALTY = Parameter(
    "presence_penalty", Number(-2, 2), 0.0,
    "Taken from a token's logit if the answer has it.",
)  # fmt: skip
SEED = Parameter(
    "seed", Whole(-SEEDS, SEEDS - 1), None,
    "The same seed gives the same answer; where native kernels run all of the model, on every "
    "machine. The first choice has this seed, each further one the next.",
)  # fmt: skip
STOP: Parameter[tuple[str, ...]] = Parameter(
    "stop",
    StopTexts(most=16, longest=1000),
    (),
    "The answer ends before any of these texts.",
)
LOGIT_BIAS = Parameter(
    "logit_bias", TokenNumbers(Number(-100, 100)), None,
    "Added to the logits of tokens, by their ids.",
)  # fmt: skip
RESPONSE_FORMAT = Parameter(
    "response_format", Component(Object(), "ResponseFormat"), None, "The form that an answer has."
)
USER = Parameter("user", Text(512), None, _UNUSED)
SAFETY_IDENTIFIER = Parameter("safety_identifier", Text(512), None, _UNUSED)
PROMPT_CACHE_KEY = Parameter("prompt_cache_key", Text(512), None, _UNUSED)
STORE = Parameter(
    "store", Only(Boolean(), False, "nothing is kept; set it to false"), False, "Nothing is kept."
)
SERVICE_TIER = Parameter("service_tier", Choice(("auto", "default")), None, _UNUSED)
METADATA = Parameter("metadata", Labels(16), None, _UNUSED)

COMMON: tuple[Parameter[Any], ...] = (
    MODEL, STREAM, STREAM_OPTIONS, CHOICES, MAX_TOKENS, TEMPERATURE, TOP_P, MIN_P, TOP_K,
    REPETITION_PENALTY, FREQUENCY_PENALTY, PRESENCE_PENALTY, SEED, STOP, LOGIT_BIAS,
    RESPONSE_FORMAT, USER, SAFETY_IDENTIFIER, PROMPT_CACHE_KEY, STORE, SERVICE_TIER, METADATA,
)  # fmt: skip
# About accounts, which there are not: checked, and not used.
UNUSED = (USER, SAFETY_IDENTIFIER, PROMPT_CACHE_KEY, STORE, SERVICE_TIER, METADATA)

# Of chats alone.

MESSAGES: Parameter[list[Any]] = Parameter(
    "messages", Narrowed(Array(10_000, ref("Message")), {"minItems": 1}), NEEDED,
    "The conversation so far.",
)  # fmt: skip
MAX_COMPLETION_TOKENS = Parameter(
    "max_completion_tokens", Whole(1, _MOST), None,
    "Tokens of an answer at most. Left out: as many as the context has room for.",
)  # fmt: skip
CHAT_LOGPROBS = Parameter(
    "logprobs", Boolean(), False, "Whether the log probability of each token is told."
)
TOP_LOGPROBS = Parameter(
    "top_logprobs", Whole(0, 20), None,
    "How many of the likeliest tokens are told beside each token; it needs logprobs.",
)  # fmt: skip
TOOLS = Parameter(
    "tools", Array(128, ref("Tool")), None,
    "What the model may call. Not together with response_format.",
)  # fmt: skip
TOOL_CHOICE: Parameter[Any] = Parameter(
    "tool_choice", Anything(ref("ToolChoice")), None,
    "none: no call. auto: the model decides. required: the answer is a call. An object: a call of "
    "the function that it names.",
)  # fmt: skip
PARALLEL_TOOL_CALLS = Parameter(
    "parallel_tool_calls", Boolean(), True, "Whether an answer may have several calls."
)
MODALITIES = Parameter("modalities", TextAlone(), None, "This model writes text alone.")
CHAT_TEMPLATE_KWARGS: Parameter[Any] = Parameter(
    "chat_template_kwargs",
    Anything({"type": "object", "properties": {"messages": False, "tools": False}}), None,
    f"Further variables of the model's chat template. {_OURS}",
)  # fmt: skip

CHAT: tuple[Parameter[Any], ...] = (
    MESSAGES, MAX_COMPLETION_TOKENS, CHAT_LOGPROBS, TOP_LOGPROBS, TOOLS, TOOL_CHOICE,
    PARALLEL_TOOL_CALLS, MODALITIES, CHAT_TEMPLATE_KWARGS,
)  # fmt: skip
# What OpenAI has and this server has not, with what to do instead.
CHAT_REFUSED = {
    "audio": "this model writes text alone",
    "prediction": "leave it out",
    "web_search_options": "leave it out",
    "verbosity": "ask for it in a message",
    "reasoning_effort": "where the chat template knows it, give it in chat_template_kwargs",
}
TOOLS_REFUSED = {"functions": "use tools", "function_call": "use tool_choice"}

# Of text completions alone.

PROMPT: Parameter[list[Prompt]] = Parameter(
    "prompt", Prompts(MOST_CHOICES, _MOST), NEEDED,
    "What the answer continues: a text, or token ids; or several of either.",
)  # fmt: skip
SUFFIX = Parameter("suffix", Only(Text(), ""), "", "Nothing can be put into a text here.")
ECHO = Parameter(
    "echo", Boolean(), False,
    "Whether the answer begins with its prompt. Not together with logprobs.",
)  # fmt: skip
TEXT_LOGPROBS = Parameter(
    "logprobs", Whole(0, 5), None,
    "How many of the likeliest tokens are told beside each token. Left out: no probabilities are.",
)  # fmt: skip
BEST_OF = Parameter("best_of", Whole(1, MOST_CHOICES), None, "As many as n, if at all.")

COMPLETION: tuple[Parameter[Any], ...] = (PROMPT, SUFFIX, ECHO, TEXT_LOGPROBS, BEST_OF)
