"""Scores of running episodes: what one pass over the whole transcript gives, for the price of what is new."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.prm.model import FORMS, ProcessRewardModel
from agentprm_gym.prm.rewards import PRMReward
from agentprm_gym.prm.running import RunningScores, shared_scores
from agentprm_gym.rewards import ScoredTurn
from agentprm_gym.wrappers import ProcessRewardWrapper
from agentprm_gym.wrappers.sb3 import VecProcessReward
from algorithms import GRPO, AgentPRM
from algorithms.common.acting.actors import Answer
from algorithms.common.acting.rollouts import RolloutTask, collect
from algorithms.common.measure.evaluation import make_eval_env
from tests.algorithm_helpers import make_alfworld, make_model, make_toy
from tests.llm_helpers import make_episodes, randomise, weigh_repeats


@pytest.fixture(scope="module", params=FORMS)
def prm(request: pytest.FixtureRequest) -> ProcessRewardModel:
    model = ProcessRewardModel(LanguageModel.load("tiny"), form=request.param)
    randomise(model.lm, "prm", scale=0.1)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        model.head.weight.copy_(torch.randn(model.head.weight.shape, generator=generator) * 0.05)
    weigh_repeats(model)
    return model


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return make_episodes(6)


class RandomActor:
    """Says any admissible command, by the episode's own random stream."""

    def start(self, row: int, task: str, history: Any) -> None:
        pass

    def answer(self, requests: Any) -> list[Answer]:
        return [Answer(str(request.rng.choice(request.admissible_commands)), 0.0) for request in requests]

    def executed(self, row: int, turn: Turn) -> None:
        pass


def whole(prm: ProcessRewardModel, episode: Episode, t: int, commands: list[str]) -> list[float]:
    """Scores at a turn by one pass over everything up to it."""
    (((scores),),) = prm.score([(episode.task, episode.turns[: t + 1], [(t, commands)])])
    return scores.tolist()


def test_turn_by_turn_equals_the_whole_transcript(prm: ProcessRewardModel, episodes: list[Episode]) -> None:
    running = RunningScores(prm)
    for t in range(max(len(e.turns) for e in episodes)):
        going = [e for e in episodes if len(e.turns) > t]
        others = [list(e.turns[t].admissible_commands)[:4] for e in going]
        got = running.score([(e.task, e.turns[: t + 1], c) for e, c in zip(going, others, strict=True)])
        for e, commands, scores in zip(going, others, got, strict=True):
            assert list(scores) == list(dict.fromkeys([e.turns[t].command, *commands]))
            assert list(scores.values()) == pytest.approx(whole(prm, e, t, list(scores)), abs=1e-5)


def test_only_what_is_new_is_read(prm: ProcessRewardModel, episodes: list[Episode]) -> None:
    episode = max(episodes, key=lambda e: len(e.turns))
    running = RunningScores(prm)
    for t in range(len(episode.turns)):
        running.score([(episode.task, episode.turns[: t + 1], ())])
    length = len(prm.encode(episode.task, episode.turns)[-1].ids)
    judged = len(prm.lm.prompt.judge_ids(episode.task)) + 8  # an answer, and what is read again before it
    assert running.decoder.n_fed < length + judged * len(episode.turns)
    # Asked for again, nothing is.
    before = running.decoder.n_fed
    assert (
        running.score([(episode.task, episode.turns, ())] * 2) == running.score([(episode.task, episode.turns, ())]) * 2
    )
    assert running.decoder.n_fed == before


def test_caches_that_do_not_fit_are_read_again(prm: ProcessRewardModel, episodes: list[Episode]) -> None:
    small = RunningScores(prm, n_rows=2, max_tokens=1200)
    for t in range(8):
        going = [e for e in episodes if len(e.turns) > t]
        got = small.score([(e.task, e.turns[: t + 1], ()) for e in going])
        for e, scores in zip(going, got, strict=True):
            assert list(scores.values()) == pytest.approx(whole(prm, e, t, list(scores)), abs=1e-5)
    assert small.decoder.n_evicted > 0


def test_a_reason_is_part_of_what_is_judged(prm: ProcessRewardModel) -> None:
    lm = LanguageModel.load("tiny", template="full", reasons=True)
    judge = ProcessRewardModel(lm)
    randomise(lm, "prm", scale=0.1)
    with torch.no_grad():
        judge.head.weight.copy_(prm.head.weight)
    (episode,) = make_episodes(1)
    running = RunningScores(judge)
    scores = []
    for reason in ("look for it", "no idea"):
        episode.turns[0].reason = reason
        episode.turns[0].response = ""
        (score,) = running.score([(episode.task, episode.turns[:1], ())])
        assert list(score.values()) == pytest.approx(whole(judge, episode, 0, list(score)), abs=1e-5)
        scores.append(score[episode.turns[0].command])
    assert scores[0] != scores[1]


