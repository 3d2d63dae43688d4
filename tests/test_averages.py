"""The mean of the iterations' weights: by hand, and who sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from agentprm_gym.llm.saving import read_save
from agentprm_gym.prm.model import PRM
from algorithms import AgentPRM
from algorithms.common.acting.policy import POLICY
from algorithms.common.prm.averages import Averages, WeightMean
from tests.algorithm_helpers import SMALL_AGENT_PRM, make_model, make_toy, merged

Tensors = dict[str, torch.Tensor]
#: Every pair of samples is learnt from, so that a random policy moves, too; four turns an iteration.
MOVING: dict[str, Any] = {
    "n_iterations": None,
    "n_validation_games": 0,
    "rollout": {"n_branch_states": 0},
    "improve": {"prior_visits": None, "margin": 0.0},
}


def of(value: float, dtype: torch.dtype = torch.float32) -> Tensors:
    return {"w": torch.full((2,), value, dtype=dtype)}


class TestWeightMean:
    def test_an_iteration_counts_half_of_the_next(self) -> None:
        mean = WeightMean(0.5)
        assert mean.enter(of(7.0), 0)["w"].tolist() == [7.0, 7.0]
        assert mean.enter(of(1.0), 1)["w"].tolist() == pytest.approx([(0.5 * 7 + 1) / 1.5] * 2)
        assert mean.enter(of(3.0), 2)["w"].tolist() == pytest.approx([(0.25 * 7 + 0.5 * 1 + 3) / 1.75] * 2)

    def test_without_decay_it_is_the_last(self) -> None:
        mean = WeightMean(0.0)
        mean.enter(of(7.0), 0)
        assert mean.enter(of(1.0), 1)["w"].tolist() == [1.0, 1.0]

    def test_what_is_entered_again_takes_the_place_of_the_last(self) -> None:
        once, twice = WeightMean(0.7), WeightMean(0.7)
        for iteration, value in enumerate((2.0, 5.0)):
            once.enter(of(value), iteration)
        twice.enter(of(9.0), 0)
        twice.enter(of(2.0), 0)
        twice.enter(of(-4.0), 1)
        assert torch.equal(twice.enter(of(5.0), 1)["w"], once.enter(of(5.0), 1)["w"])
        assert twice.n == 2

    def test_half_precision_is_averaged_in_full(self) -> None:
        """1 + 1/512 is no bfloat16: a mean that is kept in it would never move."""
        mean = WeightMean(0.99)
        for iteration in range(200):
            found = mean.enter(of(1.0, torch.bfloat16), iteration)
        for iteration in range(200, 400):
            found = mean.enter(of(1.0078125, torch.bfloat16), iteration)
        assert found["w"].dtype == torch.bfloat16
        assert mean.mean is not None and 1.004 < mean.mean["w"][0].item() < 1.0078125

    def test_a_checkpoint_holds_it(self) -> None:
        mean, again = WeightMean(0.7), WeightMean(0.7)
        for iteration, value in enumerate((2.0, 5.0)):
            mean.enter(of(value), iteration)
        again.restore(mean.state())
        assert torch.equal(mean.enter(of(1.0), 1)["w"], again.enter(of(1.0), 1)["w"])


def learnt(
    learner: str, monkeypatch: pytest.MonkeyPatch, run: Path, **settings: Any
) -> tuple[Any, dict[str, list[Tensors]]]:
    """A small AgentPRM after its iterations, and the weights that entered its means, and those that play began with."""
    seen: dict[str, list[Tensors]] = {"policy": [], "prm": [], "plays": []}
    enter_policy, enter_prm, go_on = Averages.enter_policy, Averages.enter_prm, Averages.go_on

    def policy(self: Averages) -> None:
        seen["policy"].append(model.lm.adapter_state(POLICY))
        enter_policy(self)

    def prm(self: Averages) -> None:
        seen["prm"].append({**model.lm.adapter_state(PRM), **model.prm.head_state()})
        enter_prm(self)

    def going_on(self: Averages) -> None:
        go_on(self)
        seen["plays"].append(model.lm.adapter_state(POLICY))

    monkeypatch.setattr(Averages, "enter_policy", policy)
    monkeypatch.setattr(Averages, "enter_prm", prm)
    monkeypatch.setattr(Averages, "go_on", going_on)
    model = AgentPRM(learner, make_toy(), **merged(SMALL_AGENT_PRM, MOVING, settings))
    model.checkpoint_dir = run
    model.learn(9)  # three iterations of four turns
    assert model.iteration == 3
    return model, seen


def by_hand(weights: list[Tensors], decay: float) -> Tensors:
    shares = [decay ** (len(weights) - 1 - k) for k in range(len(weights))]
    return {
        name: sum((share * w[name] for share, w in zip(shares, weights, strict=True)), torch.zeros(())) / sum(shares)
        for name in weights[0]
    }


def assert_near(found: Tensors, expected: Tensors) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_saves_hold_the_means_and_play_goes_on_with_the_last(
    learner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, seen = learnt(learner, monkeypatch, tmp_path, ema_decay=0.5)
    for k in (1, 2, 3):
        saved = read_save(tmp_path / "iterations" / f"{k}.zip")
        assert_near(saved.adapters[POLICY], by_hand(seen["policy"][:k], 0.5))
        assert_near({**saved.adapters[PRM], **saved.heads[PRM]}, by_hand(seen["prm"][:k], 0.5))
    assert any(not torch.allclose(saved.adapters[POLICY][n], w) for n, w in seen["policy"][-1].items())
    for played, improved in zip(seen["plays"][1:], seen["policy"], strict=False):
        assert all(torch.equal(played[name], improved[name]) for name in improved)


def test_callbacks_see_the_means(learner: str, tmp_path: Path) -> None:
    """Such as one that evaluates: what it measures is what would be saved."""
    seen: list[Tensors] = []

    class Looking(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            seen.append(model.lm.adapter_state(POLICY))

    model = AgentPRM(learner, make_toy(), **merged(SMALL_AGENT_PRM, MOVING))
    model.checkpoint_dir = tmp_path
    model.learn(9, callback=Looking())
    for k in (1, 2):
        saved = read_save(tmp_path / "iterations" / f"{k}.zip").adapters[POLICY]
        assert all(torch.equal(seen[k][name], value) for name, value in saved.items())


def test_without_decay_saves_hold_the_last(learner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = learnt(learner, monkeypatch, tmp_path, ema_decay=0.0)
    assert all(torch.equal(model.lm.adapter_state(POLICY)[n], w) for n, w in seen["policy"][-1].items())
    assert all(torch.equal(model.lm.adapter_state(PRM)[n], seen["prm"][-1][n]) for n in model.lm.adapter_state(PRM))


def test_a_fresh_prm_is_not_averaged(learner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its factors are random at first, each iteration others; the policy is averaged all the same."""
    model, seen = learnt(learner, monkeypatch, tmp_path, prm={"init": "base"})
    assert all(torch.equal(model.lm.adapter_state(PRM)[n], seen["prm"][-1][n]) for n in model.lm.adapter_state(PRM))
    assert_near(model.lm.adapter_state(POLICY), by_hand(seen["policy"], 0.7))


def test_another_learn_begins_anew_at_the_kept_policy(
    learner: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, seen = learnt(learner, monkeypatch, tmp_path)
    kept = model.lm.adapter_state(POLICY)
    model.learn(1)
    assert all(torch.equal(seen["plays"][3][name], value) for name, value in kept.items())


def test_the_papers_recipe_averages_nothing(learner: str) -> None:
    assert AgentPRM.paper(learner, make_toy()).ema_decay == 0.0


@pytest.mark.parametrize("value", [1.0, -0.1, float("nan"), "x"])
def test_a_decay_out_of_range_is_refused(learner: str, value: Any) -> None:
    with pytest.raises(ValueError, match="ema_decay"):
        make_model(AgentPRM, learner, make_toy(), ema_decay=value)
