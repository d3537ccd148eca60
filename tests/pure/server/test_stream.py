"""Whole answers are made beside the event loop."""

import asyncio
import threading

from mimo_engine.server.stream import json_response_of


def test_a_whole_answer_is_made_off_the_event_loop():
    async def main():
        response = await json_response_of(lambda: {"thread": threading.get_ident()})
        return response.body, threading.get_ident()

    body, loop_thread = asyncio.run(main())
    assert body.startswith(b'{"thread":')
    assert body != b'{"thread":%d}' % loop_thread
