"""The HTTP client: the one importer of httpx.

Failures are values: an item whose request fails is counted, and the run goes on. Only 503, by which
a server says that its queue is full or that its engine is starting, is asked again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from mimo_engine.errors import ConfigError
from mimo_engine.eval.api import Failure, Reply, Request, read_reply

try:
    import httpx
except ImportError as error:
    raise ConfigError("eval needs httpx: pip install 'mimo-engine[eval]'") from error

__all__ = ["RETRY_WAITS_S", "ApiClient"]

RETRY_WAITS_S = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0)
"""Before each new try: half a minute in all, in which a full queue moves on."""
_CONNECT_S = 10.0
_MAX_REASON = 300
"""Characters of what a server says about a failure."""


class ApiClient:
    """Asks the server at `url`, such as http://127.0.0.1:8000, with or without /v1.

    timeout_s: of one request, from its first byte to its last. api_key: goes along. Proxies of the
    environment are not used. `transport` and `sleep` are for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._timeout_s = timeout_s
        self._sleep = sleep
        key = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._http = httpx.AsyncClient(
            headers={"content-type": "application/json", **key},
            transport=transport,
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            # The caller bounds how many run at once; a second bound would only hide requests.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=False,
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def served_models(self) -> list[str]:
        """Names that the server lists. Raises ConfigError where no such server answers."""
        found = await self._send("GET", "/v1/models")
        if isinstance(found, Failure):
            raise ConfigError(
                f"no OpenAI-compatible server answers at {self._url} ({found.reason}): start one "
                "with `mimo-engine serve`, or pass --url"
            )
        try:
            return [str(card["id"]) for card in found["data"]]
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{self._url}/v1/models is no list of models: check --url") from error

    async def ask(self, model: str, request: Request) -> Reply | Failure:
        """The answer of `model` to `request`."""
        found = await self._send("POST", request.path, {"model": model, **request.body})
        return found if isinstance(found, Failure) else read_reply(request.path, found)

    async def _send(self, method: str, path: str, body: Any = None) -> Any | Failure:
        """The JSON of a successful answer."""
        content = None if body is None else json.dumps(body).encode()
        found = await self._send_once(method, path, content)
        for wait_s in RETRY_WAITS_S:
            if isinstance(found, Failure) or found.status_code != 503:
                break
            await self._sleep(wait_s)
            found = await self._send_once(method, path, content)
        return found if isinstance(found, Failure) else _json_of(found)

    async def _send_once(
        self, method: str, path: str, content: bytes | None
    ) -> httpx.Response | Failure:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._http.request(method, f"{self._url}{path}", content=content)
        except TimeoutError:
            return Failure(reason=f"no whole answer after {self._timeout_s:g} s")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Failure(reason=_one_line(f"{type(error).__name__}: {error}"))


def _json_of(response: httpx.Response) -> Any | Failure:
    try:
        payload = response.json()
    except (ValueError, RecursionError):
        payload = None
    if response.is_success and payload is not None:
        return payload
    if response.is_success:
        return Failure(reason="the server's answer is not JSON")
    return Failure(reason=_one_line(f"HTTP {response.status_code}: {_message_of(payload)}"))


def _message_of(payload: Any) -> str:
    """What an error of the OpenAI API says."""
    try:
        return str(payload["error"]["message"])
    except (KeyError, TypeError):
        return "without a reason"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MAX_REASON]
