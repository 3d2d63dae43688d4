"""The judge: what it is asked, how its answers count, and a real local server that answers."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.envs.registration import EnvSpec

import agentprm_gym  # noqa: F401  # registers the environments
from agentprm_gym.episodes import Turn
from agentprm_gym.rewards import ScoredTurn, make_reward
from agentprm_gym.rewards.judge import JudgeError, JudgeReward, read_answer
from agentprm_gym.testing import check_process_reward
from agentprm_gym.wrappers import ProcessRewardWrapper


@pytest.fixture(autouse=True)
def no_proxy_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def turn(*feedbacks: str, after: str) -> ScoredTurn:
    turns = [Turn(feedback=text, admissible_commands=["look"], command=f"go {text}") for text in feedbacks]
    return ScoredTurn(task="put {a} mug in shelf.", turns=turns, terminated=False, feedback=after)


class Judge:
    """Answers by rule, and remembers the questions."""

    def __init__(self, rule: Callable[[str], str]) -> None:
        self.rule = rule
        self.asked: list[list[str]] = []

    def __call__(self, questions: list[str]) -> Sequence[str]:
        self.asked.append(questions)
        return [self.rule(question) for question in questions]


def last_situation(question: str) -> str:
    return question.split("Situation 1, after it:\n")[1].split("\n")[0]


def test_preferences_count_as_they_should() -> None:
    judge = Judge(lambda q: {"better": "1", "worse": "0", "alike": "-1"}[last_situation(q)])
    turns = [turn("a", after=after) for after in ("better", "worse", "alike")]
    assert JudgeReward(judge).score(turns).tolist() == [1, -1, 0]
    assert JudgeReward(judge, coef=0.5).score(turns).tolist() == [0.5, -0.5, 0]
    assert JudgeReward(judge).score([]).shape == (0,)


def test_the_question_tells_what_a_player_saw() -> None:
    reward = JudgeReward(Judge(lambda q: "1"), n_history=2)
    question = reward.question(turn("a", "b", "c", "d", after="e"))
    assert "Its task: put {a} mug in shelf." in question
    assert "What happened before:\nb\n> go b\nc\n> go c\n\nSituation 0" in question
    assert "next command:\nd\n\nThe command: go d\n\nSituation 1, after it:\ne\n" in question
    assert "before:\n(nothing)\n" in JudgeReward(Judge(lambda q: "1"), n_history=0).question(turn("a", "b", after="c"))
    with pytest.raises(ValueError, match=r"needs ScoredTurn\.turns"):
        reward.score([ScoredTurn(task="t", turns=(), terminated=False)])


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("1", 1.0),
        (" 0\n", -1.0),
        ("-1", 0.0),
        ("The mug is in hand now.\n\n**1**", 1.0),
        ("The answer is -1.", 0.0),
        ("Final answer: 0", -1.0),
        ("Situation 1.", 1.0),
        ("`[1]`", 1.0),
        ("", None),
        ("   \n", None),
        ("1 or 0", None),
        ("I see 1 apple", None),
        ("1\nor so", None),
        ("10", None),
        ("+1", None),
        ("0.5", None),
        ("--1", None),
    ],
)
def test_answers_are_read_strictly(answer: str, value: float | None) -> None:
    assert read_answer(answer) == value


def test_repeated_questions_are_asked_once() -> None:
    judge = Judge(lambda q: "1")
    reward = JudgeReward(judge, max_kept=2)
    one, two, three = (turn("a", after=after) for after in "xyz")
    reward.score([one, one, two])
    reward.score([two, one])
    assert [len(questions) for questions in judge.asked] == [2]
    assert reward.counts == {"asked": 2, "kept": 3, "unparsable": 0}
    reward.score([three])  # the one that was used longest ago goes
    reward.score([one, three])
    reward.score([two])
    assert [len(questions) for questions in judge.asked] == [2, 1, 1]


def test_unparsable_answers_are_counted_and_warned_of() -> None:
    reward = JudgeReward(Judge(lambda q: "1" if last_situation(q) == "fine" else "who knows"))
    with pytest.warns(UserWarning, match=r"gave 1 unparsable of 2 answers, counted as 0.0.*'who knows'"):
        assert reward.score([turn("a", after="x"), turn("a", after="fine")]).tolist() == [0, 1]
    with pytest.warns(UserWarning, match="gave 2 unparsable"):
        reward.score([turn("a", after="x")])  # asked again
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reward.score([turn("a", after="y")])
    assert reward.counts == {"asked": 4, "kept": 0, "unparsable": 3}


def test_too_few_answers_are_an_error() -> None:
    with pytest.raises(ValueError, match="gave 1 answers to 2 questions"):
        JudgeReward(lambda questions: ["1"]).score([turn("a", after="x"), turn("a", after="y")])


@pytest.mark.parametrize("kwargs", [{"coef": float("nan")}, {"n_history": -1}, {"max_kept": -1}])
def test_numbers_out_of_range(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        JudgeReward(Judge(lambda q: "1"), **kwargs)


def test_a_judge_keeps_the_contract() -> None:
    check_process_reward(JudgeReward(Judge(lambda q: ("1", "0", "-1")[len(q) % 3])))


# Against a server -----------------------------------------------------------------------------------


class Served:
    """A chat completion server on this machine: answers by rule, may fail at first, remembers requests."""

    def __init__(self, rule: Callable[[str], Any], failures: Sequence[int] = ()) -> None:
        self.failures = list(failures)
        self.requests: list[tuple[str, dict[str, Any], str | None]] = []
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append((self.path, body, self.headers.get("Authorization")))
                    status = outer.failures.pop(0) if outer.failures else 200
                answer: Any = {"choices": [{"message": {"content": rule(body["messages"][0]["content"])}}]}
                if status != 200:
                    answer = {"error": f"no, and your header was {self.headers.get('Authorization')}"}
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@contextmanager
def serve(rule: Callable[[str], Any], failures: Sequence[int] = ()) -> Iterator[Served]:
    served = Served(rule, failures)
    thread = threading.Thread(target=served.server.serve_forever)
    thread.start()
    try:
        yield served
    finally:
        served.server.shutdown()
        served.server.server_close()
        thread.join()


def test_a_server_judges_a_game_and_the_spec_is_json() -> None:
    with serve(lambda q: "0" if "Nothing happens." in last_situation(q) else "1") as served:
        env = ProcessRewardWrapper(
            gym.make("ALFWorld-v0", games="generated"), f"judge:{served.url}/", {"model": "small", "coef": 0.5}
        )
        assert env.spec is not None
        twin = gym.make(EnvSpec.from_json(env.spec.to_json()))
        for one in (env, twin):
            one.reset(seed=0)
            assert [one.step(command)[1] for command in ("inventory", "dance")] == [0.5, -0.5]
        path, body, key = served.requests[0]
        assert (path, body["model"], body["temperature"], key) == ("/v1/chat/completions", "small", 0.0, None)
        assert "The command: inventory" in body["messages"][0]["content"]
        assert len(served.requests) == 4


def test_a_batch_is_asked_side_by_side_and_answered_in_order() -> None:
    with serve(lambda q: {"0": "0", "1": "1", "2": "-1"}[str(int(last_situation(q)) % 3)]) as served:
        reward = make_reward(f"judge:{served.url}", model="small", concurrency=4, clip=[-0.5, 1])
        got = reward.score([turn("a", after=str(i)) for i in range(12)]).tolist()
    assert got == [-0.5, 1, 0] * 4


def test_the_key_comes_from_the_environment_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    with serve(lambda q: "1", failures=[503, 429]) as served:
        reward = make_reward(f"judge:{served.url}", model="small")
        assert reward.score([turn("a", after="b")]).tolist() == [1]
        assert [key for _, _, key in served.requests] == ["Bearer sesame"] * 3
        assert "sesame" not in str(vars(reward)) + str(vars(vars(reward)["ask"]))
    with serve(lambda q: "1", failures=[401]) as served:
        reward = make_reward(f"judge:{served.url}", model="small")
        with pytest.raises(JudgeError, match=r"refused a request for 'small': status 401: .*Bearer \*\*\*") as caught:
            reward.score([turn("a", after="b")])
        assert "sesame" not in str(caught.value)


def test_a_server_that_does_not_answer_is_an_error_and_an_empty_answer_is_not() -> None:
    with serve(lambda q: None) as served:
        reward = make_reward(f"judge:{served.url}", model="small", max_retries=1)
        with pytest.warns(UserWarning, match="unparsable"):
            assert reward.score([turn("a", after="b")]).tolist() == [0]
    with pytest.raises(JudgeError, match=r"gave no answer for 'small' in 2 attempts.*Is the server up"):
        reward.score([turn("a", after="c")])


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("judge:nowhere", {"model": "m"}, "expected a server's address"),
        ("judge:http://me:secret@host/v1", {"model": "m"}, "without user, password and query"),
        ("judge:http://host/v1?key=secret", {"model": "m"}, "without user, password and query"),
        ("judge:http://host/v1", {"model": ""}, "which model"),
        ("judge:http://host/v1", {}, "do not fit reward 'judge:http://host/v1'"),
        ("judge:http://host/v1", {"model": "m", "timeout": 0}, "timeout above 0"),
    ],
)
def test_servers_that_are_none(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make_reward(name, **kwargs)
    assert "secret" not in str(caught.value)
