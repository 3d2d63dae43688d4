"""What algorithms promise beyond the contract of `algorithms.testing`, which `test_contract.py` holds them to; SFT's own."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load as load_safetensors
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

import algorithms
from agentprm_gym.llm.model import AdapterMismatchError
from agentprm_gym.llm.saving import SaveFormatError
from algorithms import SFT, AgentPRM
from tests.algorithm_helpers import (
    ALGORITHMS,
    echo_demonstrations,
    household_demonstrations,
    make_alfworld,
    make_model,
    make_toy,
)
from tests.llm_helpers import randomise

#: One without rollouts, and one with more adapters and heads than the policy's.
CHOSEN = [SFT, AgentPRM]
every_algorithm = pytest.mark.parametrize("each", [cls for cls, _ in ALGORITHMS.values()], ids=list(ALGORITHMS))


@pytest.fixture(scope="module")
def toy() -> VecEnv:
    return make_toy()


@pytest.fixture(scope="module")
def household() -> VecEnv:
    return make_alfworld()


@pytest.fixture(scope="module", params=CHOSEN, ids=lambda a: a.__name__)
def algorithm(request: pytest.FixtureRequest) -> type:
    return request.param


@pytest.fixture(scope="module")
def trained(algorithm: type, learner: str, toy: VecEnv) -> Any:
    """A model of each algorithm that has learned a little."""
    return make_model(algorithm, learner, toy).learn(8)


def observe(env: VecEnv, *games: int) -> dict[str, np.ndarray]:
    """First observations of games, as a batch."""
    rows = [env.env_method("reset", options={"game": game}, indices=[0])[0][0] for game in games]
    return {key: np.array([row[key] for row in rows], dtype=object) for key in rows[0]}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two results of get_parameters are equal, bit for bit."""
    assert {k: set(v) for k, v in a.items()} == {k: set(v) for k, v in b.items()}
    return all(torch.equal(a[group][key], b[group][key]) for group in a for key in a[group])


# ---------------------------------------------------------------------- learning
def test_learning_changes_the_policy(learner: str, household: VecEnv) -> None:
    model = make_model(SFT, learner, household, demonstrations=household_demonstrations())
    before = model.get_parameters()
    assert model.learn(50).num_timesteps >= 50
    assert not same(model.get_parameters(), before)


@every_algorithm
def test_learning_without_an_environment_says_what_to_do(each: type, learner: str) -> None:
    # Without spaces there is no policy either: a model without an environment comes from load().
    with pytest.raises(ValueError, match="environment"):
        make_model(each, learner, None).learn(8)


@every_algorithm
@pytest.mark.parametrize("rate", [0, -1e-3, float("nan"), "fast", lambda progress: progress])
def test_a_learning_rate_is_a_number_above_zero(each: type, learner: str, toy: VecEnv, rate: Any) -> None:
    with pytest.raises(ValueError, match="learning_rate"):
        make_model(each, learner, toy, learning_rate=rate)


def test_algorithms_are_found_by_name() -> None:
    assert set(algorithms.__all__) <= set(dir(algorithms))
    with pytest.raises(AttributeError, match="AgentPRM, GRPO"):
        _ = algorithms.DQN


@every_algorithm
def test_another_seed_gives_another_result(each: type, learner: str) -> None:
    def train(seed: int) -> dict[str, Any]:
        return make_model(each, learner, make_toy(), seed=seed).learn(8).get_parameters()

    assert not same(train(3), train(4))


# ---------------------------------------------------------------------- acting
def test_one_and_many_observations_give_the_same_commands(trained: Any, household: VecEnv) -> None:
    batch = observe(household, 0, 1, 2)
    commands, states = trained.predict(batch, deterministic=True)
    assert commands.shape == (3,) and len(states) == 3
    for i in range(3):
        alone = {key: column[i] for key, column in batch.items()}
        command, state = trained.predict(alone, deterministic=True)
        assert isinstance(command, str) and command == commands[i]
        assert command in alone["admissible_commands"].split("\n")
        assert [turn.command for turn in state[0]] == [command]


