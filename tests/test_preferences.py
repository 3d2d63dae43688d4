"""A reward learnt from a judge's preferences, with judges that are right, wrong now and then, and unsure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env

from agentprm_gym.episodes import Turn
from agentprm_gym.rewards import ScoredTurn
from agentprm_gym.wrappers import ProcessRewardWrapper
from algorithms import GRPO
from algorithms.common.learning.preferences import PreferenceReward, RefitPreferences, Situation, text_judge
from tests.algorithm_helpers import SMALL_ON_POLICY

ROOMS = ("hall", "kitchen", "garden", "tower")


def behind(place: str, task: str = "find the tower.") -> ScoredTurn:
    """A turn that led to a place; the places come in the order of the list."""
    turn = Turn(feedback="You are outside.", admissible_commands=("go on",), command="go on")
    return ScoredTurn(task, [turn], terminated=False, feedback=f"You see {place}.", admissible_commands=("go on",))


def rank(situation: Situation) -> int:
    return ROOMS.index(situation.turns[-1].feedback.removeprefix("You see ").removesuffix("."))


def perfect(pairs: Sequence[tuple[Situation, Situation]]) -> list[int]:
    return [int(rank(b) > rank(a)) for a, b in pairs]


def test_a_perfect_judge_is_learnt(learner: str) -> None:
    reward = PreferenceReward(learner, perfect, n_pairs=80, max_epochs=60, learning_rate=3e-3, coef=2.0)
    turns = [behind(room) for room in ROOMS]
    assert reward.score(turns).tolist() == [0.0] * 4  # nothing is paid before the first answers
    found = reward.refit()
    assert found["accuracy"] > 0.97 and 40 <= found["n_labels"] <= 80
    scores = reward.score(turns)
    assert (np.diff(scores) > 0).all() and np.abs(scores).max() <= 2.0
    heads = reward.heads([Situation.after(turn) for turn in turns])
    np.testing.assert_allclose(scores, 2 * heads.mean(axis=1))
    np.testing.assert_allclose(reward.disagreement([Situation.after(t) for t in turns]), heads.std(axis=1))
    assert heads.shape == (4, 3) and heads.std(axis=1).max() > 0


@pytest.mark.slow
def test_a_judge_that_errs_in_a_fifth_is_followed_by_four_fifths(learner: str) -> None:
    reward = PreferenceReward(learner, perfect, max_epochs=150, target_accuracy=1.0, batch_size=50, learning_rate=2e-3)
    low, high = Situation.after(behind("hall")), Situation.after(behind("tower"))
    reward.labels = [(low, high, int(i % 5 > 0)) for i in range(50)]
    assert reward.fit()["accuracy"] == pytest.approx(0.8)
    ahead = np.diff(reward.heads([low, high]), axis=0)
    np.testing.assert_allclose(1 / (1 + np.exp(-ahead)), 0.8, atol=0.03)


def test_pairs_are_of_one_task_and_what_a_judge_is_unsure_of_is_dropped(learner: str) -> None:
    asked: list[tuple[Situation, Situation]] = []

    def unsure(pairs: Sequence[tuple[Situation, Situation]]) -> list[int]:
        asked.extend(pairs)
        return [-1] * len(pairs)

    reward = PreferenceReward(learner, unsure, n_pairs=40)
    assert reward.refit() == {"n_labels": 0.0, "accuracy": pytest.approx(float("nan"), nan_ok=True)}
    reward.score([behind(room, task) for room in ROOMS for task in ("one.", "two.")])
    reward.refit()
    assert asked and all(a.task == b.task and a.turns != b.turns for a, b in asked)
    assert not reward.labels and reward.score([behind("hall")]).tolist() == [0.0]
    reward.judge = lambda pairs: [1]
    with pytest.raises(ValueError, match="1 answers"):
        reward.refit()


def test_a_judge_in_words() -> None:
    asked: list[str] = []

    def ask(questions: list[str]) -> list[str]:
        asked.extend(questions)
        return ["1", "Answer: 0.", "-1", "both are nice"]

    pair = Situation.after(behind("hall")), Situation.after(behind("tower"))
    assert text_judge(ask)([pair] * 4) == [1, 0, -1, -1]
    assert "find the tower." in asked[0] and asked[0].index("You see hall.") < asked[0].index("You see tower.")
    assert "> go on" in asked[0]


def test_a_policy_learns_with_it_and_it_is_refitted_between_iterations(learner: str) -> None:
    def by_length(pairs: Sequence[tuple[Situation, Situation]]) -> list[int]:
        return [int(len(b.turns) > len(a.turns)) for a, b in pairs]

    reward = PreferenceReward(learner, by_length, n_pairs=16, max_epochs=2)
    env = make_vec_env(
        "TextIdentity-v0",
        n_envs=2,
        env_kwargs={"n_turns": 2, "render_mode": None},
        wrapper_class=ProcessRewardWrapper,
        wrapper_kwargs={"reward": reward},
    )
    model: Any = GRPO(learner, env, **SMALL_ON_POLICY)
    model.learn(2 * 8 * 2, callback=RefitPreferences(reward))
    assert model.iteration == 2 and reward.n_refits == 2
    assert {y for _, _, y in reward.labels} == {0, 1}


@pytest.mark.parametrize(
    "setting", [{"n_heads": 0}, {"n_pairs": 0}, {"target_accuracy": 2.0}, {"learning_rate": 0.0}, {"max_kept": 1}]
)
def test_settings_out_of_range_are_refused(learner: str, setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        PreferenceReward(learner, perfect, **setting)
