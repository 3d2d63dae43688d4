"""The malicious files of ``benchmarks.hostile``: each case makes a file or a server, and uses it as its victim would."""

from __future__ import annotations

import gzip
import io
import json
import socket
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

Case = Callable[[Path], object]
FOLDER = "pick_and_place_simple-odd-room-0"
KEY = "sk-live-0123456789-SeCrEt"
# What would run: each leaves a trace that the benchmark sees.
CODE = "str(__import__('os').system('touch x'))"


# Games ---------------------------------------------------------------------------------------------
def game(*changes: tuple[str, str, str], engine: str = "textworld", write: bytes | None = None) -> Case:
    """A game of the generator with some texts replaced: key, old and new text."""

    def play(folder: Path) -> None:
        import gymnasium as gym

        from agentprm_gym.games import find_games

        data = find_games("train", "generated")[0].data()
        for key, old, new in changes:
            if old not in data[key]:
                raise RuntimeError(f"the case is out of date: no {old!r} in the game's {key}")
            data[key] = data[key].replace(old, new)
        path = folder / "train" / FOLDER / "trial_1" / "game.tw-pddl"
        path.parent.mkdir(parents=True)
        path.write_bytes(json.dumps(data).encode() if write is None else write)
        env: Any = gym.make("ALFWorld-v0", games=str(folder), split="train", engine=engine)
        try:
            env.reset(options={"game": 0})
            for command in env.unwrapped._frame.admissible_commands[:3]:
                env.step(command)
        finally:
            env.close()

    return play


TASK = "Your task is to: "
GRAMMAR, PROBLEM = "grammar", "pddl_problem"
IN_ROOM = "You are in the middle of a room."
DOUBLING = ",".join(f'"d{i}": [{{"rhs": "#d{i + 1}##d{i + 1}#"}}]' for i in range(60)) + ',"d60": [{"rhs": "ha"}],'
GAMES: dict[str, Case] = {
    "code in the task line": game((GRAMMAR, TASK, TASK + "{" + CODE + "} ")),
    "escaped code in the task line": game((GRAMMAR, TASK, TASK + "\\u007b" + CODE + "\\u007d ")),
    "a rule in the task line": game((GRAMMAR, TASK, TASK + "#intro# ")),
    "code in a rule": game((GRAMMAR, IN_ROOM, IN_ROOM + "{" + CODE + "}")),
    "code in a list": game((GRAMMAR, IN_ROOM, IN_ROOM + "[{" + CODE + " | openable(r:receptacle)}]")),
    "code in a command": game((GRAMMAR, '"inventory"', '"inventory {' + CODE + '}"')),
    "code in a feedback rule": game((GRAMMAR, '"#inventory.feedback#"', '"{' + CODE + '}"')),
    "Python's inside": game((GRAMMAR, IN_ROOM, "{r.__class__.__base__.__subclasses__()}")),
    "a power": game((GRAMMAR, IN_ROOM, "{9**9**9**9}")),
    "a rule in itself": game((GRAMMAR, IN_ROOM, "#look.feedback#")),
    "the intro in itself": game((GRAMMAR, "Welcome to TextWorld", "#intro#")),
    "a text that doubles": game(
        (GRAMMAR, '"notImplemented"', DOUBLING + '"notImplemented"'), (GRAMMAR, IN_ROOM, "#d0#")
    ),
    "a format in a name": game((PROBLEM, "_bar__", "_bar_{x:>99999999999}_")),
    "an escape in a name": game((PROBLEM, "_bar__", "_bar_\x1b[2J_")),
    "12,000 objects": game(
        (PROBLEM, "(:objects", "(:objects " + " ".join(f"m_bar_{i} - object" for i in range(12_000)))
    ),
    "a task of 50,000 characters": game((GRAMMAR, TASK, TASK + "look " * 10_000)),
    "a long text": game((GRAMMAR, IN_ROOM, "x" * 50_000)),
    "task lines without end": game(
        write=json.dumps(dict.fromkeys(("grammar", "pddl_domain", "pddl_problem"), TASK * 5_000)).encode()
    ),
    "deep nesting": game(write=b"[" * 1_000_000),
    "a number of 100,000 digits": game(write=b"9" * 100_000),
    "a large file": game(write=b" " * 50_000_000),
}


