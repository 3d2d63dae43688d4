"""A client of OpenAI-compatible chat APIs, for policies that play and judges that reward."""

from __future__ import annotations

import email.utils
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import httpx

#: Answers that may be better the next time: timeout, conflict, too early, too many requests, and all server errors.
_RETRIED = frozenset({408, 409, 425, 429})
#: Longest pause between two attempts that the server did not ask for, in seconds.
_LONGEST_BACKOFF = 30.0
T = TypeVar("T")


class ServerError(ConnectionError):
    """A server refused a request, or did not answer however often it was asked.

    Attributes:
        status: the HTTP status of the last answer; ``None`` where there was none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        """Say what happened."""
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class Usage:
    """What a server was asked for so far.

    Attributes:
        requests: answered requests.
        retries: attempts after the first.
        failures: requests that were given up, or refused.
        prompt_tokens: as the server counts them.
        completion_tokens: likewise.
        seconds: spent waiting for answers, summed over requests that ran side by side.
        price: for a million prompt tokens and a million completion tokens, in any currency.
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
        """In the currency of the prices; ``None`` without them."""
        if self.price is None:
            return None
        return (self.prompt_tokens * self.price[0] + self.completion_tokens * self.price[1]) / 1e6

    def to_dict(self) -> dict[str, Any]:
        """The counters as JSON types."""
        names = ("requests", "retries", "failures", "prompt_tokens", "completion_tokens", "seconds", "cost")
        return {name: getattr(self, name) for name in names}


class Completion(NamedTuple):
    """One answer of the model; ``cut`` says that it hit the limit on its length."""

    text: str
    cut: bool


Message = dict[str, str]


