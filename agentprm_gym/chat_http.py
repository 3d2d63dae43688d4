"""Sending requests to a server: several side by side, with retries, counters, and errors that say what to do."""

from __future__ import annotations

import email.utils
import json
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from agentprm_gym.chat_limits import AnswerTooLargeError, deadline, kept, masked, read_body, with_deadlines
from agentprm_gym.plain_text import whole

#: Statuses after which the next attempt may succeed: timeout, conflict, too early, too many requests, and all of 500 and above.
_RETRIED = frozenset({408, 409, 425, 429})
#: Longest pause between two attempts that the server did not ask for, in seconds.
_LONGEST_BACKOFF = 30.0
T = TypeVar("T")


class ServerError(ConnectionError):
    """A server refused a request, or did not answer in any attempt.

    Attributes:
        status: the HTTP status of the last answer; ``None`` where the server gave none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        """Keep message and status.

        Args:
            message: what happened and what to do.
            status: the HTTP status of the last answer, if any.
        """
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class Usage:
    """What a server was asked for so far.

    Attributes:
        requests: answered requests.
        retries: attempts after the first.
        failures: requests that were given up, or refused.
        prompt_tokens: tokens of the prompts, as the server counts them.
        completion_tokens: tokens of the answers, as the server counts them.
        seconds: time spent waiting for answers, summed over requests that ran side by side.
        price: price of a million prompt tokens and of a million completion tokens, in any currency; ``None``: not known.
    """

    requests: int = 0
    retries: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    price: tuple[float, float] | None = None

    @property
    def cost(self) -> float | None:
        """What the tokens cost, in the currency of the prices; ``None`` without prices."""
        if self.price is None:
            return None
        return (self.prompt_tokens * self.price[0] + self.completion_tokens * self.price[1]) / 1e6

    def to_dict(self) -> dict[str, Any]:
        """The counters as JSON types."""
        names = ("requests", "retries", "failures", "prompt_tokens", "completion_tokens", "seconds", "cost")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered, read to its end and unpacked.

    Attributes:
        url: the address that was asked.
        status: the HTTP status.
        headers: the headers.
        text: the body, read as UTF-8, whatever the server says about it.
    """

    url: str
    status: int
    headers: httpx.Headers
    text: str

    @property
    def is_success(self) -> bool:
        """Whether the status is one of success."""
        return 200 <= self.status < 300


