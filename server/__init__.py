"""`pocketmoe serve`: a bundle over HTTP, in the form of OpenAI's API. Needs the extra `serve`.

A request goes this way:

    http/guard.py                   the host that was meant, the page that asks, the key
    bodies.py                       the body, within limits
    openai/chat.py, completion.py   its parameters, read: a GenerationRequest (openai/request.py)
    pool.py                         a session, in the order of coming
    generating.py                   a thread generates; each piece goes to the event loop
    openai/chat_answer.py, completion_answer.py    pieces become choices and chunks
    openai/response.py              one JSON, or a stream

The event loop belongs to HTTP alone: templates, tokenizing and grammars run in threads, and each
request that generates has a thread of its own.
"""
