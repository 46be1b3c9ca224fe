"""A LangChain chain through the server, as it would run with any other OpenAI-compatible one.

    pip install langchain-openai
    pocketmoe serve BUNDLE --parallel 2      # BUNDLE has a chat template: see `pocketmoe inspect`
    python examples/langchain_client.py http://127.0.0.1:8000/v1 'the router' 'the pager'

With a key, it is read from the environment variable OPENAI_API_KEY.
"""

from __future__ import annotations

import argparse
import os

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from openai import OpenAI, OpenAIError


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a server of pocketmoe with LangChain.")
    parser.add_argument("url", help="of the server, with /v1")
    parser.add_argument("topics", nargs="+")
    parser.add_argument("--tokens", type=int, default=48)
    given = parser.parse_args()
    try:
        ask(given)
    except OpenAIError as error:
        raise SystemExit(f"error: {error}") from None


def ask(given: argparse.Namespace) -> None:
    key = os.environ.get("OPENAI_API_KEY", "none")
    served = OpenAI(base_url=given.url, api_key=key).models.list().data[0].id
    # `max_completion_tokens` and streamed usage are as OpenAI has them.
    model = ChatOpenAI(
        model=served, base_url=given.url, api_key=key, max_completion_tokens=given.tokens,
        temperature=0, stream_usage=True,
    )  # fmt: skip
    prompt = ChatPromptTemplate.from_messages(
        [("system", "You answer in one sentence."), ("user", "What is {topic}?")]
    )
    chain = prompt | model | StrOutputParser()
    for text in chain.stream({"topic": given.topics[0]}):
        print(text, end="", flush=True)
    print()
    for topic, text in zip(
        given.topics, chain.batch([{"topic": topic} for topic in given.topics]), strict=True
    ):
        print(f"{topic}: {text!r}")
    message = (prompt | model).invoke({"topic": given.topics[0]})
    print(f"{message.usage_metadata['total_tokens']} tokens")


if __name__ == "__main__":
    main()
