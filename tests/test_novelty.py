"""Rewards for exploring: counts of exact states, and novelty of hidden states."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env

from agentprm_gym.engines.native import NativeEngine
from agentprm_gym.episodes import Turn
from agentprm_gym.games import find_games
from agentprm_gym.prm.novelty import (
    DisagreementReward,
    NearestReward,
    RNDReward,
    disagreement,
    nearest_bonus,
    rnd_errors,
)
from agentprm_gym.rewards import ScoredTurn, make_reward
from agentprm_gym.wrappers.novelty import VisitCounts, VisitRewardWrapper, state_digest
from algorithms import GRPO
from tests.algorithm_helpers import make_model


def game(**kwargs: Any) -> Any:
    return gym.make("ALFWorld-v0", games="generated", render_mode=None, **kwargs)


def moves(env: Any, n: int) -> list[str]:
    """Commands that go to n different places."""
    observation, _ = env.reset(options={"game": 0})
    return [c for c in observation["admissible_commands"].split("\n") if c.startswith("go to")][:n]


class TestVisits:
    def test_the_bonus_is_that_of_the_formula(self) -> None:
        env = VisitRewardWrapper(game(), coef=0.1, max_bonus=0.9)
        first, second, *_ = moves(env, 2)
        env.visits.counts.clear()
        env.reset(options={"game": 0})
        paid = [env.step(c)[1] for c in (first, second, first, first)]
        # The first state is left and come back to; "go to" where one is says nothing happens, and is the state again.
        assert paid == pytest.approx([0.1 / math.sqrt(n) for n in (1, 1, 2, 3)])

    def test_counts_are_of_exact_states_and_shared(self) -> None:
        counts = VisitCounts()
        one, two = (VisitRewardWrapper(game(), coef=0.1, counts=counts) for _ in range(2))
        (first,) = moves(one, 1)
        counts.counts.clear()
        for env in (one, two):
            env.reset(options={"game": 0})
        assert [one.step(first)[1], two.step(first)[1]] == pytest.approx([0.1, 0.1 / math.sqrt(2)])
        two.reset(options={"game": 1})
        start = counts.counts.most_common()[-1][1]
        assert start == 1  # another game's start is another state

    def test_equal_states_have_equal_digests(self) -> None:
        engine = NativeEngine()
        engine.reset(find_games("train", "generated")[0])
        state = engine.snapshot()
        shuffled = replace_sets(state)
        assert state_digest(state) == state_digest(shuffled)
        engine.step("look")
        assert state_digest(engine.snapshot()) == state_digest(state)
        assert state_digest(state._replace(held="mug 1")) != state_digest(state)

    def test_an_episode_is_paid_so_much_at_most_and_less_than_a_win(self) -> None:
        env = VisitRewardWrapper(game(), coef=0.2, max_bonus=0.5)
        places = moves(env, 6)
        env.reset(options={"game": 0})
        assert sum(env.step(c)[1] for c in places) == pytest.approx(0.5)
        with pytest.raises(ValueError, match="as much as a win"):
            VisitRewardWrapper(game(), max_bonus=1.0)

    def test_the_first_phase_pays_no_outcome_and_tells_it(self) -> None:
        plan = find_games("train", "generated")[0].walkthrough
        for outcome in (False, True):
            env = VisitRewardWrapper(game(), coef=0.0, outcome=outcome)
            env.reset(options={"game": 0})
            *_, last = [env.step(c) for c in plan]
            assert last[4]["reward/env"] == 1.0
            assert last[1] == float(outcome)

    def test_an_environment_without_snapshots_is_refused(self) -> None:
        from tests.own_envs import PlainTextEnv

        with pytest.raises(TypeError, match="snapshot"):
            VisitRewardWrapper(PlainTextEnv())


def replace_sets(state: Any) -> Any:
    """The same state with its mappings and sets in another order."""
    return state._replace(
        contents=dict(reversed(list(state.contents.items()))), opened=frozenset(sorted(state.opened, reverse=True))
    )


def turns(n: int) -> list[ScoredTurn]:
    seen = [Turn(feedback=f"You see a mug {i}.", admissible_commands=("look", "go"), command="look") for i in range(n)]
    return [ScoredTurn("put a mug.", seen[: i + 1], False, f"You see a mug {i + 1}.", ("look", "go")) for i in range(n)]


class TestHidden:
    def test_formulas_by_hand(self) -> None:
        assert rnd_errors(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])).tolist() == [2.5]
        z, memory = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]])
        assert nearest_bonus(z, memory, 2).item() == pytest.approx(math.log(1 + (1 + 5) / 2))
        assert nearest_bonus(z, memory, 9).item() == pytest.approx(math.log(1 + (1 + 5 + 10) / 3))
        assert nearest_bonus(z, memory, 2, clip=2.0).item() == pytest.approx(math.log(1 + (0 + 3) / 2))
        predictions = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]]])
        assert disagreement(predictions).tolist() == [0.5]  # variances 1 and 0

    @pytest.mark.ci
    @pytest.mark.parametrize("kind", [RNDReward, DisagreementReward])
    def test_what_was_seen_often_is_worth_less(self, kind: type) -> None:
        reward = kind(coef=1.0, max_reward=1e9)
        batch = turns(4)
        first = reward.score(batch)
        for _ in range(200):
            last = reward.score(batch)
        assert first.shape == (4,)
        assert (last < 0.5 * first).all()

    def test_nearest_pays_nothing_for_what_was_just_there_and_something_for_the_new(self) -> None:
        reward = NearestReward(coef=1.0, max_reward=1e9, k=1)
        one, two, *_ = turns(3)
        assert reward.score([one]).tolist() == [0.0]  # there is nothing to be far from
        new = float(reward.score([two])[0])
        again = float(reward.score([two])[0])
        assert new > 10 * max(again, 1e-3)
        assert len(reward._memory) == 3

    def test_the_outcome_does_not_matter_and_the_pay_is_capped(self) -> None:
        batch = turns(3)
        won = [replace(one, terminated=True) for one in batch]
        assert np.array_equal(RNDReward(max_reward=1e9).score(batch), RNDReward(max_reward=1e9).score(won))
        assert RNDReward(coef=1e6, max_reward=0.1).score(batch).tolist() == [0.1] * 3

    def test_environments_pay_it_by_its_path(self) -> None:
        env: Any = gym.make(
            "ALFWorldPRM-v0",
            games="generated",
            reward="agentprm_gym.prm.novelty:RNDReward",
            reward_kwargs={"max_reward": 0.05},
        )
        env.reset(options={"game": 0})
        info = env.step("look")[4]
        assert 0.0 < info["reward/prm"] <= 0.05
        with pytest.raises(ValueError, match="max_reward"):
            make_reward("agentprm_gym.prm.novelty:RNDReward", max_reward=-1.0)


class TestTwoPhases:
    def test_without_the_outcome_a_policy_learns_from_novelty_and_then_from_the_outcome(self, learner: str) -> None:
        """URLB's protocol: the same policy, first paid for new states alone, then by the task."""
        counts = VisitCounts()

        def phase(outcome: bool) -> Any:
            def make() -> Any:
                env = game(max_episode_steps=4)
                return VisitRewardWrapper(env, outcome=False, counts=counts) if not outcome else env

            return make_vec_env(make, n_envs=4, seed=0)

        model = make_model(GRPO, learner, phase(False))
        model.learn(1)
        assert counts.counts.total() > 8
        assert model._n_updates > 0  # no game was won, and still episodes differ in what they were paid
        assert not any(model.ep_success_buffer)
        seen, updates = counts.counts.total(), model._n_updates
        model.set_env(phase(True))
        model.learn(1, reset_num_timesteps=False)
        assert counts.counts.total() == seen
        assert model._n_updates == updates  # by the outcome alone nothing tells the lost games apart
