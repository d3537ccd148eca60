"""What the soak's clients ask: every route and kind of media, bad requests among them.

An `Ask` is one request and what may come back. What one client asks in a row is a talk: a generator
of asks that is sent what came of each. Bodies are drawn from the demo model's own tasks, so that
thoughts, tool calls and media are those of a real conversation.
"""

import random
from dataclasses import dataclass, field, replace

from mimo_engine.eval.demo_sets import demo_sets
from mimo_engine.eval.evaluation import Options

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
TRANSCRIPTIONS = "/v1/audio/transcriptions"
KEPT = f"{RESPONSES}/{{response_id}}"
MODEL = "demo"
MAX_TOKENS = 24
CROWD = 32
"""Choices of one request; more than the engine runs at a time, so that some of them wait."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request. `body` None: it has none. `files`: of a form, whose other fields `body` has."""

    path: str
    of: str = ""
    """The path as the server's description of its routes has it, where that is another."""
    method: str = "POST"
    body: dict | bytes | None = None
    files: dict | None = None
    headers: dict = field(default_factory=dict)
    status: int = 200
    """What the server answers when nothing is killed or left."""
    leaves_s: float | None = None
    """The client goes after so long, whatever has come."""
    leaves_stream: bool = False
    """The client goes after two events."""

    @property
    def route(self):
        return f"{self.method} {self.of or self.path}"

    @property
    def streams(self):
        return isinstance(self.body, dict) and self.body.get("stream") in (True, "true")

    @property
    def is_anthropic(self):
        return self.path.startswith(MESSAGES)


