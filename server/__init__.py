"""`pocketmoe serve`: a bundle over HTTP, in the form of OpenAI's API.

Needs the extra `serve`. The event loop belongs to HTTP alone: templates, tokenizing and grammars
run in threads, and each request that generates has a thread of its own.
"""
