"""Random and mutated files of other people: each is read, or refused by an error that says what is wrong."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from httpx import Headers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentprm_gym.answers import parse_response
from agentprm_gym.chat_client import ServerClient, ServerError
from agentprm_gym.chat_http import Reply
from agentprm_gym.engines.native import NativeEngine
from agentprm_gym.episodes import read_episodes, write_episodes
from agentprm_gym.games import BadGameError, parse_game
from agentprm_gym.games.game import read_game_file, unread_game
from agentprm_gym.llm.saving import SavedModel, SaveFormatError, read_save, write_save
from agentprm_gym.observations import MAX_COMMANDS, MAX_FEEDBACK, MAX_TASK, join_commands
from agentprm_gym.plain_text import cell, plain, whole
from algorithms.cli import configuration
from algorithms.cli.main import build_parser
from tests.odd_game import odd_data

#: Examples of a test. CI's default run stays short; AGENTPRM_FUZZ=20 makes it 20 times as many.
MORE = int(os.environ.get("AGENTPRM_FUZZ", "1"))
FOLDER = "pick_and_place_simple-odd-room-0"
# Any text, halves of characters included.
texts = st.text(st.characters(), max_size=40) | st.sampled_from(
    [
        "{str(1)}",
        "\ud800",
        "\x1b[2J",
        "#intro#",
        "(:goal",
        "(:init",
        "_bar_",
        "\x00",
        "{x:>9}",
        "NaN",
        "\u202e",
        "é" * 300,
    ]
)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def fuzz(n: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=n * MORE,
        deadline=None,
        derandomize=MORE == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def spliced(text: str, cuts: list[tuple[float, int, str]]) -> str:
    """Replace pieces of a text: where (a share of its length), how many characters, by what."""
    for where, n, new in cuts:
        at = int(where * len(text))
        text = text[:at] + new + text[at + n :]
    return text


cuts = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 30), texts), min_size=1, max_size=4)
byte_cuts = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 20), st.binary(max_size=20)), min_size=1, max_size=4)


def spliced_bytes(data: bytes, pieces: list[tuple[float, int, bytes]]) -> bytes:
    for where, n, new in pieces:
        at = int(where * len(data))
        data = data[:at] + new + data[at + n :]
    return data


def check_game(data: Any) -> None:
    """Read a game in both ways and play a little, within the observation's bounds."""
    for read in (parse_game, lambda data, **kwargs: unread_game(data, why="a test", **kwargs)):
        try:
            game = read(data, game_id=f"{FOLDER}/trial", split="train")
        except BadGameError as error:
            assert str(error)
            continue
        assert len(game.task) <= MAX_TASK and not set("{}[]#|") & set(game.task)
        if game.unsupported:
            continue
        engine = NativeEngine()
        frame = engine.reset(game)
        for i in range(12):
            assert len(frame.feedback) <= MAX_FEEDBACK and len(join_commands(frame.admissible_commands)) <= MAX_COMMANDS
            (frame.feedback + "".join(frame.admissible_commands)).encode()
            frame = engine.step(frame.admissible_commands[(7 * i) % len(frame.admissible_commands)])


@fuzz(60)
@given(st.sampled_from(["grammar", "pddl_domain", "pddl_problem"]), cuts)
def test_mutated_games(key: str, pieces: list[tuple[float, int, str]]) -> None:
    data = odd_data()
    data[key] = spliced(data[key], pieces)
    check_game(data)


@fuzz(60)
@given(st.dictionaries(st.sampled_from(["grammar", "pddl_domain", "pddl_problem", "walkthrough"]), values))
def test_games_of_any_values(changes: dict[str, Any]) -> None:
    check_game({**odd_data(), **changes})


@fuzz(60)
@given(st.lists(texts.filter(lambda text: not text.isspace()), min_size=1, max_size=4), st.integers(0, 3))
def test_games_with_any_names(names: list[str], where: int) -> None:
    data = odd_data()
    for i, name in enumerate(names):
        old = ("Pan", "Shelf", "Fridge", "loc_bar_1")[(where + i) % 4]
        data["pddl_problem"] = data["pddl_problem"].replace(old, name)
    check_game(data)


