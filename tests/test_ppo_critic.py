"""PPO with a saved process reward model as its critic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecEnv

from algorithms import PPO, AgentPRM
from algorithms.common.acting.actors import Request
from algorithms.ppo.critic import PRMCritic
from tests.algorithm_helpers import make_model, make_toy
from tests.llm_helpers import make_episodes, randomise

SMALL: dict[str, Any] = {"n_games": 8, "batch_size": 8, "n_epochs": 1, "seed": 0}


@pytest.fixture(scope="module")
def toy() -> VecEnv:
    return make_toy()


@pytest.fixture(scope="module", params=["scalar", "log_prob"])
def saved(request: pytest.FixtureRequest, learner: str, toy: VecEnv, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A process reward model with opinions."""
    agent = make_model(AgentPRM, learner, toy, prm={"form": request.param})
    randomise(agent.lm, "prm", scale=0.3, seed=1)
    with torch.no_grad():
        agent.prm.head.weight.normal_(generator=torch.Generator().manual_seed(1))
    path = tmp_path_factory.mktemp("critic") / "agent.zip"
    agent.save(path)
    return path


@pytest.mark.ci
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_state_is_worth_what_the_policy_expects_of_its_next_command(
    temperature: float, saved: Path, learner: str, toy: VecEnv
) -> None:
    """By hand: each command scored alone, weighed by the probability with which an actor draws it."""
    model = PPO(learner, toy, policy_kwargs={"temperature": temperature}, **SMALL)
    randomise(model.lm, "policy")
    critic = PRMCritic.load(saved, model.policy)
    episodes = make_episodes(3)
    got = critic.predict(episodes, 2)
    actor = model.policy.actor(1)
    for episode, values in zip(episodes, got, strict=True):
        assert len(values) == len(episode.turns)
        for t, (turn, value) in enumerate(zip(episode.turns, values, strict=True)):
            actor.start(0, episode.task, episode.turns[:t])
            commands = turn.admissible_commands
            request = Request(0, episode.task, turn.feedback, commands, np.random.default_rng(0))
            p = torch.softmax(actor.log_probs([request])[0] / temperature, 0)
            q = [float(critic.prm.score([(episode.task, episode.turns[: t + 1], [(t, [c])])])[0][0]) for c in commands]
            assert value == pytest.approx(float(p @ torch.tensor(q)), abs=1e-5)


def test_ppo_learns_by_it_and_leaves_it_as_it_is(saved: Path, learner: str, toy: VecEnv, tmp_path: Path) -> None:
    model = PPO(learner, toy, critic=f"prm:{saved}", **SMALL)
    before = {k: v.clone() for k, v in model.get_parameters()["policy"].items()}
    model.learn(16)
    assert set(model.get_parameters()) == {"policy"}, "no value model is made"
    assert any((v != before[k]).any() for k, v in model.get_parameters()["policy"].items())
    agent = AgentPRM.load(saved)
    for key, value in agent.lm.adapter_state("prm").items():
        assert torch.equal(model.lm.adapter_state("prm")[key], value)
    model.save(tmp_path / "ppo")
    loaded = PPO.load(tmp_path / "ppo", toy)
    assert loaded.critic == f"prm:{saved}"
    loaded.learn(8)


def test_a_model_predicts_without_its_critic(learner: str, toy: VecEnv, tmp_path: Path) -> None:
    PPO(learner, toy, critic="prm:gone.zip", **SMALL).save(tmp_path / "ppo")
    loaded = PPO.load(tmp_path / "ppo")
    observations: Any = toy.reset()
    assert len(loaded.predict(observations)[0]) == toy.num_envs
    with pytest.raises(FileNotFoundError, match=r"gone\.zip"):
        PPO.load(tmp_path / "ppo", toy).learn(1)


@pytest.mark.parametrize("kwargs", [{"reason": True}, {"action_mode": "generate"}])
def test_a_policy_that_writes_freely_is_refused(kwargs: dict[str, Any], learner: str, toy: VecEnv) -> None:
    with pytest.raises(ValueError, match=r"sums over the admissible commands.*writes freely"):
        PPO(learner, toy, critic="prm:any.zip", policy_kwargs={"template": "full", **kwargs})
