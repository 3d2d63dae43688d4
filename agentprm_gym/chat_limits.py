"""Bounds on what a server may do: a deadline for a whole answer, a cap on its size, and a key that stays secret."""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

import httpcore
import httpx

from agentprm_gym.plain_text import whole

#: Bytes of an answer, before and after it is unpacked. An answer of 100,000 tokens has about 0.5 MB.
MAX_BYTES = 8_000_000
#: A key with fewer characters is a placeholder of a local server ("EMPTY"): it is not looked for in what a model says.
MIN_SECRET = 8


class AnswerTooLargeError(Exception):
    """A server sent more than :data:`MAX_BYTES`, or in an encoding that was not asked for."""


# The deadline ------------------------------------------------------------------------------------

_running = threading.local()  # a request is sent and read in one thread


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Let all network operations of this thread together take so long, for the clients of :func:`with_deadlines`.

    Args:
        seconds: above 0.
    """
    _running.until = time.monotonic() + seconds
    try:
        yield
    finally:
        _running.until = None


def _left(timeout: float | None) -> float | None:
    """Seconds that an operation may take.

    Raises:
        httpcore.ReadTimeout: the time is over.
    """
    until = getattr(_running, "until", None)
    if until is None:
        return timeout
    left = float(until) - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the answer is not complete in time")
    return left if timeout is None else min(timeout, left)


class _Stream(httpcore.NetworkStream):
    """A connection whose operations end at the deadline. Timeouts of the library count for one operation each."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _left(timeout))

    def close(self) -> None:
        # A thread that waits for an answer on this connection would wait on to its deadline: closing alone does not wake it.
        with suppress(OSError):
            if (sock := self._inner.get_extra_info("socket")) is not None:
                sock.shutdown(socket.SHUT_RDWR)
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, _left(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    """Opens such connections."""

    def __init__(self, inner: httpcore.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.connect_tcp(host, port, _left(timeout), local_address, socket_options))

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


def with_deadlines(client: httpx.Client) -> httpx.Client:
    """Make a client obey :func:`deadline` while a server sends its headers, too.

    Args:
        client: it is changed and returned.
    """
    # The library has no public place for this that keeps the proxies of the environment. Where a version has no such attribute,
    # the deadline holds between the pieces of the body only.
    for transport in (client._transport, *client._mounts.values()):
        pool = getattr(transport, "_pool", None)
        if isinstance(backend := getattr(pool, "_network_backend", None), httpcore.NetworkBackend):
            pool._network_backend = _Backend(backend)  # type: ignore[union-attr]
    return client


# The size ----------------------------------------------------------------------------------------


def read_body(response: httpx.Response) -> bytes:
    """Read a streamed answer, unpacked; no more than :data:`MAX_BYTES` are ever held.

    Args:
        response: an answer whose body was not read yet.

    Raises:
        AnswerTooLargeError: it is larger, or packed in another way than gzip.
        httpx.TimeoutException: the deadline is over.
    """
    packing = response.headers.get("content-encoding", "identity").strip().lower()
    if packing not in ("identity", "", "gzip", "deflate"):
        raise AnswerTooLargeError(f"the answer is packed as {packing[:40]!r}, which was not asked for")
    unpack = zlib.decompressobj(47) if packing in ("gzip", "deflate") else None  # 47: gzip or zlib, whichever it is
    parts: list[bytes] = []
    n_read = n_kept = 0
    for chunk in response.iter_raw(65_536):
        try:
            _left(None)
        except httpcore.ReadTimeout as error:
            raise httpx.ReadTimeout(str(error)) from None
        n_read += len(chunk)
        try:
            part = chunk if unpack is None else unpack.decompress(chunk, MAX_BYTES - n_kept + 1)
        except zlib.error as error:
            raise AnswerTooLargeError(f"the answer cannot be unpacked ({error})") from None
        n_kept += len(part)
        parts.append(part)
        if max(n_read, n_kept) > MAX_BYTES:
            raise AnswerTooLargeError(f"the answer has more than {MAX_BYTES:,} bytes")
    return b"".join(parts)


# The key -----------------------------------------------------------------------------------------


@lru_cache(8)
def _forms(key: str) -> re.Pattern[str]:
    """Match a key in each form in which a server may repeat it: as it is, or escaped for JSON, HTML or an address."""
    signs = []
    for sign in key:
        code = ord(sign)
        forms = (
            re.escape(sign),
            rf"\\+u{code:04x}",
            rf"\\+x{code:02x}",
            rf"%(?:25)*{code:02x}",
            f"&#0*{code};",
            f"&#x0*{code:x};",
        )
        signs.append(f"(?:{'|'.join(forms)})")
    return re.compile(r"[\s\\\u200b]*".join(signs), re.IGNORECASE)


def masked(text: str, key: str) -> str:
    r"""Replace a key in a text of a server by ``***``, in whatever form it stands there.

    Args:
        text: what a server sent.
        key: the key; empty where there is none.

    Example:
        >>> masked('you sent {"key": "sk\\u002dabc"}', "sk-abc")
        'you sent {"key": "***"}'
    """
    return _forms(key).sub("***", text) if key else text


def kept(text: str, key: str) -> str:
    """A server's text as it may be kept in files: without halves of characters, and without the key.

    Args:
        text: what a server sent.
        key: the key; a placeholder of a few letters is no secret.
    """
    return masked(whole(text), key if len(key) >= MIN_SECRET else "")
