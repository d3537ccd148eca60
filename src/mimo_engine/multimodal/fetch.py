"""From the source of a piece of media to its bytes, within the limits of the operator.

What must hold: a request reads no file outside the directories that `--media-root` names, reaches
no network that is not public, and makes nothing here wait for long or grow large; what it cannot
have is its sender's error, named by its place in the request.
"""

from __future__ import annotations

import asyncio
import binascii
import os
import ssl
import stat
from pathlib import Path
from typing import Any, cast

import httpcore

from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.errors import ConfigError, RequestError
from mimo_engine.multimodal.addresses import system_addresses
from mimo_engine.multimodal.download import Downloader, Resolver
from mimo_engine.multimodal.sources import (
    BytesSource,
    EncodedSource,
    ObjectSource,
    PathSource,
    Source,
    UrlSource,
    errors_at,
    shown,
)

__all__ = ["MediaFetcher"]

# Base64 is decoded in pieces of so many characters: Python's lock is held for one of them.
_PIECE_CHARS = 2**20


class MediaFetcher:
    """Fetches sources, many side by side. Lives in one event loop; `close` it when none is left."""

    def __init__(
        self,
        limits: MediaLimits,
        *,
        resolver: Resolver = system_addresses,
        network: httpcore.AsyncNetworkBackend | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_downloads: int = 16,
    ) -> None:
        """network: what opens connections, to addresses that are checked already.

        max_downloads at once; the others wait, and their time begins when they no longer do.
        Raises ConfigError: a media root is no directory.
        """
        self._limits = limits
        self._max_bytes = int(limits.max_media_mib * 2**20)
        self._roots = [_root(name) for name in limits.media_root]
        self._slots = asyncio.Semaphore(max_downloads)
        self._downloader = Downloader(
            limits,
            resolver=resolver,
            network=network or cast("httpcore.AsyncNetworkBackend", httpcore.AnyIOBackend()),
            ssl_context=ssl_context or httpcore.default_ssl_context(),
            num_threads=max_downloads,
        )

    async def fetch(self, source: Source, where: str) -> bytes | Path | Any:
        """An encoded file as bytes or as the path of one, or the value of an ObjectSource.

        where: the source's place in the request; RequestError begins with it. A path is that of a
        regular file, with no symbolic link left in it. It stays under the media roots as long as
        nobody changes directories there meanwhile: whoever sends requests must not be able to.
        """
        with errors_at(where):
            match source:
                case UrlSource(url=url):
                    async with self._slots:
                        data = await self._downloader.get(url)
                case PathSource(path=path):
                    return await asyncio.to_thread(self._file, path)
                case EncodedSource(text=text):
                    data = await asyncio.to_thread(self._decoded, text)
                case BytesSource(data=data):
                    pass
                case ObjectSource(value=value):
                    return value
            self._check_size(len(data))
            return data

    async def close(self) -> None:
        """Let go of the threads. Downloads close their connections themselves."""
        self._downloader.close()

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes == 0:
            raise RequestError("it is empty")
        if num_bytes > self._max_bytes:
            raise self._too_large()

    def _too_large(self) -> RequestError:
        return RequestError(
            f"it has more than {self._limits.max_media_mib:g} MiB (--max-media-mib)"
        )

    def _decoded(self, text: str) -> bytes:
        if len(text) > -(-self._max_bytes // 3) * 4:
            raise self._too_large()
        begins = range(0, len(text), _PIECE_CHARS)
        pieces = (text[begin : begin + _PIECE_CHARS] for begin in begins)
        try:
            data = b"".join(binascii.a2b_base64(piece, strict_mode=True) for piece in pieces)
            # Python is lenient about padding, and sees pieces only.
            num_padding = len(text[-4:]) - len(text[-4:].rstrip("="))
            if len(text) % 4 or len(data) != len(text) // 4 * 3 - num_padding:
                raise ValueError("padding")
        except ValueError as error:
            raise RequestError(
                f"{shown(text)} is neither a URL, nor a path (which begins with /, ./, ../, ~ or "
                "file://), nor base64 with its padding and without spaces or line ends"
            ) from error
        return data

    def _file(self, path: Path) -> Path:
        name = shown(str(path))
        if not self._roots:
            raise RequestError(
                f"{name} is a path, and no file is read by path unless the server is started with "
                "--media-root and a directory"
            )
        try:
            real = path.expanduser().resolve()
        except (OSError, RuntimeError, ValueError):
            real = None
        # One answer for all outside, so that nobody learns what there is.
        if real is None or not any(real.is_relative_to(root) for root in self._roots):
            raise RequestError(f"{name} is under no directory of --media-root")
        try:
            status = real.lstat()
        except (OSError, ValueError) as error:
            raise RequestError(f"{name} does not exist") from error
        if not stat.S_ISREG(status.st_mode):
            raise RequestError(f"{name} is not a regular file")
        if not os.access(real, os.R_OK):
            raise RequestError(f"{name} may not be read by the server")
        self._check_size(status.st_size)
        return real


def _root(name: str) -> Path:
    root = Path(name).expanduser().resolve()
    if not root.is_dir():
        raise ConfigError(f"--media-root {name} is not a directory")
    return root