class Traffic:
    """Draws requests. `seed` decides them all."""

    def __init__(self, seed):
        self._rng = random.Random(seed)
        self._round = []
        self.kept = set()
        """Ids of responses that the server may still have: it was not told to delete them."""
        # Few of each task: they repeat, so prefixes and media are found in caches.
        self._questions = [
            item.pose().request.body for item in demo_sets(Options(limit=3, max_tokens=32)).items
        ]
        self._texts = [q for q in self._questions if isinstance(q["messages"][-1]["content"], str)]
        self._sounds = [self._sound(q) for q in self._questions if self._sound(q)]

    @staticmethod
    def _sound(question):
        content = question["messages"][-1]["content"]
        if isinstance(content, str):
            return None
        return next((p["audio_url"]["url"] for p in content if p["type"] == "audio_url"), None)

    def next(self):
        """A talk. Kinds of talks come in rounds, each of which has them all."""
        if not self._round:
            self._round = [draw for draw, share in self._shares() for _ in range(share)]
            self._rng.shuffle(self._round)
        return self._round.pop()()

    def _shares(self):
        one = self._one
        return (
            (one(self._chat), 8),
            (one(self._completion), 3),
            (self._conversation, 6),
            (one(self._message), 4),
            (one(self._transcription), 2),
            (one(self._crowd), 1),
            (one(self._count), 1),
            *((one(lambda ask=ask: ask), 1) for ask in _SMALL),
            (one(self._bad), 6),
        )

    @staticmethod
    def _one(draw):
        """Talks of one ask that `draw` makes."""

        def talk():
            yield draw()

        return talk

    def hurried(self, ask):
        """`ask`, now and then of a client that will not wait for its end."""
        if ask.body is None or ask.leaves_s is not None or ask.status != 200:
            return ask
        if ask.streams and self._rng.random() < 0.2:
            return replace(ask, leaves_stream=True)
        if self._rng.random() < 0.1:
            return replace(ask, leaves_s=self._rng.random() / 2)
        return ask

    def _maybe(self, share, **fields):
        return fields if self._rng.random() < share else {}

    def _chat(self):
        body = {
            **self._rng.choice(self._questions),
            "max_tokens": self._rng.randrange(1, MAX_TOKENS),
            **self._maybe(0.6, stream=True),
            **self._maybe(0.2, n=2, temperature=1.0),
            **self._maybe(0.2, logprobs=True, top_logprobs=3),
            **self._maybe(0.1, stop=["e", "7"]),
        }
        if "tools" not in body:
            body |= self._maybe(0.1, response_format={"type": "json_object"})
        return Ask(path=CHAT, body=body)

    def _completion(self):
        prompt = "The river was higher than it had been for years. " * self._rng.randrange(1, 40)
        body = {
            "prompt": prompt[: self._rng.randrange(10, len(prompt) + 1)],
            "max_tokens": self._rng.randrange(1, MAX_TOKENS),
            **self._maybe(0.6, stream=True),
            **self._maybe(0.3, echo=True, logprobs=2),
            **self._maybe(0.2, regex="[a-z ]{1,12}"),
        }
        return Ask(path=COMPLETIONS, body=body)

    def _response(self, previous_id):
        question = self._rng.choice(self._texts)
        said = [
            {"role": m["role"], "content": m["content"]}
            for m in question["messages"]
            if isinstance(m.get("content"), str) and m["role"] in ("user", "system")
        ]
        tools = [{"type": "function", **tool["function"]} for tool in question.get("tools", ())]
        body = {
            "input": said,
            "max_output_tokens": self._rng.randrange(1, MAX_TOKENS),
            **({"tools": tools} if tools else {}),
            **({"previous_response_id": previous_id} if previous_id else {}),
            **self._maybe(0.6, stream=True),
            **self._maybe(0.2, store=False),
        }
        return Ask(path=RESPONSES, body=body)

    def _conversation(self):
        """Responses that go on from each other, one of which is looked at, and is then deleted in
        half of the talks. The others stay, for the server to let go."""
        made = []
        for _ in range(self._rng.randrange(1, 4)):
            response = yield self._response(made[-1]["id"] if made else None)
            if response is None:
                return
            if not response["store"]:
                yield _of_kept(response["id"], status=404)
                break
            made.append(response)
            self.kept.add(response["id"])
        if not made:
            return
        one = self._rng.choice(made)
        assert (yield _of_kept(one["id"])) == one
        assert (yield _of_kept(one["id"], "/input_items"))["data"]
        yield _of_kept(one["id"], "/cancel", method="POST", status=400)
        if self._rng.random() < 0.5:
            self.kept.discard(one["id"])
            assert (yield _of_kept(one["id"], method="DELETE"))["deleted"]
            yield _of_kept(one["id"], status=404)
            if one is not made[-1]:
                # What it said is still part of what went on from it.
                last = yield self._response(made[-1]["id"])
                if last is not None and last["store"]:
                    self.kept.add(last["id"])

    def _crowd(self):
        """Left while some of its choices run and others wait: none of them ends by itself."""
        body = {
            "prompt": "The river was higher than it had been for years.",
            "n": CROWD,
            "max_tokens": 1000,
            "ignore_eos": True,
            **self._maybe(0.5, stream=True),
        }
        return Ask(path=COMPLETIONS, body=body, leaves_s=0.2 + self._rng.random() / 2)

    def _message_body(self):
        question = self._rng.choice(self._questions)
        content = question["messages"][-1]["content"]
        if question["messages"][-1]["role"] != "user":
            content = "12 + 30 ="
        if not isinstance(content, str):
            content = [self._block(p) for p in content if p["type"] in ("text", "image_url")]
        tools = [
            {
                "name": tool["function"]["name"],
                "description": tool["function"].get("description", ""),
                "input_schema": tool["function"]["parameters"],
            }
            for tool in question.get("tools", ())
        ]
        return {
            "model": MODEL,
            "messages": [{"role": "user", "content": content}],
            **({"tools": tools} if tools else {}),
        }

    @staticmethod
    def _block(part):
        if part["type"] == "text":
            return part
        media_type, _, data = part["image_url"]["url"].removeprefix("data:").partition(";base64,")
        source = {"type": "base64", "media_type": media_type, "data": data}
        return {"type": "image", "source": source}

    def _message(self):
        body = {
            **self._message_body(),
            "max_tokens": self._rng.randrange(1, MAX_TOKENS),
            **self._maybe(0.6, stream=True),
        }
        return Ask(path=MESSAGES, body=body)

    def _count(self):
        return Ask(path=f"{MESSAGES}/count_tokens", body=self._message_body())

    def _transcription(self):
        _, _, data = self._rng.choice(self._sounds).partition(";base64,")
        fields = {"model": MODEL, **self._maybe(0.4, stream="true")}
        fields |= self._maybe(0.3, response_format=self._rng.choice(["text", "json", "srt"]))
        if "stream" in fields:
            fields.pop("response_format", None)
        return Ask(path=TRANSCRIPTIONS, body=fields, files={"file": data})

    def _bad(self):
        user = [{"role": "user", "content": "Hello"}]
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        noise = {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AAAA"}}
        return self._rng.choice(
            [
                Ask(path=CHAT, body=b"{", status=400),
                Ask(path=CHAT, body={"messages": []}, status=400),
                Ask(path=CHAT, body={"messages": user, "temperature": -1}, status=400),
                Ask(path=CHAT, body={"messages": user, "no_such_field": 1}, status=400),
                Ask(path=CHAT, body={"messages": user, "max_tokens": 10**9}, status=400),
                Ask(path=CHAT, body={"messages": user, "model": "another"}, status=404),
                Ask(path=CHAT, body={"messages": user, "tools": [{"type": "x"}]}, status=400),
                Ask(path=CHAT, body=_asks_of(picture), status=400),
                Ask(path=CHAT, body=_asks_of(noise), status=400),
                Ask(path=CHAT, body={"messages": user, "regex": "("}, status=400),
                Ask(path=COMPLETIONS, body={"prompt": []}, status=400),
                Ask(path=COMPLETIONS, body={"prompt": [10**8]}, status=400),
                Ask(path=RESPONSES, body={"input": []}, status=400),
                Ask(path=RESPONSES, body={"input": "x", "tools": [{"type": "x"}]}, status=400),
                Ask(
                    path=RESPONSES,
                    body={"input": "x", "previous_response_id": "resp_none"},
                    status=400,
                ),
                _of_kept("resp_none", status=404),
                _of_kept("resp_none", "/input_items", status=404),
                _of_kept("resp_none", "/cancel", method="POST", status=404),
                _of_kept("resp_none", method="DELETE", status=404),
                Ask(path="/v1/models/another", method="GET", status=404),
                Ask(path=MESSAGES, body={"messages": user}, status=400),
                Ask(path=MESSAGES, body={"max_tokens": 5, "messages": "x"}, status=400),
                Ask(path=TRANSCRIPTIONS, body={"model": MODEL}, files={"file": "AAAA"}, status=400),
                Ask(path="/v1/no/such/path", method="GET", status=404),
            ]
        )


def _asks_of(part):
    return {"messages": [{"role": "user", "content": [part]}], "max_tokens": 2}


def _of_kept(response_id, what="", *, method="GET", status=200):
    """About a response that is kept. For a 404 the route does not count as asked."""
    path = f"{RESPONSES}/{response_id}{what}"
    return Ask(path=path, of=path if status == 404 else KEPT + what, method=method, status=status)


_SMALL = (
    *(Ask(path=f"{v}/tokenize", body={"prompt": "one two three"}) for v in ("", "/v1")),
    *(Ask(path=f"{v}/detokenize", body={"tokens": [1, 2, 3]}) for v in ("", "/v1")),
    *(
        Ask(path=path, method="GET")
        for path in ("/", "/openapi.json", "/v1/models", "/health", "/ping", "/metrics")
    ),
    Ask(path=f"/v1/models/{MODEL}", of="/v1/models/{name}", method="GET"),
)