# Saves ---------------------------------------------------------------------------------------------
def _save(
    path: Path, manifest: dict[str, Any] | None = None, config: dict[str, Any] | None = None, **members: bytes
) -> Path:
    """A save of a policy on the bundled model, with a changed manifest, adapter or members."""
    from agentprm_gym.llm.model import LanguageModel
    from agentprm_gym.llm.saving import SavedModel, write_save

    lm = LanguageModel.load("tiny")
    lm.add_adapter("policy")
    whole = {
        "class": "GRPO",
        "agentprm_gym": "0.2.0",
        "base": lm.identity,
        "data": {"policy_kwargs": {"model": "tiny"}},
        "counters": {"num_timesteps": 1},
        "spaces": {
            "observation": {k: [0, 99_999] for k in ("task", "feedback", "admissible_commands")},
            "action": [0, 16_384],
        },
        **(manifest or {}),
    }
    adapter = {**lm.adapter_config("policy"), **(config or {})}
    write_save(path, SavedModel(whole, {"policy": lm.adapter_state("policy")}, {"policy": adapter}))
    if members:
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    return path


def save(manifest: dict[str, Any] | None = None, config: dict[str, Any] | None = None, then: Any = None) -> Case:
    """Load a save, as ``GRPO.load`` does, and learn nothing."""

    def load(folder: Path) -> None:
        from algorithms.common.shell.load import load_language_model

        path = _save(folder / "save.zip", manifest, config)
        if then is not None:
            path.write_bytes(then(path))
        load_language_model(str(path))
        from algorithms import GRPO

        model = GRPO.load(path)
        if model.tensorboard_log is not None:
            Path(model.tensorboard_log).mkdir()  # as learn would

    return load


