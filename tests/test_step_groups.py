"""Step advantages beside GRPO: groups with equal last states (HGPO), and a process reward model by log-ratio (iStar)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import configure

from agentprm_gym.episodes import Episode, Turn
from algorithms.common.acting.policy import POLICY
from algorithms.common.acting.rollouts import Rollout
from algorithms.common.learning.clipped import Sample
from algorithms.gigpo import HGPO, GiGPO
from algorithms.gigpo.hgpo import hierarchy_advantages
from algorithms.grpo import GRPO, IStar
from algorithms.grpo.istar import IMPLICIT, implicit_loss
from algorithms.testing import check_algorithm
from tests.algorithm_helpers import SMALL_ON_POLICY, make_toy


def sample(seen: str, reward: float, group: int = 0) -> Sample:
    """An episode that saw the letters one after the other."""
    turns = [Turn(feedback=f, admissible_commands=("a", "b"), command="a") for f in seen]
    episode = Episode(game_id="g", split="train", task_type="t", task="t", success=reward > 0, turns=turns)
    return Sample(Rollout(episode, [], 0, [0.0] * (len(seen) - 1) + [reward]), group)


def advantages(algorithm: type, learner: str, samples: Sequence[Sample], **kwargs: Any) -> list[np.ndarray[Any, Any]]:
    model = algorithm(learner, make_toy(), **{**SMALL_ON_POLICY, "normalize": "none", "gamma": 1.0, **kwargs})
    model.advantages(samples)
    return [s.advantages for s in samples]


# ---------------------------------------------------------------------- HGPO
def test_groups_of_equal_last_states_by_hand(learner: str) -> None:
    """The last turn sees z in all three; two of them came by y."""
    samples = [sample("xyz", 1.0), sample("xyz", 0.0), sample("xwz", 1.0)]
    found = advantages(HGPO, learner, samples, n_history=1)
    episode = 1 - 2 / 3
    # k = 0: {1, 0, 1}: 1/3; k = 1: {1, 0}: 1/2 for the first, the third is alone. Weights 1 and 2.
    assert found[0][2] == pytest.approx(episode + (1 / 3 + 2 * 1 / 2) / 3)
    assert found[1][2] == pytest.approx(-2 / 3 + (-2 / 3 + 2 * -1 / 2) / 3)
    assert found[2][2] == pytest.approx(episode + 1 / 3)
    # The second turn of the third saw w alone: no step advantage.
    assert found[2][1] == pytest.approx(episode)


def test_without_history_it_is_gigpo(learner: str) -> None:
    def make() -> list[Sample]:
        return [sample("xyz", 1.0), sample("xwz", 0.0), sample("xyz", 0.0), sample("yz", 1.0, group=1)]

    for one, other in zip(
        advantages(HGPO, learner, make(), n_history=0), advantages(GiGPO, learner, make()), strict=True
    ):
        np.testing.assert_allclose(one, other)
    deep = advantages(HGPO, learner, make(), n_history=2)
    assert any(np.abs(d - o).max() > 1e-3 for d, o in zip(deep, advantages(GiGPO, learner, make()), strict=True))


def test_the_weights_of_a_turn_are_shared_out() -> None:
    returns = np.array([1.0, 0.0, 0.0, 1.0])
    groups = [["a"] * 4, ["b", "b", "c", "d"]]
    equal = hierarchy_advantages(returns, groups, 0.0)
    assert equal.tolist() == pytest.approx([0.5, -0.5, -0.5, 0.5])
    steep = hierarchy_advantages(np.array([1.0, 0.0, 1.0, 1.0]), groups, 2.0)
    assert steep[0] == pytest.approx((0.25 + 4 * 0.5) / 5) and steep[2] == pytest.approx(0.25)


# ---------------------------------------------------------------------- iStar
@pytest.mark.parametrize("how", ["dpo", "bce"])
def test_the_loss_and_its_slopes_are_those_of_autograd(how: str) -> None:
    sums, won, groups = np.array([0.3, -1.0, 2.0, 0.5, 4.0]), np.array([1, 0, 0, 1, 1]), [0, 0, 0, 1, 1]
    beta = 0.7
    s = torch.tensor(sums, requires_grad=True)
    if how == "bce":
        loss = torch.nn.functional.binary_cross_entropy_with_logits(beta * s, torch.tensor(won, dtype=s.dtype))
    else:  # the second game has no lost episode
        loss = -torch.nn.functional.logsigmoid(beta * torch.stack([s[0] - s[1], s[0] - s[2]])).mean()
    loss.backward()
    found, slopes = implicit_loss(sums, won, groups, beta, how)
    assert found == pytest.approx(loss.item())
    np.testing.assert_allclose(slopes, s.grad.numpy(), atol=1e-12)


@pytest.mark.slow
def test_the_process_reward_model_learns_what_was_won(learner: str, tmp_path: Path) -> None:
    """On the toy the right word is told apart by the second policy alone, while the policy stands still."""
    model: Any = IStar(
        learner,
        make_toy(),
        **{**SMALL_ON_POLICY, "n_games": 4, "group_size": 16, "batch_size": 64, "learning_rate": 1e-9},
        implicit_learning_rate=3e-2,
        policy_kwargs={"temperature": 2.0},
    )
    before = model.lm.adapter_state(IMPLICIT)
    start = {k: v.clone() for k, v in model.lm.adapter_state(POLICY).items()}
    gaps: list[float] = []
    plain = model._move

    def move(samples: Sequence[Sample], slopes: Any) -> None:
        ratios = [
            n.sum() - o.sum()
            for n, o in zip(model._log_probs(samples, IMPLICIT), model._log_probs(samples, POLICY), strict=True)
        ]
        won = [s.episode.success for s in samples]
        if any(won) and not all(won):
            gaps.append(
                float(
                    np.mean([r for r, w in zip(ratios, won, strict=True) if w])
                    - np.mean([r for r, w in zip(ratios, won, strict=True) if not w])
                )
            )
        plain(samples, slopes)

    model._move = move
    model.learn(64 * 12)
    assert len(gaps) >= 6
    assert gaps[0] == pytest.approx(0.0, abs=1e-4)  # it begins as the policy
    assert np.mean(gaps[-3:]) > 0.1
    assert any((before[k] != v).any() for k, v in model.lm.adapter_state(IMPLICIT).items())
    assert all(torch.allclose(start[k], v, atol=1e-5) for k, v in model.lm.adapter_state(POLICY).items())
    model.save(tmp_path / "istar.zip")
    again = IStar.load(tmp_path / "istar.zip")
    for key, tensor in model.lm.adapter_state(IMPLICIT).items():
        torch.testing.assert_close(again.lm.adapter_state(IMPLICIT)[key], tensor)


def test_the_process_reward_model_moves_as_often_and_as_fast_as_the_policy(learner: str) -> None:
    model: Any = IStar(learner, make_toy(), batch_size=4, n_epochs=2, learning_rate=2e-3)
    assert model.implicit_updater.optimizer.param_groups[0]["lr"] == 2e-3
    moved: list[list[int]] = []
    model._move = lambda samples, slopes: moved.append([s.group for s in samples])
    model.set_logger(configure(None, []))
    model.advantages([sample("xy", float(k % 2), group=k // 2) for k in range(10)])
    # Whole games, so that won and lost episodes of one meet: four episodes an update, and what is left.
    assert [len(groups) for groups in moved] == [4, 4, 2] * 2
    for once in (moved[:3], moved[3:]):
        assert sorted(group for groups in once for group in groups) == [k // 2 for k in range(10)]


def test_without_steps_it_is_grpo(learner: str) -> None:
    def make() -> list[Sample]:
        return [sample("xy", 1.0), sample("xy", 0.0)]

    plain = advantages(GRPO, learner, make())
    for one, other in zip(advantages(IStar, learner, make(), step_coef=0.0), plain, strict=True):
        np.testing.assert_allclose(one, other)


@pytest.mark.parametrize(
    ("algorithm", "setting", "named"),
    [
        (HGPO, {"n_history": -1}, "n_history"),
        (HGPO, {"history_power": -0.5}, "history_power"),
        (IStar, {"implicit_loss": "dop"}, "did you mean 'dpo'"),
        (IStar, {"implicit_beta": 0.0}, "implicit_beta"),
        (IStar, {"step_coef": -1.0}, "step_coef"),
    ],
)
def test_settings_out_of_range_are_refused(learner: str, algorithm: type, setting: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        algorithm(learner, make_toy(), **setting)


def test_both_have_at_most_25_options() -> None:
    for algorithm in (HGPO, IStar):
        assert len(algorithm.constructor_names()) <= 25


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [HGPO, IStar])
def test_both_keep_the_contract_of_algorithms(learner: str, algorithm: type) -> None:
    check_algorithm(lambda env: algorithm(learner, env, **SMALL_ON_POLICY), "TextIdentity-v0")
