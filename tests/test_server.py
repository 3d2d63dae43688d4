"""Policies on servers: against `transformers serve` as a process of its own; a stand-in only fails, or swaps adapters."""

from __future__ import annotations

import itertools
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from packaging.version import Version
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv
from transformers import AutoTokenizer

import agentprm_gym  # noqa: F401  # registers the environments
from agentprm_gym.chat_client import ServerClient, ServerError
from agentprm_gym.episodes import Episode, Turn, read_episodes
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.prompts import TextPrompt
from agentprm_gym.prm.model import ProcessRewardModel
from algorithms import SFT, AgentPRM
from algorithms.cli import main
from algorithms.common.acting.actors import Request
from algorithms.common.acting.policy import LLMPolicy
from algorithms.common.acting.rollouts import RolloutTask, collect
from algorithms.common.acting.search import BestOfNActor, VoteActor
from algorithms.common.acting.server import ServerActor, ServerPolicy
from algorithms.common.measure.evaluation import evaluate
from algorithms.common.shell.load import check_model, load_actor, load_policy
from tests.llm_helpers import save_random_model

N_ENVS = 2
#: Nothing waits long for a server that is not there.
QUICK: dict[str, Any] = {"max_retries": 1, "backoff": 0.05, "timeout": 30.0}


@pytest.fixture(autouse=True)
def no_proxy_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


# ---------------------------------------------------------------------- a real server
class Server(NamedTuple):
    url: str
    model: str
    process: subprocess.Popen[bytes]

    def policy(self, **kwargs: Any) -> ServerPolicy:
        kwargs = {"model_name": self.model, "max_new_tokens": 6, **QUICK, **kwargs}
        policy = load_policy(f"openai:{self.url}", venv(1), **kwargs)
        assert isinstance(policy, ServerPolicy)
        return policy


@contextmanager
def serving(model: str, log: Path) -> Iterator[Server]:
    """Run `transformers serve` on a free port of this machine."""
    program = Path(sys.executable).parent / "transformers"
    if not program.is_file():
        pytest.skip("`transformers serve` is not installed: pip install -e .[dev]")
    if Version(metadata.version("transformers")) < Version("5.5"):
        pytest.skip("`transformers serve` takes a model from transformers 5.5 on")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "serve", model, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process:
        try:
            deadline = time.monotonic() + 120
            while not _is_up(f"http://127.0.0.1:{port}/health"):
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")
                time.sleep(0.1)
            yield Server(f"http://127.0.0.1:{port}/v1", model, process)
        finally:
            process.kill()


def _is_up(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="session")
def served_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("served")
    model = save_random_model(folder, "qwen2", template="full", max_context=32768)
    # Without it `transformers serve` is greedy, whatever the temperature.
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "do_sample": True}))
    return model


