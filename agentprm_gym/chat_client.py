"""A client of OpenAI-compatible chat APIs, for policies that play and judges that reward."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from agentprm_gym.chat_http import Sender, ServerError, Usage, checked_url

__all__ = ["Completion", "Continuation", "Message", "ServerClient", "ServerError", "TokenPrompt", "Usage"]


class Completion(NamedTuple):
    """One answer of the model.

    Attributes:
        text: what the model said. Thoughts that a server gives in a field of their own (``reasoning_content``, ``reasoning``)
            or in parts of their own are left out.
        cut: whether the answer hit the limit on its length.
    """

    text: str
    cut: bool


class Continuation(NamedTuple):
    """What a server's model wrote behind a text that was given as tokens.

    Attributes:
        ids: the tokens, the one that ended it included.
        stopped: whether the model ended it itself, in place of a limit.
        log_prob: log-probability of the first token in the whole vocabulary, in nats; ``None`` where it was not asked for.
    """

    ids: list[int]
    stopped: bool
    log_prob: float | None = None


class TokenPrompt(NamedTuple):
    """A text as tokens, and how it is to be continued.

    Attributes:
        ids: the tokens.
        seed: of the continuation.
        max_tokens: longest continuation, 1 or more.
        stop: tokens that end it.
        allowed: the only tokens that may be drawn; ``None``: all.
    """

    ids: Sequence[int]
    seed: int
    max_tokens: int
    stop: Sequence[int] = ()
    allowed: Sequence[int] | None = None


Message = dict[str, str]

#: Sampling parameters that leave a distribution as it is.
_NEUTRAL = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
# Of one answer; a server that says more is wrong.
_MAX_TOKENS = 100_000_000


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
            base_url: the server's address, to which ``/chat/completions`` is added, for example ``http://127.0.0.1:8000/v1``.
            model: the model's name at the server.
            api_key_env: environment variable that holds the API key; without the variable no key is sent.
            timeout: seconds that an attempt may take in all, above 0. An answer of more than
                :data:`agentprm_gym.chat_limits.MAX_BYTES` is given up, too.
            max_retries: attempts after the first, 0 or more. A request is tried again after no connection, a timeout, and the
                statuses 408, 409, 425, 429, and 500 and above.
            concurrency: requests that run at once, 1 or more.
            price_in: price of a million prompt tokens.
            price_out: price of a million completion tokens.
            fields: added to the body of every chat request, since servers differ; the value ``None`` removes a field:
                ``{"max_tokens": None, "max_completion_tokens": 300}``.
            backoff: seconds before the first retry, 0 or more; doubled each time, with jitter.
            max_wait: longest ``Retry-After`` in seconds that is waited for, 0 or more.

        Raises:
            ValueError: ``base_url`` is not an address or holds a secret, the model is missing, or a number is out of range.
        """
        self.base_url = checked_url(base_url)
        if not model:
            raise ValueError(
                f"which model? Expected its name at the server, got {model!r}: set model_name (--model-name); "
                f"{self.base_url}/models lists what there is"
            )
        if (price_in is None) != (price_out is None):
            raise ValueError(f"expected both prices or none, got price_in={price_in} and price_out={price_out}")
        self.model, self.base_model = model, model
        self.fields = dict(fields or {})
        price = None if price_in is None or price_out is None else (price_in, price_out)
        self.usage = Usage(price=price)
        self._takes_n = True
        self._sender = Sender(
            self.base_url,
            self.usage,
            api_key_env=api_key_env,
            timeout=timeout,
            max_retries=max_retries,
            concurrency=concurrency,
            backoff=backoff,
            max_wait=max_wait,
        )

    def __repr__(self) -> str:
        return f"ServerClient({self.base_url!r}, {self.model!r})"

    def close(self) -> None:
        """Close the connections; the client cannot be used afterwards."""
        self._sender.close()

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

        A server may not know the parameter ``n``: it refuses the request, or gives one answer. Then each answer is a request
        of its own.

        Args:
            chats: the messages of each chat.
            seeds: a seed for each chat; some servers ignore it.
            n: answers to each chat, 1 or more.
            temperature: sampling temperature, 0 (greedy) or more.
            max_tokens: longest answer, in tokens.

        Returns:
            For each chat its ``n`` answers.

        Raises:
            ServerError: a request fails in every attempt; the other requests are given up.
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
            for (i, wanted, _), got in zip(jobs, self._sender.side_by_side(self._chat, jobs), strict=True):
                out[i] += got[:wanted]

    def _chat(self, job: tuple[int, int, dict[str, Any]], stop: threading.Event) -> list[Completion]:
        """Send one request; fewer answers than were wanted mean that the server does not know ``n``."""
        _, wanted, body = job
        body = {"model": self.model, **body, **({"n": wanted} if wanted > 1 else {}), **self.fields}
        body = {key: value for key, value in body.items() if value is not None}
        try:
            response = self._sender.post(f"{self.base_url}/chat/completions", body, stop)
        except ServerError as error:
            if wanted > 1 and error.status in (400, 422):
                self._takes_n = False
                return []  # asked for one by one; if something else was wrong, those requests raise it
            raise
        try:
            data = json.loads(response.text)
            # More than were asked for are not looked at.
            answers = [
                Completion(self._sender.kept(_text(c["message"].get("content"))), c.get("finish_reason") == "length")
                for c in data["choices"][:wanted]
            ]
            if not answers:
                raise ValueError("no choices")
            tokens = _usage(data)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ServerError(
                f"{response.url} answered with something else than a chat completion "
                f"({type(error).__name__}: {self._sender.shown(str(error))}): {self._sender.shown(response.text)!r}. "
                "Is the address right? It usually ends with /v1",
                response.status,
            ) from None
        self._sender.count(**tokens)
        if len(answers) < wanted:
            self._takes_n = False
        return answers

    # Tokens -----------------------------------------------------------------------------------
    def continue_tokens(
        self, prompts: Sequence[TokenPrompt], *, temperature: float = 1.0, log_probs: bool = False
    ) -> list[Continuation]:
        """Have texts continued that are given as tokens, by a server that speaks vLLM's completions API.

        Every sampling parameter is sent: a server may have defaults of its own, such as the model's ``top_p``.

        Args:
            prompts: the texts; the requests run side by side.
            temperature: sampling temperature, 0 (greedy) or more.
            log_probs: also ask for log-probabilities.

        Raises:
            ServerError: a request fails in every attempt, or the server does not tell tokens.
        """
        jobs = [(prompt, temperature, log_probs) for prompt in prompts]
        return self._sender.side_by_side(self._continue, jobs)

    def _continue(self, job: tuple[TokenPrompt, float, bool], stop: threading.Event) -> Continuation:
        prompt, temperature, log_probs = job
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": list(prompt.ids),
            "max_tokens": prompt.max_tokens,
            "temperature": temperature,
            "seed": prompt.seed,
            "stop_token_ids": list(prompt.stop),
            "return_token_ids": True,
            "skip_special_tokens": False,
            # Where one of a few tokens is to be drawn, the end-of-sequence token is one like the others.
            "ignore_eos": prompt.allowed is not None,
            **_NEUTRAL,
            **({} if prompt.allowed is None else {"allowed_token_ids": list(prompt.allowed)}),
            **({"logprobs": 1} if log_probs else {}),
            **self.fields,
        }
        body = {key: value for key, value in body.items() if value is not None}
        response = self._sender.post(f"{self.base_url}/completions", body, stop)
        try:
            data = json.loads(response.text)
            choice = data["choices"][0]
            ids, stopped = [int(i) for i in choice["token_ids"]], choice.get("finish_reason") == "stop"
            if not ids and not stopped:
                raise ValueError("no tokens")
            first = float(choice["logprobs"]["token_logprobs"][0]) if log_probs else None
            tokens = _usage(data)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ServerError(
                f"{response.url} answered without the tokens that it wrote ({type(error).__name__}: "
                f"{self._sender.shown(str(error))}): {self._sender.shown(response.text)!r}. Expected vLLM 0.10.2 or newer, "
                'which knows "return_token_ids"',
                response.status,
            ) from None
        self._sender.count(**tokens)
        ended = choice.get("stop_reason")
        if stopped and isinstance(ended, int) and (not ids or ids[-1] != ended):
            ids.append(ended)  # some versions leave out the token that ended it
        return Continuation(ids[: prompt.max_tokens + 1], stopped, first)

    # Adapters ---------------------------------------------------------------------------------
    def load_adapter(self, name: str, path: str | os.PathLike[str]) -> str:
        """Have the server load a LoRA adapter.

        vLLM takes adapters at run time if it was started with ``--enable-lora`` and
        ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=true``, SGLang with ``--enable-lora``.

        Args:
            name: name of the adapter at the server.
            path: PEFT folder, as the *server* sees it.

        Returns:
            The model that requests have to ask for. For vLLM it is the adapter's name. For SGLang it is ``base:name``: SGLang
            answers requests for the bare name with the base model and gives no error.

        Raises:
            ServerError: the server cannot load it.
        """
        place = self._adapter("load_lora_adapter", {"lora_name": name, "lora_path": os.fspath(path)})
        return name if place == self.base_url else f"{self.base_model}:{name}"

    def unload_adapter(self, name: str) -> None:
        """Have the server forget an adapter.

        Args:
            name: name of the adapter at the server.

        Raises:
            ServerError: the server cannot unload it.
        """
        self._adapter("unload_lora_adapter", {"lora_name": name})

    def _adapter(self, verb: str, body: dict[str, Any]) -> str:
        """Return the address that took the request: vLLM takes it beside the chat API, SGLang at the root."""
        places = list(dict.fromkeys([self.base_url, self.base_url.removesuffix("/v1")]))
        for place in places:
            try:
                self._sender.post(f"{place}/{verb}", body, threading.Event())
                return place
            except ServerError as error:
                if error.status not in (404, 405):
                    raise
        raise ServerError(
            f"{self.base_url} takes no adapters at run time ({verb} is unknown): start vLLM with --enable-lora and "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=true in its environment, or SGLang with --enable-lora",
            404,
        )


def _usage(data: Any) -> dict[str, int]:
    """The tokens that an answer says it took."""
    used = data.get("usage") or {}
    return {name: _tokens(used.get(name)) for name in ("prompt_tokens", "completion_tokens")}


def _tokens(value: Any) -> int:
    """A count of tokens; what cannot be one is not counted."""
    return value if type(value) is int and 0 <= value <= _MAX_TOKENS else 0


def _text(content: Any) -> str:
    """A message's text without thoughts; some servers give it in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if part.get("type", "text") == "text")
    if content is not None and not isinstance(content, str):
        raise TypeError(f"expected the message's content as text, got {type(content).__name__}")
    return content or ""
