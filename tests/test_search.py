"""Test-time search and rollouts: what is weighed, what is executed, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

import agentprm_gym  # noqa: F401  # registers the environments
from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.prm.model import FORMS, ProcessRewardModel
from algorithms.common.acting.actors import Actor, PolicyActor
from algorithms.common.acting.policy import LLMPolicy
from algorithms.common.acting.rollouts import RolloutTask, collect, stream
from algorithms.common.acting.search import BestOfNActor, LookAheadActor, PRMGreedyActor, VoteActor
from algorithms.common.measure.evaluation import evaluate
from algorithms.common.shell.load import load_actor
from tests.llm_helpers import randomise, save_random_model, weigh_repeats

N_ENVS = 3


@pytest.fixture(scope="module")
def household() -> VecEnv:
    return venv(N_ENVS)


def venv(n: int, **kwargs: Any) -> VecEnv:
    env_kwargs = {"games": "generated", "render_mode": None, "max_episode_steps": 5, **kwargs}
    return make_vec_env("ALFWorld-v0", n_envs=n, env_kwargs=env_kwargs)


@pytest.fixture(scope="module")
def policy(household: VecEnv, tmp_path_factory: pytest.TempPathFactory) -> LLMPolicy:
    folder = save_random_model(tmp_path_factory.mktemp("policy"), head_scale=5)
    policy = LLMPolicy(household.observation_space, household.action_space, model=folder)
    randomise(policy.lm, "policy")
    return policy


@pytest.fixture(scope="module", params=FORMS)
def prm(policy: LLMPolicy, request: pytest.FixtureRequest) -> ProcessRewardModel:
    prm = ProcessRewardModel(policy.lm, form=request.param)
    randomise(policy.lm, "prm", scale=0.1, seed=1)
    with torch.no_grad():
        prm.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    weigh_repeats(prm)
    return prm


def commands(episodes: Sequence[Episode]) -> list[list[str]]:
    return [[turn.command for turn in e.turns] for e in episodes]


def scores_of(turn: Any) -> dict[str, float]:
    return {c["command"]: c["score"] for c in turn.candidates}


def check_scores(prm: ProcessRewardModel, episodes: Sequence[Episode]) -> None:
    """What stands beside each candidate is what the process reward model says of it."""
    for episode in episodes:
        weighed = [(t, list(scores_of(turn))) for t, turn in enumerate(episode.turns)]
        (expected,) = prm.score([(episode.task, episode.turns, weighed)])
        for turn, scores in zip(episode.turns, expected, strict=True):
            assert list(scores_of(turn).values()) == pytest.approx(scores.tolist(), abs=1e-4)
            assert turn.command == max(scores_of(turn), key=scores_of(turn).__getitem__)


@pytest.mark.ci
@pytest.mark.parametrize(("reason", "reads"), [(False, True), (True, True), (True, False)])
def test_best_of_n_weighs_draws_and_executes_the_best(
    prm: ProcessRewardModel, household: VecEnv, reason: bool, reads: bool
) -> None:
    kwargs: dict[str, Any] = {"template": "full", "reason": True, "max_new_tokens": 6} if reason else {}
    policy = LLMPolicy(household.observation_space, household.action_space, model=prm.lm.name, **kwargs)
    judge = ProcessRewardModel(policy.lm, form=prm.form, read_reasons=reads)
    randomise(policy.lm, "prm", scale=0.1)
    with torch.no_grad():
        judge.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    weigh_repeats(judge)
    episodes = evaluate(BestOfNActor(policy.actor(N_ENVS), judge, N_ENVS, 5), household, games=range(3))
    assert max(len(turn.candidates or []) for e in episodes for turn in e.turns) > 2
    if not reason:
        check_scores(judge, episodes)
    for (
        episode
    ) in episodes:  # what was executed scores as it does where the model is fitted, with or without its reason
        for turn, score in zip(episode.turns, judge.score_turns(episode.task, episode.turns), strict=True):
            assert max(float(c["score"]) for c in turn.candidates or []) == pytest.approx(float(score), abs=1e-4)
    for turn in (t for e in episodes for t in e.turns):
        rows = turn.candidates or []
        assert turn.response == max(rows, key=lambda c: float(c["score"]))["response"]
        assert bool(turn.reason) or not reason or turn.response.startswith("REASON:") or "ACTION" in turn.response


def test_the_policy_weight_pulls_the_choice_towards_what_the_policy_finds_likely(
    prm: ProcessRewardModel, household: VecEnv
) -> None:
    policy = LLMPolicy(household.observation_space, household.action_space, model=prm.lm.name)
    judge = ProcessRewardModel(policy.lm, form=prm.form)
    randomise(policy.lm, "prm", scale=0.1)
    with torch.no_grad():
        judge.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    weigh_repeats(judge)
    for weight in (0.03, 1e6):
        actor = BestOfNActor(policy.actor(N_ENVS), judge, N_ENVS, 6, policy_weight=weight)
        turns = [t for e in evaluate(actor, household, games=range(3)) for t in e.turns]
        against = 0
        for turn in turns:
            worth = {c["command"]: c["score"] + weight * c["log_prob"] for c in turn.candidates}
            assert turn.command == max(worth, key=worth.__getitem__)
            against += turn.command != max(scores_of(turn), key=scores_of(turn).__getitem__)
        assert against  # the weight has changed some choices
    with pytest.raises(ValueError, match="policy_weight"):
        BestOfNActor(policy.actor(1), judge, 1, 2, policy_weight=-1.0)


def test_long_transcripts_are_shortened_as_where_the_model_is_fitted(prm: ProcessRewardModel, tmp_path: Path) -> None:
    folder = save_random_model(tmp_path, template="full", max_context=500)
    judge = ProcessRewardModel(LanguageModel.load(folder), form=prm.form)
    randomise(judge.lm, "prm", scale=0.1)
    with torch.no_grad():
        judge.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    weigh_repeats(judge)
    (episode,) = evaluate(PRMGreedyActor(judge, 1), venv(1, max_episode_steps=30), games=[0])
    assert len(judge.encode(episode.task, episode.turns)) > 1
    check_scores(judge, [episode])
    every = judge.score_all([episode])[0]
    for turn, row in zip(episode.turns, every, strict=True):
        assert list(scores_of(turn).values()) == pytest.approx(torch.sigmoid(row).tolist(), abs=1e-4)


def test_the_prm_alone_takes_its_favourite_of_all(prm: ProcessRewardModel, household: VecEnv) -> None:
    episodes = evaluate(PRMGreedyActor(prm, N_ENVS), household, games=range(3))
    check_scores(prm, episodes)
    assert all(len(scores_of(t)) == len(t.admissible_commands) for e in episodes for t in e.turns)


def test_a_vote_takes_what_was_drawn_most_often(policy: LLMPolicy, household: VecEnv) -> None:
    episodes = evaluate(VoteActor(policy.actor(N_ENVS), 9), household, games=range(3))
    for turn in (t for e in episodes for t in e.turns):
        votes = scores_of(turn)
        assert sum(votes.values()) == pytest.approx(1.0)
        assert votes[turn.command] == max(votes.values())


def test_one_vote_is_the_policy_itself(policy: LLMPolicy, household: VecEnv) -> None:
    plain = evaluate(policy.actor(N_ENVS), household, games=range(3), seed=3)
    assert commands(evaluate(VoteActor(policy.actor(N_ENVS), 1), household, games=range(3), seed=3)) == commands(plain)


def test_draws_that_are_written_freely_read_a_transcript_once(policy: LLMPolicy, household: VecEnv) -> None:
    """Each is written in a copy of the transcript. Where there is too little room for copies, it is read again."""
    kwargs: dict[str, Any] = {"model": policy.lm.name, "template": "full", "reason": True, "max_new_tokens": 6}
    played, fed = [], []
    for limit in (None, 2500):
        writer = LLMPolicy(household.observation_space, household.action_space, cache_tokens=limit, **kwargs)
        actor = writer.actor(N_ENVS)
        assert isinstance(actor, PolicyActor)
        episodes = evaluate(VoteActor(actor, 4), household, games=range(3), seed=1)
        played.append(commands(episodes))
        fed.append(actor.rows.decoder.n_fed)
        assert (actor.rows.decoder.n_evicted > 0) == (limit is not None)
    assert played[0] == played[1]
    assert fed[1] > 2 * fed[0]


@pytest.mark.ci
@pytest.mark.parametrize("depth", [1, 2])
def test_look_ahead_sees_what_wins(prm: ProcessRewardModel, depth: int) -> None:
    """One or two commands before the end of a game it finds the rest, whatever the process reward model thinks."""
    one = venv(1)
    game = one.get_attr("games")[0][0]
    steps = list(game.walkthrough)
    one.env_method("reset", options={"game": 0})
    for command in steps[:-depth]:
        one.env_method("step", command)
    (state,) = one.env_method("snapshot")
    (turns,) = one.get_attr("turns")
    actor = LookAheadActor(prm, 1, depth=depth, breadth=1000)
    task = RolloutTask({"snapshot": state}, (0,), history=list(turns))
    (rollout,) = collect(actor, one, [task]) or []
    assert rollout.episode.success
    assert len(rollout.episode.turns) == len(steps)
    won = rollout.episode.turns[-1]
    assert scores_of(won)[won.command] == 1.0


def test_look_ahead_judges_what_comes_next_as_the_prm_does(prm: ProcessRewardModel) -> None:
    """With the whole transcript in view, and with commands that were executed before."""
    one = venv(1, max_episode_steps=20)
    one.env_method("reset", options={"game": 0})
    for command in ["look", "inventory", "look"]:
        one.env_method("step", command)
    (state,), (done,), env = one.env_method("snapshot"), one.get_attr("turns"), one.envs[0].unwrapped  # type: ignore[attr-defined]
    history = list(done)
    task = RolloutTask({"snapshot": state}, (0,), history=history, max_turns=1)
    (rollout,) = collect(LookAheadActor(prm, 1, depth=1, gamma=0.9), one, [task]) or []
    played, (here,) = rollout.episode, rollout.episode.turns[len(history) :]
    env.restore(state)
    following = env.look_ahead([[command] for command in here.admissible_commands])
    for command, (feedback, options, won) in zip(here.admissible_commands, following, strict=True):
        assert not won
        after = Turn(feedback=feedback, admissible_commands=options, command=options[0])
        turns = [*history, replace(here, command=command, response="", candidates=None), after]
        (((values),),) = prm.score([(played.task, turns, [(len(turns) - 1, list(options))])])
        assert scores_of(here)[command] == pytest.approx(0.9 * float(values.max()), abs=1e-4)


def test_looking_ahead_changes_nothing(household: VecEnv) -> None:
    env = household.envs[0].unwrapped  # type: ignore[attr-defined]
    observation, _ = env.reset(options={"game": 2})
    admissible = observation["admissible_commands"].split("\n")
    seen = env.look_ahead([*([c] for c in admissible), admissible[:3]])
    for command, (feedback, options, won) in zip(admissible, seen, strict=False):
        state = env.snapshot()
        after, reward, *_ = env.step(command)
        assert (after["feedback"], after["admissible_commands"], reward) == (feedback, "\n".join(options), float(won))
        env.restore(state)
    for command in admissible[:3]:
        after, *_ = env.step(command)
    assert after["feedback"] == seen[-1][0]


class TestRollouts:
    def play(self, policy: LLMPolicy, n_envs: int, **kwargs: Any) -> list[Episode]:
        return evaluate(policy.actor(n_envs, **kwargs), venv(n_envs), games=range(9), seed=1)

    def test_the_number_of_environments_does_not_matter(self, policy: LLMPolicy) -> None:
        expected = self.play(policy, 9)
        assert len({tuple(c) for c in commands(expected)}) > 3
        for n_envs in (1, 4):
            assert commands(self.play(policy, n_envs)) == commands(expected)

    @pytest.mark.parametrize("mode", ["generate", "score"])
    def test_nor_does_it_in_other_modes(self, policy: LLMPolicy, mode: str) -> None:
        space, action = policy.observation_space, policy.action_space
        other = LLMPolicy(space, action, model=policy.lm.name, action_mode=mode, max_new_tokens=8)
        assert commands(self.play(other, 9)) == commands(self.play(other, 4))

    def test_free_text_reaches_the_game_as_it_is(self, policy: LLMPolicy) -> None:
        space, action = policy.observation_space, policy.action_space
        wild = LLMPolicy(space, action, model=policy.lm.name, action_mode="generate", max_new_tokens=8, template="full")
        actor = wild.actor(3)
        (episode, *_) = evaluate(actor, venv(3), games=range(3))
        assert not any(turn.is_admissible for turn in episode.turns)
        assert all(turn.feedback == "Nothing happens." for turn in episode.turns[1:])
        assert actor.counts["malformed"] + actor.counts["inadmissible"] > 10
        assert 0 < actor.counts["cut"] <= actor.counts["turns"]

    def test_episodes_come_as_they_finish(self, policy: LLMPolicy) -> None:
        def endless() -> Any:
            i = 0
            while True:
                yield RolloutTask({"game": i % 5}, (i,), max_turns=1 + 3 * (i == 0))
                i += 1

        rollouts = stream(policy.actor(2), venv(2), endless())
        order = [next(rollouts)[0] for _ in range(5)]
        # The first episode takes four turns; three of the others are over by then.
        assert order == [1, 2, 3, 0, 4]

    def test_finished_episodes_cost_nothing(self, policy: LLMPolicy) -> None:
        """One long and many short episodes: the long one is alone in the batch at the end."""
        actor = policy.actor(4)
        sizes = []
        answer = actor.answer
        actor.answer = lambda requests: (sizes.append(len(requests)), answer(requests))[1]  # type: ignore[method-assign]
        tasks = [RolloutTask({"game": i}, (i,), max_turns=5 if i == 0 else 2) for i in range(4)]
        collect(actor, venv(4), tasks)
        assert sizes == [4, 4, 1, 1, 1]


def test_searches_by_name(policy: LLMPolicy, household: VecEnv) -> None:
    actor: Actor = load_actor(policy.lm.name, household, search="vote", n=3, action_mode="score")
    assert isinstance(actor, VoteActor)
    assert actor.policy.responder.mode == "score"
    with pytest.raises(ValueError, match=r"'beams'.*best-of-n"):
        load_actor(policy.lm.name, household, search="beams")


@pytest.mark.parametrize(
    "make", [lambda prm: BestOfNActor(None, prm, 1, 0), lambda prm: LookAheadActor(prm, 1, depth=0)]
)
def test_bad_numbers_are_refused(prm: ProcessRewardModel, make: Any) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        make(prm)
