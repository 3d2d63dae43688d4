"""Training that diverges: it stops at the first number that is not finite, and keeps what was good."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.episodes import read_episodes
from agentprm_gym.llm.peft_folder import WEIGHTS, read_adapter
from agentprm_gym.llm.saving import read_save, write_save
from algorithms import GRPO, RFT, SFT, AgentPRM, InversePRM, OnlineDPO
from algorithms.common.acting.policy import LLMPolicy
from algorithms.common.learning.optim import Updater
from algorithms.common.shell.checkpoints import read_checkpoint
from algorithms.common.shell.errors import KEPT, DivergedError
from tests.algorithm_helpers import echo_demonstrations, make_model, make_toy
from tests.cli_helpers import Cli
from tests.test_resume import LONG, everything

SIZES = [math.nan, math.inf]


@pytest.fixture(scope="module")
def toy() -> VecEnv:
    return make_toy()


def is_finite(model: Any) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in everything(model).values())


# ---------------------------------------------------------------------- one update
@pytest.mark.parametrize("size", SIZES)
def test_no_step_is_taken_on_gradients_or_a_loss_that_are_not_finite(size: float) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    updater, (episode, *_) = Updater(lambda: [weight], 0.1, 1.0), echo_demonstrations()
    weight.grad = torch.tensor([1.0, size, 1.0])
    with pytest.raises(DivergedError, match=r"norm of the gradients is (nan|inf)") as caught:
        updater.step([episode])
    assert torch.equal(weight, torch.ones(3)) and weight.grad is None and list(caught.value.episodes) == [episode]
    weight.grad = torch.ones(3)
    with pytest.raises(DivergedError, match=f"loss is {size}"):
        updater.step(loss=size)
    weight.grad = torch.ones(3)
    assert updater.step([episode], 1.0) == pytest.approx(math.sqrt(3)) and not torch.equal(weight, torch.ones(3))


# ---------------------------------------------------------------------- a run
@pytest.mark.parametrize(
    ("algorithm", "settings"), [(GRPO, {"learning_rate": 1e30}), (SFT, {"learning_rate": 1e30})], ids=["GRPO", "SFT"]
)
def test_a_run_that_diverges_stops_and_leaves_the_last_good_checkpoint(
    algorithm: type, settings: dict[str, Any], learner: str, toy: VecEnv, tmp_path: Path
) -> None:
    model = make_model(algorithm, learner, toy, **settings)
    model.checkpoint_dir = tmp_path
    model.write_checkpoint()  # such a rate may not leave a good iteration
    with pytest.raises(
        DivergedError, match=r"diverged in iteration \d+, after \d+ updates: .*lower learning_rate"
    ) as caught:
        model.learn(2000)  # an end, where it does not diverge
    assert f"in iteration {model.iteration + 1}," in str(caught.value) and model.iteration < 10
    saved, _ = read_checkpoint(tmp_path)  # refuses weights that are not finite
    assert saved.manifest["counters"]["iteration"] == model.iteration
    assert str(tmp_path / KEPT) in str(caught.value)
    assert list(read_episodes(tmp_path / KEPT)) and not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("algorithm", [AgentPRM, InversePRM, OnlineDPO, RFT], ids=lambda a: a.__name__)
def test_a_weight_that_is_not_finite_ends_every_kind_of_run(
    algorithm: type, learner: str, toy: VecEnv, tmp_path: Path
) -> None:
    model = make_model(algorithm, learner, toy)
    model.checkpoint_dir = tmp_path
    model.write_checkpoint()
    before = (tmp_path / "resume" / "state.zip").read_bytes()
    with torch.no_grad():
        model.lm.adapter_parameters("policy")[0].fill_(math.nan)
    with pytest.raises(DivergedError, match="diverged in iteration 1"):
        model.learn(LONG)
    assert (tmp_path / "resume" / "state.zip").read_bytes() == before


def test_weights_that_are_finite_and_too_large_are_found_before_they_are_kept(
    learner: str, toy: VecEnv, tmp_path: Path
) -> None:
    model = make_model(SFT, learner, toy)
    model.learn(1)
    with torch.no_grad():
        for parameter in model.lm.adapter_parameters("policy"):
            parameter.fill_(1e30)
    assert is_finite(model)
    with pytest.raises(DivergedError, match="log-probabilities are not numbers"):
        model.check_learnt()


def test_a_good_run_is_not_stopped_and_its_weights_are_finite(learner: str, toy: VecEnv, tmp_path: Path) -> None:
    model = make_model(GRPO, learner, toy)
    model.checkpoint_dir = tmp_path
    assert is_finite(model.learn(40)) and not (tmp_path / KEPT).exists()


def test_the_command_line_says_it_with_status_1(cli: Cli, learner: str) -> None:
    args = (
        "train",
        "--algo",
        "grpo",
        "--policy",
        learner,
        "--env",
        "TextIdentity-v0",
        "--timesteps",
        5000,
        "--n-envs",
        4,
    )
    said = cli(*args, "--set", "learning_rate=1e30", "n_games=2", "group_size=4", "--out", "run")
    assert said.status == 1 and "GRPO diverged in iteration" in said.err and "Traceback" not in said.err
    assert not Path("run/model.zip").exists() and not Path("run/interrupted.zip").exists()


# ---------------------------------------------------------------------- saves and settings
@pytest.mark.parametrize("size", SIZES)
def test_weights_that_are_not_finite_are_refused_when_they_are_loaded(
    size: float, learner: str, toy: VecEnv, tmp_path: Path
) -> None:
    model = make_model(AgentPRM, learner, toy)
    model.save(tmp_path / "good.zip")
    for part in ("adapters", "heads"):
        saved = read_save(tmp_path / "good.zip")
        group, tensors = next(iter(getattr(saved, part).items()))
        name = next(iter(tensors))
        tensors[name].view(-1)[0] = size
        write_save(tmp_path / "bad.zip", saved)
        with pytest.raises(ValueError, match=rf"bad\.zip: expected weights that are numbers, .* {group}/{name}"):
            AgentPRM.load(tmp_path / "bad.zip", toy)
    model.lm.export_adapter("policy", tmp_path / "adapter")
    tensors = dict(read_adapter(tmp_path / "adapter").tensors)
    tensors[next(iter(tensors))].view(-1)[0] = size
    save_file(tensors, tmp_path / "adapter" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="expected weights that are numbers"):
        read_adapter(tmp_path / "adapter")


@pytest.mark.parametrize("size", SIZES)
def test_settings_are_finite(size: float, learner: str, toy: VecEnv) -> None:
    for name in ("max_grad_norm", "beta", "learning_rate", "clip_range_high", "target_kl", "ent_coef"):
        with pytest.raises(ValueError, match=f"{name} must be a finite number"):
            make_model(GRPO, learner, toy, **{name: size})
    for group, option in (("improve", "beta"), ("prm", "learning_rate")):
        with pytest.raises(ValueError, match=rf"{group}\.{option} must be a finite number"):
            make_model(AgentPRM, learner, toy, **{group: {option: size}})
    for kwargs in ({"temperature": size}, {"cache_tokens": size}, {"lora": {"lora_alpha": size}}):
        with pytest.raises(ValueError, match=r"must be a (finite|whole) number"):
            LLMPolicy(toy.observation_space, toy.action_space, model=learner, **kwargs)