def test_the_state_holds_the_transcript_until_an_episode_starts(learner: str, household: VecEnv) -> None:
    model = make_model(SFT, learner, household)
    randomise(model.lm, "policy", scale=0.3)
    first, other = observe(household, 0, 1), observe(household, 2, 2)
    _, state = model.predict(first, deterministic=True)
    _, state = model.predict(other, state, np.array([False, True]), deterministic=True)
    assert [len(transcript) for transcript in state] == [2, 1]
    assert state[0][0].feedback == first["feedback"][0]
    # What was before matters to the first, and not to the second.
    fresh = model.policy.actor(1)

    def log_probs(transcript: list[Any]) -> torch.Tensor:
        from algorithms.common.acting.actors import Request

        *history, turn = transcript
        fresh.start(0, str(other["task"][0]), history)
        commands = list(turn.admissible_commands)
        request = Request(0, str(other["task"][0]), turn.feedback, commands, np.random.default_rng(0))
        return fresh.log_probs([request])[0]

    assert (log_probs(state[0]) - log_probs(state[1])).abs().max() > 1e-3
    assert torch.allclose(log_probs(state[1]), log_probs(state[0][1:]))


def test_sampling_follows_the_seed(trained: Any, household: VecEnv) -> None:
    batch = observe(household, *range(8))

    def draw() -> list[str]:
        trained.set_random_seed(5)
        return list(trained.predict(batch)[0])

    assert draw() == draw()
    assert len({tuple(trained.predict(batch)[0]) for _ in range(5)}) > 1


def test_what_reset_returns_is_refused_with_advice(trained: Any) -> None:
    with pytest.raises(ValueError, match=r"\(observation, info\)"):
        trained.predict(({"task": "t", "feedback": "f", "admissible_commands": "c"}, {}))
    with pytest.raises(ValueError, match="keys"):
        trained.predict({"task": "t"})


# ---------------------------------------------------------------------- saving


def test_a_save_holds_adapters_and_heads_and_neither_pickle_nor_base(
    trained: Any, learner: str, tmp_path: Path
) -> None:
    trained.save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    parts = ["policy"] if type(trained) is SFT else ["policy", "prm"]
    expected = {"agentprm.json"}
    expected |= {f"adapters/{p}/{f}" for p in parts for f in ("adapter_config.json", "adapter_model.safetensors")}
    expected |= {"heads/prm.safetensors"} if "prm" in parts else set()
    assert set(members) == expected
    for name, data in members.items():
        if name.endswith(".json"):
            json.loads(data)
        else:
            tensors = load_safetensors(data)
            assert tensors and all(("lora_" in key) == name.startswith("adapters/") for key in tensors)
    base_bytes = (Path(learner) / "model.safetensors").stat().st_size
    assert sum(map(len, members.values())) < 0.6 * base_bytes