def _bomb(path: Path) -> bytes:
    """Add a gigabyte of zeros, in a member that the manifest names."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        manifest = json.loads(old.read("agentprm.json"))
        new.writestr("agentprm.json", json.dumps({**manifest, "heads": ["huge"]}))
        for name in old.namelist():
            if name != "agentprm.json":
                new.writestr(name, old.read(name))
        with new.open("heads/huge.safetensors", "w", force_zip64=True) as member:
            for _ in range(250):
                member.write(b"\x00" * 4_000_000)
    return out.getvalue()


def _member(name: str, data: bytes) -> Callable[[Path], bytes]:
    """Replace a member."""

    def replaced(path: Path) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
            for one in old.namelist():
                new.writestr(one, data if one.endswith(name) else old.read(one))
        return out.getvalue()

    return replaced


def _kwargs(**kwargs: Any) -> dict[str, Any]:
    return {"data": {"policy_kwargs": {"model": "tiny", **kwargs}}}


PROMPT = "{%- macro prompt(task, feedback, admissible_commands, first) -%}BODY{%- endmacro -%}"
MACROS = PROMPT + "{%- macro response(reason, command) -%}{{ command }}{%- endmacro -%}"
HANGS = "(([a-z_.0-9])+.)+X"
SAVES: dict[str, Case] = {
    "a folder to write to": save({"data": {"policy_kwargs": {"model": "tiny"}, "tensorboard_log": "../outside"}}),
    "counters that are methods": save({"counters": {"tensorboard_log": "../outside", "learn": 1, "__class__": 2}}),
    "a counter that is a text": save({"counters": {"num_timesteps": "1"}}),
    "leave to run a model's code": save(_kwargs(trust_remote_code=True)),
    "a reader that is a function": save(_kwargs(parse="os:system", action_mode="generate")),
    "a template that is a file": save(_kwargs(template="/etc/hostname.jinja")),
    "a template with loops": save(
        _kwargs(template=MACROS + "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    ),
    "a template with a power": save(_kwargs(template=MACROS + "{{ 9**9**9 }}")),
    "a template that reaches for Python": save(_kwargs(template=MACROS + "{{ ''.__class__.__mro__ }}")),
    "modules as a pattern": save(config={"target_modules": HANGS}),
    "ranks by a pattern": save(config={"rank_pattern": {HANGS: 16}}),
    "modules left out by a pattern": save(config={"exclude_modules": HANGS}),
    "a rank of a billion": save(config={"r": 10**9}),
    "a zip bomb": save(then=_bomb),
    "a pickle in place of tensors": save(then=_member("safetensors", b"cos\nsystem\n(S'touch x'\ntR.")),
    "a header without end": save(then=_member("safetensors", struct.pack("<Q", 2**62) + b"{}")),
    "deep nesting": save(then=_member("agentprm.json", b'{"a":' * 200_000)),
    "a manifest that is a list": save(then=_member("agentprm.json", b"[]")),
    "adapters elsewhere": save(then=_member("agentprm.json", b'{"format": 1, "adapters": ["../../x"], "heads": []}')),
    "cut off": save(then=lambda path: path.read_bytes()[:-100]),
}


# Episodes, and configurations ----------------------------------------------------------------------
def episodes(data: Callable[[], bytes], name: str = "episodes.jsonl") -> Case:
    """Read a file of episodes and write it again."""

    def read(folder: Path) -> None:
        from agentprm_gym.episodes import read_episodes, write_episodes

        (folder / name).write_bytes(data())
        write_episodes(folder / "again.jsonl", read_episodes(folder / name))

    return read


def _row(**turn: Any) -> bytes:
    turn = {"feedback": "a", "admissible_commands": ["look"], "command": "look", **turn}
    row = {"game_id": "g", "split": "train", "task_type": "", "task": "t", "success": True, "turns": [turn]}
    return json.dumps(row).encode()


EPISODES: dict[str, Case] = {
    "a line of 400 MB": episodes(lambda: _gzip_bomb(100), "episodes.jsonl.gz"),
    "deep nesting": episodes(lambda: b"[" * 1_000_000),
    "halves of characters": episodes(lambda: _row(feedback="\ud800", response="\udfff")),
    "numbers that are none": episodes(lambda: _row(reward=float("nan"))),
    "a number of 10,000 digits": episodes(lambda: _row(reward=1.5).replace(b"1.5", b"9" * 10_000)),
    "candidates that are none": episodes(lambda: _row(candidates=[1])),
    "a broken gzip": episodes(lambda: gzip.compress(_row())[:-9] + b"\xff" * 9, "episodes.jsonl.gz"),
    "a pickle": episodes(lambda: b"cos\nsystem\n(S'touch x'\ntR."),
}


def configuration(text: str, *words: str) -> Case:
    """Train with somebody else's configuration, as far as it goes before a model is loaded."""

    def read(folder: Path) -> None:
        from algorithms.cli import configuration as module
        from algorithms.cli import environments, train_options
        from algorithms.cli.main import build_parser

        (folder / "config.yaml").write_text(text)
        parser, verbs = build_parser()
        said = ["train", *(words or ("--config", str(folder / "config.yaml")))]
        args = module.complete(parser, verbs["train"], said, train_options.RULES)
        environments.import_modules(args)
        if args.reward is not None:
            from agentprm_gym.rewards import make_reward

            make_reward(environments.reward_name(args.reward), **(args.reward_kwargs or {}))

    return read