class ServerClient:
    """A thin client of an OpenAI-compatible chat API. It may be used from several threads.

    The API key is read from the environment with each request and is kept nowhere.

    Attributes:
        model: the name that requests ask for.
        base_model: the name that was given at first, without an adapter.
        usage: the counters.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        timeout: float = 60.0,
        max_retries: int = 5,
        concurrency: int = 8,
        price_in: float | None = None,
        price_out: float | None = None,
        fields: Mapping[str, Any] | None = None,
        backoff: float = 0.5,
        max_wait: float = 60.0,
    ) -> None:
        """Make a client; nothing is sent yet.

        Args:
            base_url: what ``/chat/completions`` is put behind, for example ``http://127.0.0.1:8000/v1``.
            model: the model's name there.
            api_key_env: environment variable that holds the key; without the variable none is sent.
            timeout: seconds to wait for an answer.
            max_retries: attempts after the first, where that may help: no connection, a timeout, status 408, 409, 425, 429
                or 500 and above.
            concurrency: requests under way at once.
            price_in: of a million prompt tokens.
            price_out: of a million completion tokens.
            fields: added to the body of every chat request, for what servers differ in; ``None`` as a value takes a field
                out: ``{"max_tokens": None, "max_completion_tokens": 300}``.
            backoff: seconds before the first retry; doubled each time, with jitter.
            max_wait: longest ``Retry-After`` in seconds that is waited for.

        Raises:
            ValueError: for an address that is none or holds a secret, no model, or numbers out of range.
        """
        self.base_url = _checked_url(base_url)
        if not model:
            raise ValueError(
                f"which model? Expected its name at the server, got {model!r}: set model_name (--model-name); "
                f"{self.base_url}/models lists what there is"
            )
        if timeout <= 0 or max_retries < 0 or concurrency < 1 or backoff < 0 or max_wait < 0:
            raise ValueError(
                "expected timeout above 0, max_retries, backoff and max_wait of 0 or more and concurrency of 1 or more, "
                f"got {timeout}, {max_retries}, {backoff}, {max_wait} and {concurrency}"
            )
        if (price_in is None) != (price_out is None):
            raise ValueError(f"expected both prices or none, got price_in={price_in} and price_out={price_out}")
        self.model, self.base_model, self.api_key_env = model, model, api_key_env
        self.timeout, self.max_retries, self.concurrency = timeout, max_retries, concurrency
        self.backoff, self.max_wait = backoff, max_wait
        self.fields = dict(fields or {})
        price = None if price_in is None or price_out is None else (price_in, price_out)
        self.usage = Usage(price=price)
        self._takes_n = True
        self._lock = threading.Lock()
        self._jitter = random.Random()  # of its own: no other dice are disturbed
        self._http = httpx.Client(timeout=timeout, limits=httpx.Limits(max_connections=concurrency))
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="agentprm-server")
        # Connections do not outlive the client, also where nobody closes it.
        self._finalizer = weakref.finalize(self, self._http.close)

    def __repr__(self) -> str:
        return f"ServerClient({self.base_url!r}, {self.model!r})"

    def close(self) -> None:
        """Close the connections; the client is of no use afterwards."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._finalizer()

    # Chat -------------------------------------------------------------------------------------
    def complete(
        self,
        chats: Sequence[Sequence[Message]],
        seeds: Sequence[int],
        *,
        n: int = 1,
        temperature: float = 1.0,
        max_tokens: int = 256,
    ) -> list[list[Completion]]:
        """Draw ``n`` answers to each chat, the requests side by side.

        Where the server does not know the parameter ``n`` (it refuses, or gives one answer), each answer is a request of its
        own.

        Args:
            chats: the messages of each.
            seeds: one for each chat, for servers that honour them.
            n: answers to each.
            temperature: of sampling.
            max_tokens: longest answer.

        Raises:
            ServerError: if one of the requests fails for good; the others are abandoned.
        """
        out: list[list[Completion]] = [[] for _ in chats]
        while True:
            jobs: list[tuple[int, int, dict[str, Any]]] = []
            for i, (chat, seed) in enumerate(zip(chats, seeds, strict=True)):
                have, missing = len(out[i]), n - len(out[i])
                parts = [missing] if self._takes_n and missing else [1] * missing
                for k, wanted in enumerate(parts):
                    body = {"messages": list(chat), "temperature": temperature, "max_tokens": max_tokens}
                    jobs.append((i, wanted, {**body, "seed": seed + have + k}))
            if not jobs:
                return out
            for (i, wanted, _), got in zip(jobs, self._side_by_side(self._chat, jobs), strict=True):
                out[i] += got[:wanted]

    def _chat(self, job: tuple[int, int, dict[str, Any]], stop: threading.Event) -> list[Completion]:
        """One request; fewer answers than were wanted say that the server does not know ``n``."""
        _, wanted, body = job
        body = {"model": self.model, **body, **({"n": wanted} if wanted > 1 else {}), **self.fields}
        body = {key: value for key, value in body.items() if value is not None}
        try:
            response = self._post(f"{self.base_url}/chat/completions", body, stop)
        except ServerError as error:
            if wanted > 1 and error.status in (400, 422):
                self._takes_n = False
                return []  # asked one by one; if something else was wrong, that says so
            raise
        try:
            data = response.json()
            answers = [
                Completion(_text(c["message"].get("content")), c.get("finish_reason") == "length")
                for c in data["choices"]
            ]
            if not answers:
                raise ValueError("no choices")
            used = data.get("usage") or {}
            tokens = int(used.get("prompt_tokens") or 0), int(used.get("completion_tokens") or 0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ServerError(
                f"{response.url} answered with something else than a chat completion ({type(error).__name__}: {error}): "
                f"{self._shown(response.text)!r}. Is the address right? It usually ends with /v1",
                response.status_code,
            ) from None
        with self._lock:
            self.usage.prompt_tokens += tokens[0]
            self.usage.completion_tokens += tokens[1]
        if len(answers) < wanted:
            self._takes_n = False
        return answers

    # Adapters ---------------------------------------------------------------------------------
    def load_adapter(self, name: str, path: str | os.PathLike[str]) -> str:
        """Have the server load a LoRA adapter.

        vLLM takes adapters at run time if it was started with ``--enable-lora`` and
        ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=true``, SGLang with ``--enable-lora``.

        Args:
            name: what to call it.
            path: PEFT folder, as the *server* sees it.

        Returns:
            The model that requests have to ask for: vLLM's is the adapter's name, SGLang's ``base:name``, which would answer
            to the bare name with the base model and without a word.

        Raises:
            ServerError: if it cannot.
        """
        place = self._adapter("load_lora_adapter", {"lora_name": name, "lora_path": os.fspath(path)})
        return name if place == self.base_url else f"{self.base_model}:{name}"

    def unload_adapter(self, name: str) -> None:
        """Have the server forget an adapter.

        Raises:
            ServerError: if it cannot.
        """
        self._adapter("unload_lora_adapter", {"lora_name": name})

    def _adapter(self, verb: str, body: dict[str, Any]) -> str:
        """Returns where it was found: vLLM has it beside the chat API, SGLang at the root."""
        places = list(dict.fromkeys([self.base_url, self.base_url.removesuffix("/v1")]))
        for place in places:
            try:
                self._post(f"{place}/{verb}", body, threading.Event())
                return place
            except ServerError as error:
                if error.status not in (404, 405):
                    raise
        raise ServerError(
            f"{self.base_url} takes no adapters at run time ({verb} is unknown): start vLLM with --enable-lora and "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=true in its environment, or SGLang with --enable-lora",
            404,
        )

    # Requests ---------------------------------------------------------------------------------
    def _side_by_side(self, function: Callable[[Any, threading.Event], T], jobs: Sequence[Any]) -> list[T]:
        """Run jobs in the pool; the first that fails ends it, and the others stop retrying."""
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

    def _post(self, url: str, body: dict[str, Any], stop: threading.Event) -> httpx.Response:
        last, status, attempt = "", None, 0
        for attempt in range(1, self.max_retries + 2):
            response, last = self._attempt(url, body)
            status = None if response is None else response.status_code
            if response is not None and response.is_success:
                self._count(requests=1)
                return response
            if response is not None and status not in _RETRIED and response.status_code < 500:
                self._count(failures=1)
                raise ServerError(f"{url} refused a request for {_asked_for(body)!r}: {last}", status)
            asked = _retry_after(response)
            if attempt > self.max_retries or (asked or 0) > self.max_wait:
                break
            pause = min(self.backoff * 2 ** (attempt - 1), _LONGEST_BACKOFF) * self._jitter.uniform(0.5, 1)
            if stop.wait(max(pause, asked or 0)):
                break
            self._count(retries=1)
        self._count(failures=1)
        raise ServerError(
            f"{url} gave no answer for {_asked_for(body)!r} in {attempt} attempts; the last error: {last}. "
            "Is the server up and the address right? If it is only slow or busy, raise timeout or max_retries, or lower "
            "concurrency",
            status,
        )

    def _attempt(self, url: str, body: dict[str, Any]) -> tuple[httpx.Response | None, str]:
        """Ask once; returns the response, if there was one, and what was wrong with it."""
        key = self._key()
        start = time.monotonic()
        try:
            response = self._http.post(url, json=body, headers={"Authorization": f"Bearer {key}"} if key else {})
        except httpx.RequestError as error:
            what = f"no answer within {self.timeout:g} s" if isinstance(error, httpx.TimeoutException) else str(error)
            return None, f"{type(error).__name__}: {self._shown(what)}"
        finally:
            self._count(seconds=time.monotonic() - start)
        if response.is_success:
            return response, ""
        return response, f"status {response.status_code}: {self._shown(response.text)}{self._advice(response)}"

    def _advice(self, response: httpx.Response) -> str:
        if response.status_code in (401, 403):
            state = "is set" if self._key() else "is not set"
            return f" (the key comes from the environment variable {self.api_key_env}, which {state})"
        if response.status_code == 404:
            return f" (is the address right? It usually ends with /v1; {self.base_url}/models lists the models)"
        if response.status_code == 400 and "context" in response.text:
            return " (set max_context, which shortens long transcripts, or lower it)"
        if response.is_redirect:
            return f" (redirects to {response.headers.get('location', '')!r}: give that address)"
        return ""

    def _shown(self, text: str) -> str:
        """What a server said, for an error message: short, and without the key, which some repeat."""
        key = self._key()
        text = " ".join((text.replace(key, "***") if key else text).split())
        return text if len(text) <= 500 else text[:500] + " ..."

    def _key(self) -> str:
        key = os.environ.get(self.api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            # Caught here, since whoever refuses it later would show it.
            raise ValueError(f"the environment variable {self.api_key_env} holds no key: it has unprintable characters")
        return key

    def _count(self, **more: float) -> None:
        with self._lock:
            for name, value in more.items():
                setattr(self.usage, name, getattr(self.usage, name) + value)


def _checked_url(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(
            "expected a server's address such as 'http://127.0.0.1:8000/v1' (as a policy's name 'openai:http://...', as a "
            f"reward's 'judge:http://...'), got {text!r}"
        )
    if url.userinfo or url.query:
        # Not repeated here: it may be a secret, and the address is written into results.
        raise ValueError(
            "expected a server's address without user, password and query, since it is written into results: put a key into "
            "the environment variable that api_key_env names"
        )
    return text.rstrip("/")


def _asked_for(body: Mapping[str, Any]) -> str:
    """The model or adapter that a request is about."""
    return str(body.get("model") or body.get("lora_name", ""))


def _text(content: Any) -> str:
    """A message's text; some servers give it in parts, thoughts among them."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if part.get("type", "text") == "text")
    return "" if content is None else str(content)


def _retry_after(response: httpx.Response | None) -> float | None:
    """How many seconds a server asks to wait: a number, or a date."""
    value = "" if response is None else response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
