"""The real server, in a thread, on a port of its own, over an engine in a real process."""

import asyncio
import json
import threading
import time
from contextlib import closing, contextmanager
from http.client import HTTPConnection

import anthropic
import httpx
import openai
import uvicorn
from fake_engine import BUILD, answer, fake_config

from mimo_engine.chat.template import ChatTemplate, family_template
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.checkpoint.synthetic_tokenizer import write_synthetic_tokenizer
from mimo_engine.config.generation import read_sampling_defaults
from mimo_engine.config.server import ServerConfig
from mimo_engine.engine.client import AsyncEngineClient
from mimo_engine.multimodal.processor import MediaProcessor
from mimo_engine.server.app import create_app
from mimo_engine.server.run import bound_socket

MODEL = "org/fake-model"


def scripted(text):
    """Text of a message that makes the engine answer with `text`."""
    return f"<|fim_prefix|>{text}<|fim_suffix|>"


def until(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class ServerThread:
    """The server over the engine that `build` makes of `config`. `directory` has the tokenizer.
    settings: parts of `ServerConfig`."""

    def __init__(self, directory, config, build, *, restart_policy=None, **settings):
        self.tokenizer = Tokenizer.from_dir(directory)
        self.template = ChatTemplate(family_template())
        self._directory = directory
        self._config = config
        self._build = build
        self._restart_policy = restart_policy
        self._settings = ServerConfig(**settings)
        self._started = threading.Event()
        self._failure = None
        self._sock = bound_socket("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._sock.getsockname()[1]}"
        self.engine = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))

    async def _main(self):
        self.engine = AsyncEngineClient(
            self._config, self._build, restart_policy=self._restart_policy
        )
        media = None
        try:
            await self.engine.start()
            media = MediaProcessor.of_engine(
                self._config, self.engine.info, self.tokenizer, self._settings.media
            )
            self.app = app = create_app(
                self.engine,
                self.tokenizer,
                self.template,
                self._settings,
                model_name=MODEL,
                defaults=read_sampling_defaults(self._directory),
                media=media,
            )
            config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False)
            self._server = uvicorn.Server(config)
            serving = asyncio.create_task(self._server.serve(sockets=[self._sock]))
            while not self._server.started:
                await asyncio.sleep(0.005)
            self._started.set()
            await serving
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._started.set()
            if media is not None:
                await media.close()
            await self.engine.close()
            self._sock.close()

    def __enter__(self):
        self._thread.start()
        assert self._started.wait(180)
        assert self._failure is None
        return self

    def __exit__(self, *exc_info):
        self._server.force_exit = self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    @contextmanager
    def openai(self):
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0) as client:
            yield client

    @contextmanager
    def anthropic(self):
        with anthropic.Anthropic(base_url=self.url, api_key="none", max_retries=0) as client:
            yield client

    def async_openai(self):
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def post(self, path, body, headers=None):
        # Not httpx's own JSON: that refuses what hostile clients send.
        headers = {"content-type": "application/json", **(headers or {})}
        return httpx.post(
            f"{self.url}{path}", content=json.dumps(body), headers=headers, timeout=30
        )

    def get(self, path, headers=None):
        return httpx.get(f"{self.url}{path}", headers=headers, timeout=30)

    def chunks(self, path, body):
        """The data of each event of an OpenAI stream, parsed; [DONE] is checked and left out."""
        body = {**body, "stream": True}
        with httpx.stream("POST", f"{self.url}{path}", json=body, timeout=30) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            data = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        assert data.pop() == "[DONE]"
        return [json.loads(one) for one in data]

    @contextmanager
    def begun_stream(self, path, body):
        """The lines of a stream, once it has begun; it is left when the block ends."""
        body = {**body, "stream": True}
        with httpx.stream("POST", f"{self.url}{path}", json=body, timeout=30) as response:
            assert response.status_code == 200
            lines = response.iter_lines()
            next(lines)
            yield lines
            lines.close()

    @contextmanager
    def asked(self, path, body):
        """A request whose answer nobody waits for; it is left when the block ends."""
        with closing(HTTPConnection(self.url.removeprefix("http://"))) as connection:
            headers = {"content-type": "application/json"}
            connection.request("POST", path, json.dumps(body), headers)
            yield

    def metric(self, name):
        """Value of a metric, labels as in the text format; None when there is no such line."""
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        return None


class FakeServer(ServerThread):
    """What a test needs to talk to the server and to know what it should say."""

    def __init__(self, directory, *, scheduler=None, step_s=0, held_by=None, **options):
        """options: of `ServerThread`."""
        vocabulary = write_synthetic_tokenizer(directory, chat_template=family_template())
        tokenizer = Tokenizer.from_dir(directory)
        self.special_ids = sorted(
            id_ for id_ in vocabulary.ids.values() if tokenizer.is_skipped(id_)
        )
        self.eos_id = tokenizer.id_of("<|im_end|>")
        config = fake_config(
            scheduler=scheduler,
            eos_id=self.eos_id,
            special_ids=self.special_ids,
            vocab_size=vocabulary.num_tokens,
            script_marks=[vocabulary.ids["<|fim_prefix|>"], vocabulary.ids["<|fim_suffix|>"]],
            step_s=step_s,
            **({"held_by": str(held_by)} if held_by else {}),
        )
        super().__init__(directory, config, BUILD, **options)

    def chat_prompt(self, messages, **template_kwargs):
        text = self.template.render(messages, template_kwargs=template_kwargs)
        return self.tokenizer.encode(text)

    def answer_ids(self, prompt, **kwargs):
        """What the engine says to a prompt (text or ids), without the end-of-text token."""
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        found = answer(ids, eos_id=self.eos_id, special_ids=self.special_ids, **kwargs)
        return [token for token in found if token != self.eos_id]

    def answer(self, prompt, **kwargs):
        return self.tokenizer.decode(self.answer_ids(prompt, **kwargs))