@pytest.mark.ci
@pytest.mark.parametrize("form", ["potential", "value", "advantage"])
def test_rollouts_are_paid_what_single_environments_pay(prm: ProcessRewardModel, form: str) -> None:
    """Rollouts reset single environments of a vector, which a wrapper around it has to notice."""

    def play(venv: VecEnv) -> list[list[float]]:
        tasks = [RolloutTask({"game": i}, (0, i), max_turns=5 + i % 3) for i in range(7)]
        rollouts = collect(RandomActor(), venv, tasks)
        assert rollouts is not None
        return [rollout.rewards for rollout in rollouts]

    reward = PRMReward(prm, form=form, gamma=0.9)
    many = play(VecProcessReward(make_eval_env(n_envs=3, games="generated"), reward))
    single = play(VecProcessReward(make_eval_env(n_envs=1, games="generated"), reward))
    for a, b in zip(many, single, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert len({round(r, 4) for row in many for r in row}) > 10


REASONS: dict[str, Any] = {"reason": True, "template": "full", "max_new_tokens": 6}
WRITER: dict[str, Any] = {"action_mode": "generate", "template": "full", "max_new_tokens": 12, "reason": True}


@pytest.mark.ci
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kwargs", "reads"), [(REASONS, True), (REASONS, False), (WRITER, True)])
@pytest.mark.parametrize("wrapper", ["vec", "single", "id"])
def test_a_rollout_is_paid_what_the_fit_reads(
    learner: str, form: str, kwargs: dict[str, Any], reads: bool, wrapper: str
) -> None:
    """The environment hears the reason, and the model that scores it there scores what it is fitted to."""
    agent: Any = make_model(GRPO, learner, make_toy(2), policy_kwargs=kwargs)
    judge = ProcessRewardModel(agent.lm, form=form, read_reasons=reads)
    randomise(agent.lm, "policy", scale=0.3)
    randomise(agent.lm, "prm", scale=0.3)
    with torch.no_grad():
        judge.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    reward = PRMReward(judge, form="value")
    settings: dict[str, Any] = {"n_turns": 3, "render_mode": None}
    if wrapper == "vec":
        venv: VecEnv = VecProcessReward(make_vec_env("TextIdentity-v0", n_envs=2, env_kwargs=settings), reward)
    elif wrapper == "single":
        venv = make_vec_env(lambda: ProcessRewardWrapper(gym.make("TextIdentity-v0", **settings), reward), n_envs=2)
    else:
        venv = make_vec_env(
            "ALFWorldPRM-v0", n_envs=2, env_kwargs={"games": "generated", "render_mode": None, "reward": reward}
        )
    rollouts = collect(agent.policy.actor(2), venv, [RolloutTask({"game": i}, (0, i), max_turns=3) for i in range(4)])
    assert rollouts is not None
    said = [turn for rollout in rollouts for turn in rollout.episode.turns]
    assert kwargs is WRITER or sum(bool(turn.reason) for turn in said) > len(said) // 2
    assert any(turn.tokens is not None for turn in said)
    for rollout in rollouts:
        paid = np.array(rollout.rewards) - [turn.reward for turn in rollout.episode.turns]
        fitted = judge.score_turns(rollout.episode.task, rollout.episode.turns)
        np.testing.assert_allclose(paid, fitted.numpy(), atol=1e-4)


def test_all_transcripts_of_an_episode_agree(learner: str) -> None:
    """The rollout's, the environment's and the wrapper's, reasons included."""
    shown: list[ScoredTurn] = []

    def watch(turns: Sequence[ScoredTurn]) -> np.ndarray:
        shown.extend(turns)
        return np.zeros(len(turns))

    agent: Any = make_model(AgentPRM, learner, make_toy(2), policy_kwargs=REASONS)
    randomise(agent.lm, "policy", scale=0.3)
    venv = VecProcessReward(
        make_vec_env("TextIdentity-v0", n_envs=1, env_kwargs={"n_turns": 9, "render_mode": None}), watch
    )
    (rollout,) = collect(agent.policy.actor(1), venv, [RolloutTask({"game": 0}, (0,), max_turns=4)]) or []

    def told(turns: Sequence[Turn]) -> list[tuple[Any, ...]]:
        return [(t.feedback, t.admissible_commands, t.reason, t.command, round(t.reward, 6)) for t in turns]

    (own,) = venv.get_attr("turns")
    assert told(rollout.episode.turns) == told(own) == told(shown[-1].turns)
    assert any(turn.reason for turn in own)


def test_a_response_that_the_environment_would_read_otherwise_is_not_told(learner: str) -> None:
    """A template whose answers the environment cannot read: it hears the same command and reason in its own form."""

    class Odd(RandomActor):
        def answer(self, requests: Any) -> list[Answer]:
            return [Answer(r.admissible_commands[0], 0.0, None, "<odd>", "as I like") for r in requests]

    venv = make_vec_env("TextIdentity-v0", n_envs=1, env_kwargs={"n_turns": 9, "render_mode": None})
    (rollout,) = collect(Odd(), venv, [RolloutTask({"game": 0}, (0,), max_turns=2)]) or []
    (own,) = venv.get_attr("turns")
    assert all(turn.is_admissible for turn in rollout.episode.turns)
    assert [(t.reason, t.command) for t in own] == [(t.reason, t.command) for t in rollout.episode.turns]


def test_rewards_of_one_model_share_what_it_has_read_and_let_go_of_it(learner: str) -> None:
    model = ProcessRewardModel(LanguageModel.load(learner))
    shared = shared_scores(model)
    assert PRMReward(model) and shared_scores(model) is shared
    gone = weakref.ref(model)
    del model, shared
    gc.collect()
    assert gone() is None


def test_a_policy_learns_from_a_prm_through_a_wrapped_vector(learner: str, tmp_path: Path) -> None:
    agent: Any = make_model(AgentPRM, learner, make_alfworld())
    agent.save(tmp_path / "agent.zip")
    venv = VecProcessReward(make_alfworld(), f"prm:{tmp_path / 'agent.zip'}", {"form": "value"})
    model = make_model(GRPO, learner, venv)
    model.learn(10)
    # An untrained head says 0.5 everywhere, and the task pays nothing.
    assert 0 < len(model.ep_info_buffer) and all(e["r"] in (0.0, 1.0) for e in model.ep_info_buffer)