@pytest.fixture(scope="session")
def server(served_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(served_model, tmp_path_factory.mktemp("log") / "serve.log") as server:
        yield server


def venv(n: int = N_ENVS, max_episode_steps: int = 2) -> VecEnv:
    env_kwargs = {"games": "generated", "render_mode": None, "max_episode_steps": max_episode_steps}
    return make_vec_env("ALFWorld-v0", n_envs=n, env_kwargs=env_kwargs)


def said(episodes: Sequence[Episode]) -> list[list[str]]:
    return [[turn.response for turn in e.turns] for e in episodes]


def n_tokens(model: str, *texts: str) -> int:
    """How many tokens a server reads for a chat: user, assistant, user, ..."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    roles = ["user", "assistant"] * len(texts)
    chat = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return len(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"])


def test_episodes_are_played_and_everything_is_counted(server: Server) -> None:
    policy = server.policy(price_in=2.0, price_out=4.0)
    episodes = evaluate(policy.actor(N_ENVS), venv(), games=range(3))
    turns = [turn for e in episodes for turn in e.turns]
    assert len(episodes) == 3 and len(turns) == 6
    # A random model says nothing that could be read: it goes to the game as it is.
    assert all(turn.command == turn.response and not turn.is_admissible and turn.log_prob is None for turn in turns)
    assert episodes[0].turns[1].feedback == "Nothing happens."
    assert policy.counts == {"turns": 6, "shortened": 0, "responses": 6, "malformed": 6, "inadmissible": 6, "cut": 6}
    usage = policy.client.usage
    assert (usage.requests, usage.retries, usage.failures) == (6, 0, 0)
    assert usage.completion_tokens == 6 * 6 and usage.seconds > 0
    assert usage.cost == pytest.approx((2 * usage.prompt_tokens + 4 * usage.completion_tokens) / 1e6)


def test_the_server_reads_the_whole_chat(server: Server) -> None:
    policy, prompt = server.policy(template="react"), TextPrompt("react")
    commands = "look\ngo to shelf 1"
    first = {"task": "find a mug.", "feedback": "A room.", "admissible_commands": commands}
    command, state = policy.predict(first)
    texts = [prompt.prompt("find a mug.", "A room.", commands.split("\n"), True)]
    assert policy.client.usage.prompt_tokens == n_tokens(server.model, *texts)
    before = policy.client.usage.prompt_tokens
    assert isinstance(command, str) and [turn.command for turn in state[0]] == [command]
    # As an expert's history has it: a bare command, which the model reads in the form it is asked for.
    state[0][0].command = state[0][0].response = "go to shelf 1"
    policy.predict({**first, "feedback": "A shelf."}, state)
    texts += ["ACTION: go to shelf 1", prompt.prompt("find a mug.", "A shelf.", commands.split("\n"), False)]
    assert policy.client.usage.prompt_tokens - before == n_tokens(server.model, *texts)


def test_sb3_evaluates_it(server: Server) -> None:
    policy = server.policy()
    rewards, lengths = evaluate_policy(policy, venv(), n_eval_episodes=2, return_episode_rewards=True)
    assert rewards == [0, 0] and lengths == [2, 2]
    assert policy.client.usage.requests == 4
    observation = venv().reset()
    commands, state = policy.predict(observation, deterministic=True)
    assert commands.shape == (2,) and len(state) == 2
    again, _ = policy.predict(observation, deterministic=True)
    assert commands.tolist() == again.tolist()
    with pytest.raises(ValueError, match="reset"):
        policy.predict((observation, {}))


def test_the_same_seed_gives_the_same_episodes(server: Server) -> None:
    # This server's dice are the whole process's, so requests must not run side by side.
    runs = [
        said(evaluate(server.policy(concurrency=1).actor(N_ENVS), venv(), games=range(2), seed=seed))
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_many_answers_where_the_server_gives_one_at_a_time(server: Server) -> None:
    policy = server.policy()
    env = venv()
    vote = load_actor(f"openai:{server.url}", env, search="vote", n=3, model_name=server.model, max_new_tokens=4)
    assert isinstance(vote, VoteActor)
    episodes = evaluate(vote, env, games=range(1))
    assert all(0 < len(turn.candidates or []) <= 3 for turn in episodes[0].turns)
    (drawn,) = _sample(policy.actor(1), 4)
    assert len(drawn) == 4 and len({answer.response for answer in drawn}) > 1
    assert policy.client.usage.requests == 4  # the first of them asked for all four
    actor = policy.actor(1, n_candidates=2)
    actor.start(0, "find a mug.", [])
    (answer,) = actor.answer([_request(0)])
    assert (answer.candidates or [])[0]["response"] == answer.response


def test_a_local_process_reward_model_chooses(server: Server, learner: str, tmp_path: Path) -> None:
    policy = server.policy()
    prm = ProcessRewardModel(LanguageModel.load(learner))
    env = venv()
    actor = BestOfNActor(policy.actor(N_ENVS), prm, N_ENVS, 3)
    episodes = evaluate(actor, env, games=range(1))
    for turn in episodes[0].turns:
        best = max(turn.candidates or [], key=lambda c: float(c["score"]))
        assert turn.command == best["command"] and best["log_prob"] is None
    weighed = BestOfNActor(policy.actor(N_ENVS), prm, N_ENVS, 3, policy_weight=0.1)
    with pytest.raises(ValueError, match="policy_weight must be 0"):
        evaluate(weighed, env, games=range(1))


def test_what_a_server_refuses_is_said_at_once(server: Server) -> None:
    policy = server.policy(model_name="no-such-model")
    with pytest.raises(ServerError, match=r"refused .*'no-such-model'.* pinned") as error:
        evaluate(policy.actor(1), venv(1), games=range(1))
    assert error.value.status == 400
    assert policy.client.usage.retries == 0 and policy.client.usage.failures == 1


@pytest.mark.ci
def test_a_server_that_dies_takes_no_finished_episode_along(served_model: str, tmp_path: Path) -> None:
    env = venv(2, max_episode_steps=20)
    finished: list[Episode] = []
    with serving(served_model, tmp_path / "serve.log") as server:
        policy = server.policy(max_retries=2)

        def on_episode(episode: Episode) -> None:
            finished.append(episode)
            server.process.kill()
            server.process.wait()

        tasks = [RolloutTask({"game": 0}, (0,), max_turns=1), RolloutTask({"game": 1}, (1,))]
        with pytest.raises(ServerError, match=r"3 attempts.*Is the server up") as error:
            collect(policy.actor(2), env, tasks, on_episode=on_episode)
        start = time.monotonic()
        with pytest.raises(ServerError):
            policy.predict({k: v[0] for k, v in env.reset().items()})
        assert time.monotonic() - start < 5
    assert server.url in str(error.value) and error.value.status is None
    assert [len(e.turns) for e in finished] == [1]


# ---------------------------------------------------------------------- the command line
@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")

    def run(*args: object) -> tuple[int, str, str]:
        status = main([str(a) for a in args])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_eval_prints_the_table_and_what_it_cost(cli: Any, server: Server, tmp_path: Path) -> None:
    run = ("eval", "--policy", f"openai:{server.url}", "--games", "generated", "--max-games", 2, "--max-steps", 2)
    told = ("--model-name", server.model, "--prompt", "react", "--max-new-tokens", 4, "--concurrency", 2)
    status, out, _ = cli(*run, *told, "--price", 1, 2, "--out", "out")
    assert status == 0 and "mean steps" in out
    assert re.search(r"4 requests \(0 retries\), \d+ prompt and 16 completion tokens, cost 0\.\d+", out)
    assert "100.0 % malformed" in out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["server"]["requests"] == 4 and result["server"]["model"] == server.model
    assert result["server"]["counts"]["malformed"] == 4
    assert [e.policy for e in read_episodes(tmp_path / "out" / "episodes.jsonl.gz")] == [server.model] * 2


def test_play_watches_it(cli: Any, server: Server) -> None:
    run = ("play", "--policy", f"openai:{server.url}", "--model-name", server.model, "--max-new-tokens", 4)
    status, out, _ = cli(*run, "--games", "generated", "--max-steps", 2)
    assert status == 0 and "Not done after 2 turns." in out and "Nothing happens." in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["eval"], "Name one"),
        (["eval", "tiny", "--policy", "tiny"], "Name one"),
        (["eval", "openai:http://127.0.0.1:1/v1"], "--model-name"),
        (["eval", "openai:127.0.0.1:1", "--model-name", "m"], "http://127.0.0.1:8000/v1"),
        (["eval", "tiny", "--model-name", "m"], "--model-name is for models on servers"),
        (["eval", "openai:http://127.0.0.1:1/v1", "--model-name", "m", "--action-mode", "score"], "writes freely"),
        (["eval", "openai:http://127.0.0.1:1/v1", "--model-name", "m", "--best-of", "2"], "--prm"),
        (["eval", "openai:http://127.0.0.1:1/v1", "--model-name", "m", "--search", "prm-greedy"], "name its zip"),
        (["train", "--algo", "sft", "--policy", "openai:http://127.0.0.1:1/v1"], "cannot be trained here"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_wrong_input_says_what_is_expected(cli: Any, args: list[str], said: str) -> None:
    status, _, err = cli(*args, *(["--games", "generated"] if args[0] == "eval" else []))
    assert status == 2 and said in err


def test_eval_keeps_what_was_played_when_the_server_dies(cli: Any, tmp_path: Path) -> None:
    with stand_in(chat("ACTION: look"), *[chat("ACTION: look")] * 3, status(500)) as fake:
        run = ("eval", f"openai:{fake.url}", "--model-name", "m", "--max-retries", 0, "--n-envs", 1)
        code, _, err = cli(*run, "--games", "generated", "--max-games", 3, "--max-steps", 2, "--out", "out")
    assert code == 2 and "The 2 episodes that were done are in" in err
    assert len(list(read_episodes(tmp_path / "out" / "unfinished.jsonl.gz"))) == 2
    assert not (tmp_path / "out" / "result.json").exists()


# ---------------------------------------------------------------------- a stand-in that fails
class Reply(NamedTuple):
    status: int
    body: str
    headers: Mapping[str, str] = MappingProxyType({})
    delay: float = 0.0
    hangs_up: bool = False


class Asked(NamedTuple):
    path: str
    body: dict[str, Any]
    headers: dict[str, str]


class StandIn(NamedTuple):
    url: str
    asked: list[Asked]


def chat(*answers: str, **kwargs: Any) -> Reply:
    choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in answers]
    return Reply(200, json.dumps({"choices": choices, "usage": {"prompt_tokens": 5, "completion_tokens": 2}}), **kwargs)


def status(code: int, message: str = "sorry", **headers: str) -> Reply:
    return Reply(
        code, json.dumps({"error": {"message": message}}), {k.replace("_", "-"): v for k, v in headers.items()}
    )


@contextmanager
def stand_in(*script: Reply) -> Iterator[StandIn]:
    """A server that gives these replies one after the other, the last one for ever."""
    asked: list[Asked] = []
    replies = list(script)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                asked.append(Asked(self.path, body, {k.lower(): v for k, v in self.headers.items()}))
                reply = replies.pop(0) if len(replies) > 1 else replies[0]
            time.sleep(reply.delay)
            if reply.hangs_up:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            data = reply.body.encode()
            try:
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(data)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # the client has given up

        def log_message(self, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield StandIn(f"http://127.0.0.1:{httpd.server_port}/v1", asked)
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


@contextmanager
def client(url: str, **kwargs: Any) -> Iterator[ServerClient]:
    client = ServerClient(url, "m", **{"backoff": 0.01, "timeout": 5.0, "max_retries": 3, **kwargs})
    try:
        yield client
    finally:
        client.close()


HELLO: list[dict[str, str]] = [{"role": "user", "content": "hello"}]


def ask(client: ServerClient, n: int = 1) -> list[str]:
    (answers,) = client.complete([HELLO], [7], n=n, temperature=0.5, max_tokens=9)
    return [answer.text for answer in answers]


def _request(row: int, seed: int = 0) -> Request:
    return Request(row, "find a mug.", "A room.", ["look", "go to shelf 1"], np.random.default_rng(seed))


def _sample(actor: ServerActor, n: int) -> list[list[Any]]:
    actor.start(0, "find a mug.", [])
    return actor.sample([_request(0)], n)


def test_what_may_pass_is_tried_again() -> None:
    gone = Reply(0, "", hangs_up=True)
    with stand_in(status(500), status(429, Retry_After="1"), gone, chat("hi")) as fake, client(fake.url) as c:
        start = time.monotonic()
        assert ask(c) == ["hi"]
        assert time.monotonic() - start >= 1  # as long as it asked for
        assert (c.usage.requests, c.usage.retries, c.usage.failures) == (1, 3, 0)
        assert len(fake.asked) == 4
    body = fake.asked[-1].body
    assert body == {"model": "m", "messages": HELLO, "temperature": 0.5, "max_tokens": 9, "seed": 7}
    assert "authorization" not in fake.asked[-1].headers


def test_a_server_that_keeps_failing() -> None:
    with stand_in(status(503, "overloaded")) as fake, client(fake.url) as c:
        with pytest.raises(ServerError, match=r"'m' in 4 attempts.*503.*overloaded.*Is the server up") as error:
            ask(c)
        assert error.value.status == 503 and fake.url in str(error.value)
        assert (c.usage.requests, c.usage.retries, c.usage.failures) == (0, 3, 1)
    with stand_in(status(429, "tomorrow", Retry_After="86400")) as fake, client(fake.url) as c:
        with pytest.raises(ServerError, match="tomorrow"):
            ask(c)
        assert len(fake.asked) == 1


def test_a_server_that_is_too_slow() -> None:
    slow = chat("late", delay=1.0)
    with stand_in(slow) as fake, client(fake.url, timeout=0.1, max_retries=1) as c:
        start = time.monotonic()
        with pytest.raises(ServerError, match=r"2 attempts.*within 0\.1 s"):
            ask(c)
        assert time.monotonic() - start < 1


def test_one_that_fails_ends_the_batch() -> None:
    busy = status(429, Retry_After="30")
    before = set(threading.enumerate())
    with stand_in(busy, status(400, "bad"), busy) as fake, client(fake.url, concurrency=2) as c:
        start = time.monotonic()
        with pytest.raises(ServerError, match="bad"):
            c.complete([HELLO] * 5, [0] * 5)
        assert time.monotonic() - start < 20  # the server had asked for 30
        assert len(fake.asked) <= 3  # the others were not sent any more
        c.close()
        for thread in set(threading.enumerate()) - before:
            if thread.name.startswith("agentprm-server"):
                thread.join(5)
                assert not thread.is_alive()  # one that still waited would keep the program from ending


def test_closing_wakes_those_that_wait_for_an_answer() -> None:
    before = set(threading.enumerate())
    with (
        stand_in(chat("late", delay=6.0), status(400, "bad")) as fake,
        client(fake.url, concurrency=2, timeout=60) as c,
    ):
        with pytest.raises(ServerError, match="bad"):
            c.complete([HELLO] * 2, [0] * 2)
        start = time.monotonic()
        c.close()
        for thread in set(threading.enumerate()) - before:
            if thread.name.startswith("agentprm-server"):
                thread.join(15)
        assert time.monotonic() - start < 4


@pytest.mark.parametrize("code", [400, 401, 404, 422])
def test_what_cannot_pass_is_not_tried_again_and_the_key_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with stand_in(status(code, "no good: sk-secret")) as fake, client(fake.url, api_key_env="MY_KEY") as c:
        with pytest.raises(ServerError, match=r"no good: \*\*\*") as error:
            ask(c)
        assert len(fake.asked) == 1 and fake.asked[0].headers["authorization"] == "Bearer sk-secret"
        assert "sk-secret" not in str(error.value) + repr(c) + str(vars(c))
        assert ("MY_KEY" in str(error.value)) == (code == 401)
    assert error.value.status == code


def test_an_address_where_something_else_lives() -> None:
    with (
        stand_in(Reply(200, "<html>Welcome</html>")) as fake,
        client(fake.url) as c,
        pytest.raises(ServerError, match=r"Welcome.*ends with /v1"),
    ):
        ask(c)


def test_many_answers_in_one_request_or_one_by_one() -> None:
    with stand_in(chat("a", "b", "c")) as fake, client(fake.url) as c:
        assert ask(c, 3) == ["a", "b", "c"]
        assert [asked.body.get("n") for asked in fake.asked] == [3]
    with stand_in(status(400, "n is not supported"), chat("a"), chat("b")) as fake, client(fake.url) as c:
        c.concurrency = 1
        assert sorted(ask(c, 2)) == ["a", "b"]
        ask(c, 2)
        assert [asked.body.get("n") for asked in fake.asked] == [2, *[None] * 4]
        assert sorted(asked.body["seed"] for asked in fake.asked[1:3]) == [7, 8]


def test_fields_are_added_and_taken_out() -> None:
    fields = {"max_tokens": None, "max_completion_tokens": 20, "top_p": 0.9}
    with stand_in(chat("hi")) as fake, client(fake.url, fields=fields) as c:
        ask(c)
    body = fake.asked[0].body
    assert "max_tokens" not in body and body["max_completion_tokens"] == 20 and body["top_p"] == 0.9


def test_answers_are_read_and_counted() -> None:
    good = "REASON: a shelf may hold it\nACTION: go to shelf 1"
    with stand_in(chat(good, "ACTION: dance", "look", "")) as fake, client(fake.url) as c:
        policy = ServerPolicy(c)
        (drawn,) = _sample(policy.actor(1), 4)
        assert [a.command for a in drawn] == ["go to shelf 1", "dance", "look", ""]
        assert drawn[0].reason == "a shelf may hold it" and drawn[0].response == good
        assert {k: policy.counts[k] for k in ("turns", "responses", "malformed", "inadmissible")} == {
            "turns": 1,
            "responses": 4,
            "malformed": 2,
            "inadmissible": 2,
        }


def _play(fake: StandIn, policy: ServerPolicy, n_turns: int) -> tuple[list[Turn], list[list[dict[str, str]]]]:
    """Play some turns; returns them, and the messages that were sent at each."""
    actor, turns = policy.actor(1), []
    actor.start(0, "find a mug.", [])
    for _ in range(n_turns):
        (answer,) = actor.answer([_request(0)])
        turns.append(answer.turn(_request(0)))
        actor.executed(0, turns[-1])
    return turns, [asked.body["messages"] for asked in fake.asked]


def test_thoughts_are_neither_read_nor_sent_back() -> None:
    thinking = "<think>ACTION: look, or not?</think>\nREASON: a shelf may hold it\nACTION: go to shelf 1"
    unfinished = "<think>I might look. ACTION: look"
    with stand_in(chat(thinking), chat(unfinished), chat("Hm.</think>ACTION: look")) as fake, client(fake.url) as c:
        policy = ServerPolicy(c)
        turns, sent = _play(fake, policy, 4)
    assert [turn.command for turn in turns] == ["go to shelf 1", "", "look", "look"]
    assert [turn.reason for turn in turns] == ["a shelf may hold it", "", "", ""]
    assert turns[0].response == thinking  # logs hold all of it
    said = [message["content"] for message in sent[-1] if message["role"] == "assistant"]
    assert said == ["REASON: a shelf may hold it\nACTION: go to shelf 1", "ACTION: ", "ACTION: look"]
    # What was sent before does not change, so servers find it in their caches.
    assert all(later[: len(earlier)] == earlier for earlier, later in itertools.pairwise(sent))
    assert (policy.counts["malformed"], policy.counts["repaired"]) == (1, 0)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thoughts_in_a_field_of_their_own(field: str) -> None:
    def reply(content: Any, thought: str, finish: str) -> Reply:
        message = {"content": content, field: thought}
        return Reply(200, json.dumps({"choices": [{"message": message, "finish_reason": finish}]}))

    parts = [{"type": "thinking", "thinking": "ACTION: look"}, {"type": "text", "text": "ACTION: go to shelf 1"}]
    script = (
        reply("ACTION: go to shelf 1", "ACTION: look", "stop"),
        reply(parts, "", "stop"),
        reply(None, "Hm", "length"),
    )
    with stand_in(*script) as fake, client(fake.url) as c:
        policy = ServerPolicy(c)
        turns, sent = _play(fake, policy, 4)
    assert [turn.command for turn in turns] == ["go to shelf 1", "go to shelf 1", "", ""]
    assert not any(word in json.dumps(sent[-1][1:]) for word in ("Hm", "ACTION: look"))
    assert (policy.counts["malformed"], policy.counts["cut"]) == (2, 2)


def test_repaired_answers_are_counted_apart_from_malformed_ones() -> None:
    said = ("ACTION: look", "**Action:** Look.", "<action>go to shelf 1</action>", "I would look.", "ACTION: dance")
    with stand_in(chat(*said)) as fake, client(fake.url) as c:
        policy = ServerPolicy(c)
        (drawn,) = _sample(policy.actor(1), 5)
    assert [a.command for a in drawn] == ["look", "look", "go to shelf 1", "I would look.", "dance"]
    counted = {k: policy.counts[k] for k in ("responses", "malformed", "repaired", "inadmissible")}
    assert counted == {"responses": 5, "malformed": 1, "repaired": 2, "inadmissible": 2}


@pytest.mark.parametrize("parse", [r"(?P<reason>.*)=>(?P<command>.*)", lambda text: tuple(text.split("=>"))])
def test_a_reader_of_ones_own(parse: Any) -> None:
    with stand_in(chat("a shelf, perhaps => go to shelf 1")) as fake:
        policy = load_policy(f"openai:{fake.url}", venv(1), model_name="m", parse=parse)
        assert isinstance(policy, ServerPolicy)
        turns, sent = _play(fake, policy, 2)
        policy.client.close()
    assert [(turn.reason, turn.command) for turn in turns] == [("a shelf, perhaps", "go to shelf 1")] * 2
    assert sent[-1][1]["content"] == "a shelf, perhaps => go to shelf 1"
    assert policy.counts["malformed"] == 0


def test_play_shows_the_reason_once(cli: Any) -> None:
    with stand_in(chat("REASON: a shelf, perhaps\nACTION: look")) as fake:
        run = ("play", "--policy", f"openai:{fake.url}", "--model-name", "m", "--prompt", "react")
        status, out, _ = cli(*run, "--games", "generated", "--max-steps", 2)
    assert status == 0 and out.count("a shelf, perhaps") == 2 and out.count("> look") == 2


def test_long_chats_keep_the_first_turn_and_the_latest() -> None:
    with stand_in(chat("ACTION: look")) as fake, client(fake.url) as c:
        policy = ServerPolicy(c, max_context=1000, max_new_tokens=100)
        feedbacks = [f"Turn {i}. " + "It is quiet here. " * 10 for i in range(20)]
        history = [Turn(feedback=f, admissible_commands=["look"], command="look") for f in feedbacks[:-1]]
        for row, turns in ((0, history), (1, [])):
            actor = policy.actor(1)
            actor.start(row, "wait.", turns)
            for feedback in feedbacks[len(turns) :]:
                request = Request(row, "wait.", feedback, ["look"], np.random.default_rng(0))
                (answer,) = actor.answer([request])
                actor.executed(row, answer.turn(request))
        sent = [asked.body["messages"] for asked in fake.asked]
        # Turns that were played before make the same chat as turns that were played here.
        assert sent[0] == sent[-1]
        assert all(sum(len(m["content"]) for m in messages) <= 900 * 2.5 for messages in sent)
        assert all("Your task is to: wait." in messages[0]["content"] for messages in sent)
        assert all([m["role"] for m in s] == (["user", "assistant"] * len(s))[: len(s)] for s in sent)
        kept = [int(n) for m in sent[-1] for n in re.findall(r"Turn (\d+)\.", m["content"])]
        assert kept[0] == 0 and 1 not in kept and kept[1:] == list(range(kept[1], 20))
        assert 0 < policy.counts["shortened"] < 10


# ---------------------------------------------------------------------- adapters
def test_adapters_are_swapped() -> None:
    done = Reply(200, "Success: LoRA adapter added.")
    with stand_in(done) as fake, client(fake.url) as c:
        policy = ServerPolicy(c)
        policy.use_adapter("it1", Path("/runs/it1"))
        assert c.model == "it1"
        policy.use_adapter("it2", "/runs/it2")
        policy.use_adapter("it2", "/runs/it2-again")
        policy.use_base()
        assert c.model == "m"
    load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
    assert [(a.path, a.body) for a in fake.asked] == [
        (load, {"lora_name": "it1", "lora_path": "/runs/it1"}),
        (load, {"lora_name": "it2", "lora_path": "/runs/it2"}),
        (unload, {"lora_name": "it1"}),
        (unload, {"lora_name": "it2"}),
        (load, {"lora_name": "it2", "lora_path": "/runs/it2-again"}),
        (unload, {"lora_name": "it2"}),
    ]


def test_adapters_at_other_servers() -> None:
    with stand_in(status(404), Reply(200, "{}")) as fake, client(fake.url) as c:
        policy = ServerPolicy(c)
        policy.use_adapter("a", "/a")  # SGLang has it at the root, and names models otherwise
        assert [a.path for a in fake.asked] == ["/v1/load_lora_adapter", "/load_lora_adapter"]
        assert c.model == "m:a"
        policy.use_base()
        assert c.model == "m"
    with stand_in(status(404)) as fake, client(fake.url) as c:
        policy = ServerPolicy(c)
        with pytest.raises(ServerError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            policy.use_adapter("a", "/a")
        assert c.model == "m"
    with stand_in(status(400, "rank 64 is too large")) as fake, client(fake.url) as c:
        with pytest.raises(ServerError, match="rank 64"):
            c.load_adapter("a", "/a")


# ---------------------------------------------------------------------- what makes no sense
@pytest.mark.parametrize("algorithm", [SFT, AgentPRM])
def test_it_cannot_be_trained(algorithm: Any) -> None:
    with client("http://127.0.0.1:1/v1") as c:
        for policy in ("openai:http://127.0.0.1:1/v1", ServerPolicy(c)):
            with pytest.raises(ValueError, match="cannot be trained here"):
                algorithm(policy, "ALFWorld-v0")
    with pytest.raises(ValueError, match="cannot be trained here"):
        check_model("openai:http://127.0.0.1:1/v1")


@pytest.mark.parametrize(
    ("url", "kwargs", "said"),
    [
        ("ftp://host/v1", {}, "http://127.0.0.1:8000/v1"),
        ("http://me:secret@host/v1", {}, "api_key_env"),
        ("http://host/v1?key=secret", {}, "api_key_env"),
        ("http://host/v1", {"model_name": None}, "model_name"),
        ("http://host/v1", {"temprature": 1}, "temperature"),
        ("http://host/v1", {"concurrency": 0}, "concurrency"),
        ("http://host/v1", {"price_in": 1.0}, "price_out"),
        ("http://host/v1", {"template": "terse"}, "react"),
        ("http://host/v1", {"max_context": 100}, "max_new_tokens"),
    ],
)
def test_wrong_settings_say_what_is_expected(url: str, kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        load_policy(f"openai:{url}", venv(1), **{"model_name": "m", **kwargs})
    assert "secret" not in str(error.value)


def test_local_policies_still_predict_alike(learner: str) -> None:
    """Both kinds of policy share `predict`: the same state, the same checks."""
    env = venv()
    policy = load_policy(learner, env, "cpu")
    assert isinstance(policy, LLMPolicy)
    commands, state = policy.predict(env.reset())
    assert commands.shape == (2,) and [len(turns) for turns in state] == [1, 1]