def test_what_is_no_save_is_refused(algorithm: type, trained: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.zip"):
        algorithm.load(tmp_path / "nowhere")
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(SaveFormatError, match=r"text\.zip"):
        algorithm.load(tmp_path / "text.zip")
    trained.save(tmp_path / "model")
    (other,) = set(CHOSEN) - {algorithm}
    with pytest.raises(ValueError, match=rf"saved by {algorithm.__name__}"):
        other.load(tmp_path / "model")


def test_adapters_of_another_base_are_refused_by_name(
    algorithm: type, trained: Any, learner: str, stranger: str, toy: VecEnv, tmp_path: Path
) -> None:
    trained.save(tmp_path / "model")
    before = trained.get_parameters()
    foreign = make_model(algorithm, stranger, toy)
    foreign.save(tmp_path / "foreign")
    with pytest.raises(AdapterMismatchError) as caught:
        trained.set_parameters(tmp_path / "foreign.zip")
    assert stranger in str(caught.value) and learner in str(caught.value)
    assert same(trained.get_parameters(), before)
    with pytest.raises(AdapterMismatchError, match="base model"):
        make_model(algorithm, str(tmp_path / "model.zip"), toy, policy_kwargs={"model": stranger})


def test_training_starts_from_the_policy_of_another_algorithms_save(learner: str, toy: VecEnv, tmp_path: Path) -> None:
    sft = make_model(SFT, learner, toy, policy_kwargs={"lora": {"r": 4}}).learn(8)
    sft.save(tmp_path / "sft")
    agent = make_model(AgentPRM, str(tmp_path / "sft.zip"), toy)
    assert same({"policy": agent.get_parameters()["policy"]}, sft.get_parameters())


def test_an_environment_can_be_exchanged_for_an_id(learner: str, household: VecEnv) -> None:
    model = make_model(SFT, learner, household)
    model.set_env("TextIdentity-v0")
    assert model.get_env().num_envs == 64
    with pytest.raises(ValueError, match="spaces"):
        model.set_env(gym.make("CartPole-v1"))


# ---------------------------------------------------------------------- Stable-Baselines3's own tools
def test_tensorboard_gets_the_keys_that_people_look_for(algorithm: type, learner: str, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = make_model(algorithm, learner, make_toy(), tensorboard_log=str(tmp_path))
    model.learn(8)
    events = EventAccumulator(str(tmp_path / f"{algorithm.__name__}_1"))
    events.Reload()
    keys = set(events.Tags()["scalars"])
    assert {"train/loss", "time/fps"} <= keys
    if algorithm is AgentPRM:
        assert {"rollout/success_rate", "rollout/ep_rew_mean", "prm/loss", "eval/validation_success_rate"} <= keys


# ---------------------------------------------------------------------- SFT's own
def test_sft_without_demonstrations_says_where_to_get_some(learner: str, toy: VecEnv) -> None:
    with pytest.raises(ValueError, match="agentprm demos"):
        SFT(learner, toy).learn(8)


@pytest.mark.parametrize("loss", ["constrained", "tokens"])
def test_sft_solves_the_toy_in_seconds(learner: str, toy: VecEnv, loss: str) -> None:
    model = make_model(SFT, learner, toy, loss=loss)
    assert evaluate_policy(model, toy, n_eval_episodes=16)[0] < 0.6
    # The loss over tokens has all words of the vocabulary to tell apart.
    model.learn(8 * (60 if loss == "constrained" else 120))
    assert evaluate_policy(model, toy, n_eval_episodes=16) == (1.0, 0.0)


def test_sft_learns_what_depends_on_the_transcript(learner: str) -> None:
    toy = make_toy(n_turns=3)
    model = make_model(SFT, learner, toy, demonstrations=echo_demonstrations(n_turns=3)).learn(24 * 60)
    assert evaluate_policy(model, toy, n_eval_episodes=8)[0] == pytest.approx(1.0)


@pytest.mark.parametrize("loss", ["constrained", "tokens"])
def test_small_micro_batches_give_the_update_of_the_whole_batch(learner: str, toy: VecEnv, loss: str) -> None:
    demos = household_demonstrations(8)

    def update(micro_batch_size: int) -> dict[str, torch.Tensor]:
        model = SFT(
            learner, toy, demonstrations=demos, batch_size=8, micro_batch_size=micro_batch_size, seed=0, loss=loss
        )
        # Adam turns the smallest differences of tiny gradients into steps of full size.
        model.updater.optimizer = torch.optim.SGD(model.lm.adapter_parameters("policy"), lr=1.0)
        return model.learn(1).get_parameters()["policy"]

    whole, parts = update(8), update(2)
    assert max(float(v.abs().max()) for k, v in whole.items() if "lora_B" in k) > 0
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-4, atol=1e-8)


def test_sft_refuses_unknown_losses_and_empty_batches(learner: str, toy: VecEnv) -> None:
    with pytest.raises(ValueError, match="constrained"):
        SFT(learner, toy, loss="hinge")
    with pytest.raises(ValueError, match="batch"):
        SFT(learner, toy, batch_size=0)