@fuzz(60)
@given(st.binary(max_size=200) | byte_cuts.map(lambda pieces: spliced_bytes(json.dumps(odd_data()).encode(), pieces)))
def test_game_files_of_any_bytes(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "game.tw-pddl"
        path.write_bytes(data)
        try:
            read = read_game_file(str(path))
        except BadGameError:
            return
        check_game(read)


# Saves ---------------------------------------------------------------------------------------------
@lru_cache(1)
def sound_save() -> bytes:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors = {name.format("A"): torch.ones(2, 8), name.format("B"): torch.zeros(8, 2)}
    manifest = {
        "class": "GRPO",
        "agentprm_gym": "0.2.0",
        "base": {"name": "tiny", "fingerprint": "0-0", "folder": False},
        "data": {"policy_kwargs": {"model": "tiny"}},
        "counters": {"num_timesteps": 7},
        "spaces": {"action": [0, 9]},
    }
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.zip"
        write_save(path, SavedModel(manifest, {"policy": tensors}, {"policy": config}, {"v": {"w": torch.ones(2)}}))
        return path.read_bytes()


def check_save(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.zip"
        path.write_bytes(data)
        try:
            saved = read_save(path)
        except SaveFormatError as error:
            assert str(path) in str(error)
            return
        assert all(type(value) is int for value in saved.manifest["counters"].values())
        assert "tensorboard_log" not in saved.manifest["data"]
        assert isinstance(saved.policy_kwargs, dict) and os.listdir(folder) == ["a.zip"]


@fuzz(60)
@given(st.binary(max_size=200) | byte_cuts.map(lambda pieces: spliced_bytes(sound_save(), pieces)))
def test_saves_of_any_bytes(data: bytes) -> None:
    check_save(data)


paths_of_manifest = st.lists(
    st.sampled_from(
        [
            "class",
            "base",
            "name",
            "fingerprint",
            "data",
            "policy_kwargs",
            "counters",
            "spaces",
            "adapters",
            "heads",
            "format",
        ]
    ),
    min_size=1,
    max_size=2,
)


@fuzz(60)
@given(st.lists(st.tuples(paths_of_manifest, values), min_size=1, max_size=3), st.booleans())
def test_saves_with_any_values(changes: list[tuple[list[str], Any]], of_adapter: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, other = Path(folder) / "a.zip", Path(folder) / "b.zip"
        path.write_bytes(sound_save())
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
            for name in old.namelist():
                data = old.read(name)
                if name.endswith("adapter_config.json" if of_adapter else "agentprm.json"):
                    read = json.loads(data)
                    for keys, value in changes:
                        place = read
                        for key in keys[:-1]:
                            place = place[key] if isinstance(place.get(key), dict) else place
                        place[("r", "lora_alpha", "target_modules")[len(keys) % 3] if of_adapter else keys[-1]] = value
                    data = json.dumps(read).encode()
                new.writestr(name, data)
        check_save(other.read_bytes())


# Episodes, answers, configurations -----------------------------------------------------------------
TURN: dict[str, Any] = {
    "feedback": "a",
    "admissible_commands": ["look"],
    "command": "look",
    "reward": 0.0,
    "candidates": None,
}
ROW: dict[str, Any] = {"game_id": "g", "split": "train", "task_type": "", "task": "t", "success": True, "seed": 1}


@fuzz(80)
@given(
    st.dictionaries(st.sampled_from([*TURN, "log_prob", "response"]), values),
    st.dictionaries(st.sampled_from([*ROW, "turns"]), values),
    st.booleans(),
)
def test_episodes_of_any_values(turn: dict[str, Any], row: dict[str, Any], packed: bool) -> None:
    data = json.dumps({**ROW, "turns": [{**TURN, **turn}], **row}).encode()
    check_episodes(gzip.compress(data) if packed else data, packed)


@fuzz(60)
@given(byte_cuts, st.booleans())
def test_episode_files_of_any_bytes(pieces: list[tuple[float, int, bytes]], packed: bool) -> None:
    data = json.dumps({**ROW, "turns": [TURN]}).encode()
    check_episodes(spliced_bytes(gzip.compress(data) if packed else data, pieces), packed)


def check_episodes(data: bytes, packed: bool) -> None:
    """What can be read can be written, and is the same when it is read again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("a.jsonl.gz" if packed else "a.jsonl")
        path.write_bytes(data)
        try:
            episodes = list(read_episodes(path))
        except ValueError as error:
            assert str(path) in str(error)
            return
        try:
            write_episodes(path, episodes)
        except ValueError as error:  # candidates may hold what JSON cannot
            assert "candidates" in json.dumps(str(error)) or "JSON" in str(error)
            return
        assert list(read_episodes(path)) == episodes


@fuzz(100)
@given(st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()), st.integers(200, 599))
def test_servers_of_any_bytes(body: bytes, status: int) -> None:
    check_answer(Reply("http://a", status, Headers(), body.decode(errors="replace")))


@fuzz(100)
@given(values, values, values)
def test_servers_of_any_values(content: Any, choices: Any, usage: Any) -> None:
    for body in (
        {"choices": [{"message": {"content": content}, "finish_reason": usage}], "usage": usage},
        {"choices": choices, "usage": usage},
        {"choices": [choices, content]},
    ):
        check_answer(Reply("http://a", 200, Headers(), json.dumps(body)))


@lru_cache(1)
def a_client() -> ServerClient:
    return ServerClient("http://127.0.0.1:9/v1", "m", max_retries=0)


def check_answer(reply: Reply) -> None:
    client = a_client()
    client._sender.post = lambda *_: reply  # type: ignore[method-assign]
    try:
        ((answer,),) = client.complete([[{"role": "user", "content": "hello"}]], [0])
    except ServerError as error:
        assert "something else than a chat completion" in str(error)
        return
    answer.text.encode()
    assert isinstance(answer.cut, bool) and client.usage.prompt_tokens >= 0


@fuzz(150)
@given(texts, st.lists(texts, max_size=4))
def test_answers_and_texts(text: str, commands: list[str]) -> None:
    parse_response(f"REASON: {text}\nACTION: {text}")
    parse_response(text)
    whole(text).encode()
    assert plain(plain(text)) == plain(text)
    assert "\n" not in cell(text) and "<" not in cell(text) and "[" not in cell(text)


@fuzz(60)
@given(st.dictionaries(st.sampled_from(["algo", "set", "reward", "env_kwargs", "import", "seed", "x"]), values) | texts)
def test_configurations(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_bytes((value if isinstance(value, str) else json.dumps(value)).encode(errors="surrogatepass"))
        try:
            read = configuration.read_config(build_parser()[1]["train"], path)
        except ValueError as error:
            assert "--config" in str(error)
            return
        assert "os:system" not in json.dumps(read, default=str)


@pytest.mark.slow
def test_twenty_times_as_many_examples_and_others() -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", __file__]
    done = subprocess.run(words, env={**os.environ, "AGENTPRM_FUZZ": "20"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