class Sender:
    """Posts JSON to a server. It may be used from several threads.

    The API key is read from the environment with each request and is kept nowhere.
    """

    def __init__(
        self,
        base_url: str,
        usage: Usage,
        *,
        api_key_env: str,
        timeout: float,
        max_retries: int,
        concurrency: int,
        backoff: float,
        max_wait: float,
    ) -> None:
        """Make a sender; nothing is sent yet.

        Args:
            base_url: the server's address, for error messages.
            usage: the counters to count in.
            api_key_env: environment variable that holds the API key; without the variable no key is sent.
            timeout: seconds that an attempt may take in all, above 0.
            max_retries: attempts after the first, 0 or more.
            concurrency: requests that run at once, 1 or more.
            backoff: seconds before the first retry, 0 or more; doubled each time, with jitter.
            max_wait: longest ``Retry-After`` in seconds that is waited for, 0 or more.

        Raises:
            ValueError: a number is out of range.
        """
        if timeout <= 0 or max_retries < 0 or concurrency < 1 or backoff < 0 or max_wait < 0:
            raise ValueError(
                "expected timeout above 0, max_retries, backoff and max_wait of 0 or more and concurrency of 1 or more, "
                f"got {timeout}, {max_retries}, {backoff}, {max_wait} and {concurrency}"
            )
        self.base_url, self.usage, self.api_key_env = base_url, usage, api_key_env
        self.timeout, self.max_retries, self.backoff, self.max_wait = timeout, max_retries, backoff, max_wait
        self._lock = threading.Lock()
        self._jitter = random.Random()  # its own stream, so that other random numbers stay as they are
        self._http = with_deadlines(httpx.Client(timeout=timeout, limits=httpx.Limits(max_connections=concurrency)))
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="agentprm-server")
        # Connections do not outlive the sender, even where it is never closed.
        self._finalizer = weakref.finalize(self, self._http.close)

    def close(self) -> None:
        """Close the connections; the sender cannot be used afterwards."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._finalizer()

    def side_by_side(self, function: Callable[[Any, threading.Event], T], jobs: Sequence[Any]) -> list[T]:
        """Run jobs in parallel; the first failure ends all, and the others stop retrying.

        Args:
            function: does one job; the event is set when retries should stop.
            jobs: the jobs.

        Returns:
            The results, in the order of the jobs.
        """
        stop = threading.Event()
        futures = [self._pool.submit(function, job, stop) for job in jobs]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            error = next((e for e in (future.exception() for future in done) if e is not None), None)
            if error is not None:
                raise error
            return [future.result() for future in futures]
        finally:
            stop.set()
            for future in futures:
                future.cancel()

    def post(self, url: str, body: dict[str, Any], stop: threading.Event) -> Reply:
        """Post JSON until the server answers.

        Args:
            url: the address.
            body: the JSON.
            stop: ends the retries once it is set.

        Raises:
            ServerError: the server refused the request, or did not answer.
        """
        last, status, attempt = "", None, 0
        for attempt in range(1, self.max_retries + 2):
            response, last = self._attempt(url, body)
            status = None if response is None else response.status
            if response is not None and response.is_success:
                self.count(requests=1)
                return response
            if response is not None and status not in _RETRIED and response.status < 500:
                self.count(failures=1)
                raise ServerError(f"{url} refused a request for {_asked_for(body)!r}: {last}", status)
            asked = _retry_after(response)
            if attempt > self.max_retries or (asked or 0) > self.max_wait:
                break
            pause = min(self.backoff * 2 ** (attempt - 1), _LONGEST_BACKOFF) * self._jitter.uniform(0.5, 1)
            if stop.wait(max(pause, asked or 0)):
                break
            self.count(retries=1)
        self.count(failures=1)
        raise ServerError(
            f"{url} gave no answer for {_asked_for(body)!r} in {attempt} attempts; the last error: {last}. "
            "Is the server up and the address right? If it is only slow or busy, raise timeout or max_retries, or lower "
            "concurrency",
            status,
        )

    def _attempt(self, url: str, body: dict[str, Any]) -> tuple[Reply | None, str]:
        """Ask once; returns the reply, if there was one, and what was wrong with it."""
        key = self._key()
        start = time.monotonic()
        # A game's text may hold halves of characters, which no request can.
        content = whole(json.dumps(body, ensure_ascii=False, allow_nan=False)).encode()
        headers = {"Content-Type": "application/json", "Accept-Encoding": "gzip"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        try:
            with deadline(self.timeout), self._http.stream("POST", url, content=content, headers=headers) as response:
                text = read_body(response).decode(errors="replace")
                reply = Reply(str(response.url), response.status_code, response.headers, text)
        except httpx.RequestError as error:
            what = f"no answer within {self.timeout:g} s" if isinstance(error, httpx.TimeoutException) else str(error)
            return None, f"{type(error).__name__}: {self.shown(what)}"
        except AnswerTooLargeError as error:
            return None, self.shown(str(error))
        finally:
            self.count(seconds=time.monotonic() - start)
        if reply.is_success:
            return reply, ""
        return reply, f"status {reply.status}: {self.shown(reply.text)}{self._advice(reply)}"

    def _advice(self, reply: Reply) -> str:
        if reply.status in (401, 403):
            state = "is set" if self._key() else "is not set"
            return f" (the key comes from the environment variable {self.api_key_env}, which {state})"
        if reply.status == 404:
            return f" (is the address right? It usually ends with /v1; {self.base_url}/models lists the models)"
        if reply.status == 400 and "context" in reply.text:
            return " (set max_context, which shortens long transcripts, or lower it)"
        if 300 <= reply.status < 400:
            return f" (redirects to {self.shown(reply.headers.get('location', ''))!r}: give that address)"
        return ""

    def shown(self, text: str) -> str:
        """What a server said, for an error message: short, and without the key, which some servers repeat."""
        # Some of it is enough, and masking takes its time. What is cut may be a part of the key.
        text = " ".join(masked(text[:20_000], self._key())[:19_000].split())
        text = text if text.isprintable() else "".join(sign if sign.isprintable() else "\ufffd" for sign in text)
        return text if len(text) <= 500 else text[:500] + " ..."

    def kept(self, text: str) -> str:
        """What a model said, as it may be kept in files: without the key, and as UTF-8 can hold it."""
        return kept(text, self._key())

    def _key(self) -> str:
        key = os.environ.get(self.api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            # Refused here, since the library would show the key in its error.
            raise ValueError(
                f"expected a key in the environment variable {self.api_key_env}, got unprintable characters: set it again"
            )
        return key

    def count(self, **more: float) -> None:
        """Add to the counters."""
        with self._lock:
            for name, value in more.items():
                setattr(self.usage, name, getattr(self.usage, name) + value)


def checked_url(text: str) -> str:
    """Return a server's address without a final slash.

    Args:
        text: the address.

    Raises:
        ValueError: the text is not an address, or the address holds a secret.
    """
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(
            "expected a server's address such as 'http://127.0.0.1:8000/v1' (as a policy's name 'openai:http://...', as a "
            f"reward's 'judge:http://...'), got {text!r}"
        )
    if url.userinfo or url.query or url.fragment or not text.isprintable():
        # Not repeated here: it may be a secret, and the address is written into results.
        raise ValueError(
            "expected a server's address without user, password and query, and without a fragment (#), since it is "
            "written into results: put a key into the environment variable that api_key_env names"
        )
    return text.rstrip("/")


def _asked_for(body: Mapping[str, Any]) -> str:
    """The model or adapter that a request is about."""
    return str(body.get("model") or body.get("lora_name", ""))


def _retry_after(response: Reply | None) -> float | None:
    """How many seconds a server asks to wait: a number, or a date."""
    value = "" if response is None else response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