CONFIGURATIONS: dict[str, Case] = {
    "a reward that is a function": configuration("algo: grpo\nreward: os:system\nreward_kwargs: {command: touch x}"),
    "leave to run a model's code": configuration("algo: grpo\nset: {policy_kwargs: {trust_remote_code: true}}"),
    "leave to run games' code": configuration("algo: grpo\nenv_kwargs: {trust_games: true}"),
    "a module to import": configuration("algo: grpo\nimport: [antigravity]"),
    "an object of Python": configuration("set: !!python/object/apply:os.system ['touch x']"),
    "aliases of aliases": configuration(
        "a0: &a0 [x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
        + "set: {b: *a11}"
    ),
    "deep nesting": configuration("set: " + "[" * 50_000),
}


# Servers -------------------------------------------------------------------------------------------
@contextmanager
def _serving(behave: Callable[[socket.socket], object]) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))

    def handle(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65_536)
            behave(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=handle, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        listener.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def server(behave: Callable[[socket.socket], object], said: str = "hello") -> Case:
    """Ask a server once, and keep the answer in a file."""

    def ask(folder: Path) -> None:
        from agentprm_gym.chat_client import ServerClient

        with _serving(behave) as url:
            client = ServerClient(url, "m", timeout=3.0, max_retries=0)
            try:
                ((answer,),) = client.complete([[{"role": "user", "content": said}]], [0])
            except OSError as error:
                if KEY in str(error):
                    raise RuntimeError("the key is in the message") from None
                raise
            finally:
                client.close()
        (folder / "answer.txt").write_text(answer.text)
        if KEY in answer.text:
            raise RuntimeError("the key is in the answer")

    return ask


def says(body: Callable[[], bytes], head: bytes = HEAD, said: str = "hello") -> Case:
    """A server that answers and closes."""

    def behave(connection: socket.socket) -> None:
        data = body()
        connection.sendall(head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(data) + data)

    return server(behave, said)


def repeats(first: bytes, then: bytes, pause: float) -> Case:
    """A server that never ends."""

    def behave(connection: socket.socket) -> None:
        connection.sendall(first)
        while True:
            connection.sendall(then)
            time.sleep(pause)

    return server(behave)


def _chat(content: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


def _gzip_bomb(n: int = 250) -> bytes:
    """So many times four megabytes of spaces; made in pieces, since a case's own memory counts."""
    pack = zlib.compressobj(1, wbits=31)
    return b"".join([pack.compress(b" " * 4_000_000) for _ in range(n)]) + pack.flush()


SERVERS: dict[str, Case] = {
    "a byte now and then": repeats(HEAD + b"Content-Length: 100000\r\n\r\n", b" ", 0.3),
    "headers without end": repeats(b"HTTP/1.1 200 OK\r\n", b"X-A: a\r\n", 0.2),
    "a body without end": repeats(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * 65_536 + b"\r\n", 0
    ),
    "a gzip of a gigabyte": says(_gzip_bomb, HEAD + b"Content-Encoding: gzip\r\n"),
    "deep nesting": says(lambda: b'{"choices":' + b"[" * 500_000),
    "halves of characters": says(lambda: _chat("look \ud800")),
    "halves of characters in a game's text": says(lambda: _chat("look"), said="a room \ud800"),
    "a message that is a list of lists": says(lambda: _chat([[["look"]]])),
    "the key in the answer": says(lambda: _chat(f"look {KEY}")),
    "the key in an error": says(lambda: KEY.encode(), b"HTTP/1.1 401 No\r\n"),
    "the key in a redirect": says(lambda: b"", f"HTTP/1.1 302 Found\r\nLocation: http://x/{KEY}\r\n".encode()),
    "a million choices": says(lambda: json.dumps({"choices": [{"message": {"content": "a"}}] * 100_000}).encode()),
}

#: All cases by the kind of thing that a stranger gives.
CASES: dict[str, dict[str, Case]] = {
    "games": GAMES,
    "saves": SAVES,
    "episode files": EPISODES,
    "configurations": CONFIGURATIONS,
    "servers": SERVERS,
}
