"""What the soak's clients ask: every endpoint and kind of media, bad requests among them.

An `Ask` is one request and what may come back. Bodies are drawn from the demo model's own tasks, so
that thoughts, tool calls and media are those of a real conversation.
"""

import random
from dataclasses import dataclass, field

from mimo_engine.eval.demo_sets import demo_sets
from mimo_engine.eval.evaluation import Options

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
TRANSCRIPTIONS = "/v1/audio/transcriptions"
MODEL = "demo"
MAX_TOKENS = 24


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request. `body` None: a GET. `files`: of a form, whose other fields `body` has."""

    path: str
    body: dict | bytes | None = None
    files: dict | None = None
    headers: dict = field(default_factory=dict)
    status: int = 200
    """What the server answers when nothing is killed or left."""

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
        draw = self._rng.choices(
            (
                self._chat,
                self._completion,
                self._response,
                self._message,
                self._transcription,
                self._count,
                self._tokens,
                self._look,
                self._bad,
            ),
            (8, 3, 4, 4, 2, 1, 1, 2, 4),
        )[0]
        return draw()

    def leaves(self):
        """Whether a client breaks its stream off."""
        return self._rng.random() < 0.2

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

    def _response(self):
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
            **self._maybe(0.6, stream=True),
            **self._maybe(0.3, store=False),
        }
        return Ask(path=RESPONSES, body=body)

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

    def _tokens(self):
        if self._rng.random() < 0.5:
            return Ask(path="/tokenize", body={"prompt": "one two three"})
        return Ask(path="/detokenize", body={"tokens": [1, 2, 3]})

    def _look(self):
        return Ask(path=self._rng.choice(["/v1/models", "/health", "/metrics", "/"]))

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
                Ask(path=f"{RESPONSES}/resp_none", status=404),
                Ask(path=MESSAGES, body={"messages": user}, status=400),
                Ask(path=MESSAGES, body={"max_tokens": 5, "messages": "x"}, status=400),
                Ask(path=TRANSCRIPTIONS, body={"model": MODEL}, files={"file": "AAAA"}, status=400),
                Ask(path="/v1/no/such/path", status=404),
            ]
        )


def _asks_of(part):
    return {"messages": [{"role": "user", "content": [part]}], "max_tokens": 2}
