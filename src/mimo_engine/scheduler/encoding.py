"""Requests whose media the towers have yet to encode, and which units come next.

Such a request does not wait for its prompt's turn here but for its media's: it joins the queue of
the scheduler when all that its prompt needs is encoded. So nothing that comes after it, text or
media, is held up by it for more than a step's share of encoding (`max_encoder_tokens`), and the
rest of the scheduler knows of no media at all.

What the prefix cache has of a prompt needs no encoding. Whether it still has it is seen again at
admission, and a request that lost its hit comes back here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from mimo_engine.cache.encoder import EncoderCache, EncodeTask
from mimo_engine.messages import MediaItem
from mimo_engine.scheduler.request import Request

__all__ = ["EncodingQueue"]


class EncodingQueue:
    """First come, first served. `num_hit_tokens` tells what the prefix cache has of a request."""

    def __init__(
        self,
        encoder: EncoderCache,
        num_hit_tokens: Callable[[Request], int],
        *,
        max_tokens: int,
    ) -> None:
        self._encoder = encoder
        self._num_hit_tokens = num_hit_tokens
        self._max_tokens = max_tokens
        self._requests: deque[Request] = deque()

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def append(self, request: Request) -> None:
        self._requests.append(request)

    def remove(self, request: Request) -> bool:
        """Whether it was here."""
        if request not in self._requests:
            return False
        self._requests.remove(request)
        return True

    def missing(self, request: Request, num_hit_tokens: int) -> list[MediaItem]:
        """Media with tokens past the hit that are not wholly encoded."""
        return [
            item
            for item in request.media
            if not self._encoder.is_whole(item)
            and any(span.start + span.num_tokens > num_hit_tokens for span in item.spans)
        ]

    def take_ready(self) -> list[Request]:
        """Requests at the head whose media are there; they leave."""
        ready = []
        while self._requests and not self._missing(self._requests[0]):
            ready.append(self._requests.popleft())
        return ready

    def take_failed(self) -> list[tuple[Request, str]]:
        """Requests with media that cannot be encoded, and why; they leave."""
        failed = []
        for request in list(self._requests):
            errors = (self._encoder.error(item) for item in request.media)
            error = next((error for error in errors if error is not None), None)
            if error is not None:
                self._requests.remove(request)
                failed.append((request, error))
        return failed

    def plan(self, *, nothing_else_runs: bool) -> tuple[EncodeTask, ...]:
        """The units of this step: the head's media first, then the next one's.

        nothing_else_runs: no request is under way whose end would make room for the head's media,
        so it may exceed the capacity (two requests could otherwise wait for each other).
        """
        tasks: list[EncodeTask] = []
        planned: set[bytes] = set()
        budget = self._max_tokens
        for request in self._requests:
            for item in self._missing(request):
                if item.content_hash in planned:
                    continue
                may_exceed = nothing_else_runs and not tasks
                if (tasks and item.unit_rows > budget) or not self._encoder.make_room(
                    item, may_exceed=may_exceed
                ):
                    return tuple(tasks)
                task = self._encoder.next_task(item, budget)
                tasks.append(task)
                planned.add(item.content_hash)
                budget -= task.num_units * item.unit_rows
                if budget <= 0:
                    return tuple(tasks)
        return tuple(tasks)

    def _missing(self, request: Request) -> Sequence[MediaItem]:
        if all(self._encoder.is_whole(item) for item in request.media):
            return ()
        return self.missing(request, self._num_hit_tokens(request))
