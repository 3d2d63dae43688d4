"""Servers that mean harm: an answer that never ends, that fills the memory, that is no text, or that repeats the key."""

from __future__ import annotations

import gzip
import json
import resource
import socket
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from agentprm_gym import chat_limits
from agentprm_gym.chat_client import ServerClient, ServerError
from agentprm_gym.chat_http import checked_url
from agentprm_gym.episodes import Episode, Turn, read_episodes, write_episodes
from agentprm_gym.rewards.judge import JudgeError, JudgeReward
from algorithms.cli.main import main

KEY = "sk-live-0123456789-SeCrEt"
HELLO = [{"role": "user", "content": "hello"}]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
Behaviour = Callable[[socket.socket], None]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@contextmanager
def serving(behave: Behaviour) -> Iterator[str]:
    """A server on this machine that reads a request and then does anything with its connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def handle(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            data = b""
            while b"\r\n\r\n" not in data:
                data += connection.recv(65_536)
            head, _, body = data.partition(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
            )
            while len(body) < length:
                body += connection.recv(65_536)
            behave(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=handle, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def answering(body: bytes, head: bytes = OK) -> Behaviour:
    return lambda c: c.sendall(head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def saying(content: Any, **more: Any) -> Behaviour:
    return answering(json.dumps({"choices": [{"message": {"content": content}}], **more}).encode())


def forever(first: bytes, then: bytes, pause: float) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        connection.sendall(first)
        while True:
            connection.sendall(then)
            time.sleep(pause)

    return behave


def ask(url: str, n: int = 1, timeout: float = 1.0) -> list[str]:
    client = ServerClient(url, "m", timeout=timeout, max_retries=0)
    try:
        return [answer.text for answer in client.complete([HELLO], [0], n=n)[0]]
    finally:
        client.close()


SLOW = {
    "a body of a byte at a time": forever(OK + b"Content-Length: 100000\r\n\r\n", b" ", 0.3),
    "a chunked body without end": forever(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", 0.2),
    "headers of a byte at a time": forever(b"HTTP/1.1 200 OK\r\nX-A: ", b"a", 0.3),
    "headers without end": forever(b"HTTP/1.1 200 OK\r\n", b"X-A: a\r\n", 0.2),
    "provisional answers without end": forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.2),
    "nothing at all": lambda connection: time.sleep(20),
}


@pytest.mark.parametrize("behave", SLOW.values(), ids=SLOW)
def test_an_attempt_ends_at_its_deadline(behave: Behaviour) -> None:
    with serving(behave) as url:
        start = time.monotonic()
        with pytest.raises(ServerError, match="no answer within 1 s"):
            ask(url)
        assert time.monotonic() - start < 3


def bomb() -> bytes:
    pack = zlib.compressobj(9, wbits=31)
    return b"".join([pack.compress(b" " * 1_000_000) for _ in range(500)]) + pack.flush()


LARGE = {
    "a gzip of half a gigabyte": lambda: answering(bomb(), OK + b"Content-Encoding: gzip\r\n"),
    "a body without end": lambda: forever(
        OK + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * 65_536 + b"\r\n", 0
    ),
    "a packing that was not asked for": lambda: answering(b"\x00" * 100, OK + b"Content-Encoding: br\r\n"),
    "a broken gzip": lambda: answering(b"\x1f\x8b" + b"x" * 100, OK + b"Content-Encoding: gzip\r\n"),
    "two packings": lambda: answering(gzip.compress(b"x"), OK + b"Content-Encoding: gzip, gzip\r\n"),
}


@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE)
def test_a_large_answer_is_given_up(make: Callable[[], Behaviour]) -> None:
    behave = make()
    with serving(behave) as url:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(
            ServerError, match=r"the answer (has more than 8,000,000 bytes|is packed as|cannot be unpacked)"
        ):
            ask(url, timeout=30.0)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # kB


def test_a_gzip_that_was_asked_for_is_read() -> None:
    body = json.dumps({"choices": [{"message": {"content": "look"}}]}).encode()
    with serving(answering(gzip.compress(body), OK + b"Content-Encoding: gzip\r\n")) as url:
        assert ask(url) == ["look"]


NOT_A_CHAT = {
    "deep nesting": answering(b'{"choices":' + b"[" * 200_000),
    "deep objects": answering(b'{"a":' * 200_000),
    "a list": answering(b"[1, 2]"),
    "a number of 10,000 digits": answering(b"9" * 10_000),
    "text that is no UTF-8": answering(b'{"choices": \xff\xfe'),
    "choices that are none": answering(b'{"choices": [null, 3]}'),
    "choices as an object": answering(b'{"choices": {"0": {}}}'),
    "content as an object": saying({"a": ["b"]}),
    "content of parts that are none": saying([1, None]),
    "usage that is none": saying("look", usage=[1]),
    "nothing": answering(b""),
}


@pytest.mark.parametrize("behave", NOT_A_CHAT.values(), ids=NOT_A_CHAT)
def test_something_else_than_a_chat_is_a_clear_error(behave: Behaviour) -> None:
    with serving(behave) as url, pytest.raises(ServerError, match="something else than a chat completion") as caught:
        ask(url)
    assert len(str(caught.value)) < 1_500


def test_counts_that_are_none_are_not_counted() -> None:
    for value in (1e308, -5, "7", True, 10**30):
        with serving(saying("look", usage={"prompt_tokens": value, "completion_tokens": 3})) as url:
            client = ServerClient(url, "m", timeout=5.0)
            assert [a.text for a in client.complete([HELLO], [0])[0]] == ["look"]
            assert (client.usage.prompt_tokens, client.usage.completion_tokens) == (0, 3)
            client.close()


def test_no_more_choices_are_read_than_were_asked_for() -> None:
    many = answering(json.dumps({"choices": [{"message": {"content": "look"}}] * 50_000}).encode())
    with serving(many) as url:
        assert ask(url, n=2, timeout=10.0) == ["look", "look"]


@pytest.mark.parametrize(
    "text", ["half \ud83d of it", "\udc00", "NUL \x00", "a" * 1_000_000], ids=["high", "low", "NUL", "long"]
)
def test_an_odd_answer_can_be_written(text: str, tmp_path: Path) -> None:
    with serving(saying(text)) as url:
        (said,) = ask(url, timeout=10.0)
    turn = Turn(feedback="", admissible_commands=["look"], command="look", response=said)
    episode = Episode(game_id="g", split="train", task_type="", task="", success=True, turns=[turn])
    write_episodes(tmp_path / "a.jsonl.gz", [episode])
    assert next(read_episodes(tmp_path / "a.jsonl.gz")) == episode


def test_odd_texts_can_be_asked_about() -> None:
    with serving(saying("look")) as url:
        client = ServerClient(url, "m", timeout=5.0)
        (answer,) = client.complete([[{"role": "user", "content": "a room \ud800"}]], [0])[0]
        client.close()
    assert answer.text == "look"


# The key -------------------------------------------------------------------------------------------

ECHOES = {
    "as it is": KEY,
    "with an escaped hyphen": KEY.replace("-", "\\u002d"),
    "escaped altogether": "".join(f"\\u{ord(sign):04X}" for sign in KEY),
    "escaped twice": "".join(f"\\\\u{ord(sign):04x}" for sign in KEY),
    "percent": "".join(f"%{ord(sign):02X}" for sign in KEY),
    "HTML": "".join(f"&#{ord(sign)};" for sign in KEY),
    "HTML in hexadecimal": "".join(f"&#x{ord(sign):x};" for sign in KEY),
    "in lower case": KEY.lower(),
    "broken over lines": KEY[:8] + "\n   " + KEY[8:],
}


def leaks(text: str) -> bool:
    """Whether a text holds a readable piece of the key."""
    plain = text.lower().replace("\\u00", "").replace("%", "")
    return "secret" in plain or "0123456789" in plain or "5365437245" in plain


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
def test_an_echoed_key_is_masked_in_errors_warnings_and_answers(echo: str) -> None:
    head = f"HTTP/1.1 302 Found\r\nLocation: http://x/{echo}\r\n".replace("\n   ", "").encode()
    for behave in (
        answering(f"you sent {echo}".encode(), b"HTTP/1.1 401 Unauthorized\r\n"),
        answering(f"you sent {echo}".encode(), b"HTTP/1.1 500 Oops\r\n"),
        answering(f"you sent {echo}".encode()),
        answering(b"moved", head),
    ):
        with serving(behave) as url, pytest.raises(ServerError) as caught:
            ask(url)
        assert "***" in str(caught.value) and not leaks(str(caught.value))
    with serving(saying(f"ACTION: look {echo}")) as url:
        (said,) = ask(url)
        assert said == "ACTION: look ***"
        judge = JudgeReward.of_server(url, model="m", max_retries=0)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            judge._unparsable(judge.ask(["?"])[0])
        assert told and not leaks(str(told[0].message))
    with serving(answering(echo.encode(), b"HTTP/1.1 403 Forbidden\r\n")) as url:
        judge = JudgeReward.of_server(url, model="m", max_retries=0)
        with pytest.raises(JudgeError) as failed:
            judge.ask(["?"])
        assert not leaks(str(failed.value))


def test_a_placeholder_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    with serving(saying("the shelf is EMPTY")) as url:
        assert ask(url) == ["the shelf is EMPTY"]


@pytest.mark.parametrize(
    "url", ["http://a/v1#sk-x", "http://a/v1?key=sk-x", "http://u:sk-x@a/v1", "http://a/v1\x1b[2J"]
)
def test_an_address_with_a_secret_or_an_escape_is_refused(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        checked_url(url)
    assert "sk-x" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_masking_takes_no_time() -> None:
    start = time.perf_counter()
    chat_limits.masked("sk-live-" * 100_000, KEY)
    assert time.perf_counter() - start < 5


def test_finished_episodes_are_kept_on_any_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One episode is played; then the server says what no one foresaw, and the client itself breaks."""
    from algorithms.common.acting.server import ServerActor

    n_answers = 0
    real = ServerActor._answer

    def breaking(self: ServerActor, request: Any, completion: Any) -> Any:
        nonlocal n_answers
        n_answers += 1
        if n_answers > 3:
            raise RuntimeError("nobody foresaw this")
        return real(self, request, completion)

    monkeypatch.setattr(ServerActor, "_answer", breaking)
    monkeypatch.chdir(tmp_path)
    options = "--model-name m --games generated --n-envs 1 --max-steps 2 --max-games 3 --out out"
    with serving(saying("ACTION: look \ud800")) as url, pytest.raises(RuntimeError, match="foresaw"):
        main(f"eval openai:{url} {options}".split())
    kept = list(read_episodes(next((tmp_path / "out").glob("*.jsonl*"))))
    assert len(kept) == 1 and kept[0].turns[0].response == "ACTION: look \ufffd"
