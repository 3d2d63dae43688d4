"""Numbers of policy gradients that were silently wrong once: each against its definition or an exact expectation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.llm.scoring import Responder, score_turns
from algorithms import GRPO, PPO, REINFORCE, OnlineDPO
from algorithms.common.acting.policy import POLICY
from algorithms.common.acting.rollouts import RolloutTask, collect
from algorithms.common.learning.clipped import Sample
from algorithms.common.learning.surrogate import divergence, entropy
from algorithms.common.learning.value import VALUE
from tests.algorithm_helpers import make_toy
from tests.foreign_env import make_doors
from tests.gradient_helpers import MODES, THINKING, logged, make, save_gpt2
from tests.llm_helpers import make_episodes, randomise


@pytest.fixture(scope="module")
def toy() -> VecEnv:
    return make_toy(n_turns=2)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny GPT-2 with its usual dropout."""
    return save_gpt2(tmp_path_factory.mktemp("gpt2"))


# ---------------------------------------------------------------------- dropout
DROPPING: dict[str, Any] = {"template": "compact", "lora": {"lora_dropout": 0.5}}


@pytest.mark.parametrize("cls", [GRPO, PPO, REINFORCE])
@pytest.mark.parametrize("kwargs", [{"template": "compact"}, DROPPING], ids=["base", "lora_dropout"])
def test_the_first_update_has_ratios_of_one_with_dropout(
    cls: type, kwargs: dict[str, Any], gpt2: str, toy: VecEnv
) -> None:
    (row, *_) = logged(make(cls, gpt2, toy, policy_kwargs=kwargs, n_epochs=1), 8)
    assert row["train/clip_fraction"] == 0
    assert row["train/approx_kl"] == pytest.approx(0, abs=1e-8)


def test_the_divergence_from_the_reference_begins_at_zero_with_dropout(gpt2: str, toy: VecEnv) -> None:
    (row, *_) = logged(make(GRPO, gpt2, toy, policy_kwargs=DROPPING, beta=0.1), 8)
    assert row["train/kl"] == pytest.approx(0, abs=1e-6)


def test_the_first_preference_loss_is_that_of_equal_policies_with_dropout(gpt2: str, toy: VecEnv) -> None:
    model = make(
        OnlineDPO, gpt2, toy, policy_kwargs=DROPPING, n_games=8, group_size=8, batch_size=1000, n_epochs=1, margin=0.0
    )
    (row, *_) = logged(model, 8)
    assert row["train/n_pairs"] > 0
    assert row["train/loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_values_are_the_same_while_they_are_fitted_with_dropout(gpt2: str, toy: VecEnv) -> None:
    model = make(PPO, gpt2, toy, policy_kwargs=DROPPING)
    randomise(model.lm, VALUE)
    with torch.no_grad():
        model.value.head.weight.normal_()
    episodes = make_episodes(3)
    with model.lm.active(VALUE, train=True):
        fitted = [value for row in model.value.values(episodes) for value in row.tolist()]
    predicted = [value for row in model.value.predict(episodes, 3) for value in row]
    assert np.std(predicted) > 1e-3
    np.testing.assert_allclose(fitted, predicted, atol=1e-6)


def test_an_adapters_own_dropout_is_on_where_it_regularises(gpt2: str, toy: VecEnv) -> None:
    model = make(GRPO, gpt2, toy, policy_kwargs=DROPPING)

    def score(**how: bool) -> float:
        with torch.no_grad(), model.lm.active(POLICY, **how):
            return float(score_turns(model.policy.responder, make_episodes(1))[0][0].log_prob)

    assert score() == score(train=True)
    assert score(train=True, dropout=True) != score()
    assert score() == score(train=True)


# ---------------------------------------------------------------------- free text, on all of a vocabulary
def one_token_episodes(responder: Responder) -> list[Episode]:
    """The same turn answered by each token of the vocabulary."""
    whole, prompt = make_episodes(1)[0], responder.lm.prompt
    short = Turn(feedback="You see a mug 1.", admissible_commands=("look",), command="look")
    size = responder.lm.base.get_output_embeddings().weight.shape[0]

    def answered(token: int) -> Turn:
        return replace(short, tokens=prompt.generated([token], stopped=True))

    return [replace(whole, turns=[answered(token)]) for token in range(size)]


class Writer:
    """A policy that writes one token, at a temperature, and its exact distribution."""

    def __init__(self, base: str, env: VecEnv, temperature: float) -> None:
        kwargs = {"template": "compact", "action_mode": "generate", "max_new_tokens": 1, "temperature": temperature}
        self.model = make(GRPO, base, env, policy_kwargs=kwargs)
        self.model.lm.copy_adapter(POLICY, "other")
        randomise(self.model.lm, "other", seed=5)
        self.responder, self.temperature = self.model.policy.responder, temperature
        self.episodes = one_token_episodes(self.responder)

    def scores(self) -> list[Any]:
        rows = score_turns(self.responder, self.episodes, temperature=self.temperature, entropies=True)
        return [row[0] for row in rows]

    def gradient(self, value: torch.Tensor) -> torch.Tensor:
        return torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(value, self.model.lm.adapter_parameters(POLICY), retain_graph=True)
            ]
        )


@pytest.fixture(params=[1.0, 0.5])
def writer(request: pytest.FixtureRequest, gpt2: str, toy: VecEnv) -> Writer:
    return Writer(gpt2, toy, request.param)


def test_the_entropy_of_free_text_has_the_true_value_and_gradient(writer: Writer) -> None:
    with writer.model.lm.active(POLICY, train=True):
        scores = writer.scores()
        log_probs = torch.stack([score.free[0] for score in scores])  # (V,)
        p = log_probs.exp()
        assert p.sum().item() == pytest.approx(1, abs=1e-4)
        true = -(p * log_probs).sum()
        estimate = (p.detach() * torch.stack([entropy(score) for score in scores])).sum()
        assert estimate.item() == pytest.approx(true.item(), rel=1e-4)
        wanted, got = writer.gradient(true), writer.gradient(estimate)
    assert float(wanted.norm()) > 1e-4
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3 * float(wanted.norm()))


def test_the_divergence_of_free_text_has_the_true_value_and_gradient(writer: Writer) -> None:
    with torch.no_grad(), writer.model.lm.active("other"):
        others = writer.scores()
    with writer.model.lm.active(POLICY, train=True):
        scores = writer.scores()
        log_probs = torch.stack([score.free[0] for score in scores])  # (V,)
        reference = torch.stack([score.free[0] for score in others])
        true = (log_probs.exp() * (log_probs - reference)).sum()
        each = torch.stack([divergence(a, b) for a, b in zip(scores, others, strict=True)])
        assert (each >= 0).all()
        estimate = (log_probs.exp().detach() * each).sum()
        assert estimate.item() == pytest.approx(true.item(), rel=1e-2) and true.item() > 1e-5
        wanted, got = writer.gradient(true), writer.gradient(estimate)
    torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-2 * float(wanted.norm()))


def test_entropy_of_reasons_counts_all_ways_to_end_as_one(learner: str, toy: VecEnv) -> None:
    model = make(GRPO, learner, toy, policy_kwargs={**THINKING, "temperature": 0.7})
    rollouts = collect(model.policy.actor(8), toy, [RolloutTask({"game": i}, (i,)) for i in range(8)]) or []
    with torch.no_grad(), model.lm.active(POLICY):
        rows = score_turns(model.policy.responder, [r.episode for r in rollouts], temperature=0.7, entropies=True)
    scores = [score for row in rows for score in row]
    assert all(score.free_entropy.shape == score.free.shape for score in scores)
    n_choices = int((~model.policy.responder.stop_tokens()).sum()) + 1
    assert all(0 <= float(h) <= math.log(n_choices) + 1e-5 for score in scores for h in score.free_entropy)


@pytest.mark.parametrize("mode", ["generate", "constrained with reasons"])
def test_an_entropy_bonus_moves_free_text(mode: str, learner: str, toy: VecEnv) -> None:
    """No turn is better than another: what moves the policy is its entropy alone, upwards."""
    kwargs = {**MODES[mode]}
    model = make(GRPO, learner, make_doors(8, n_turns=1, prize=1.0), policy_kwargs=kwargs, ent_coef=1.0, level="token")
    rows = logged(model, 6 * 8)
    entropies = [row["train/entropy"] for row in rows]
    assert rows[0]["rollout/share_without_signal"] == 1
    assert entropies[-1] > entropies[0]


def test_a_reference_pulls_where_no_episode_was_better(learner: str) -> None:
    """All rewards equal: the policy walks back to the reference that training began with."""
    model = make(GRPO, learner, make_doors(8, n_turns=1, prize=1.0), beta=1.0, n_games=8)
    model.lm.copy_adapter(POLICY, "reference")
    randomise(model.lm, POLICY, scale=0.2, seed=8)
    kls = [row["train/kl"] for row in logged(model, 12 * 32)]
    assert kls[0] > 1e-3
    assert kls[-1] < 0.7 * kls[0], kls


# ---------------------------------------------------------------------- what was cut off
class ByFeedback:
    """A critic that knows what the doors are worth."""

    def predict(self, episodes: Sequence[Episode], micro_batch_size: int) -> list[list[float]]:
        worth = {"You did look.": 1.0, "You did inventory.": 0.0}
        return [[worth.get(turn.feedback, 0.5) for turn in episode.turns] for episode in episodes]


class Watched(PPO):
    """Keeps its samples."""

    def advantages(self, samples: Sequence[Sample]) -> None:
        super().advantages(samples)
        self.samples = list(samples)


def test_a_cut_episode_is_worth_what_its_last_observation_is(gpt2: str) -> None:
    env = make_doors(limit=1, n_turns=5, prize=0.0)
    model = make(Watched, gpt2, env, n_games=16, group_size=1, gamma=0.98, normalize_advantage=False)
    model.state_values = ByFeedback()
    model.learn(1)
    seen = {s.episode.turns[0].command: s.advantages.tolist() for s in model.samples if s.rollout.cut_off}
    assert set(seen) == {"look", "inventory"}, "both were tried"
    assert seen["look"] == pytest.approx([0.98 * 1 - 0.5])
    assert seen["inventory"] == pytest.approx([0.98 * 0 - 0.5])


def test_an_episode_that_ends_is_worth_nothing_more(learner: str) -> None:
    model = make(Watched, learner, make_doors(n_turns=1, prize=0.25), n_games=8, normalize_advantage=False)
    model.state_values = ByFeedback()
    model.learn(1)
    assert {s.advantages[0] for s in model.samples} == {0.25 - 0.5}


@pytest.mark.parametrize("limit", [2, None], ids=["time limit", "max_turns"])
def test_rollouts_hold_the_last_observation(limit: int | None, learner: str) -> None:
    model = make(GRPO, learner, make_doors(limit=limit, n_turns=9))
    tasks = [RolloutTask({"game": i}, (i,), max_turns=None if limit else 2) for i in range(5)]
    for rollout in collect(model.policy.actor(4), make_doors(limit=limit, n_turns=9), tasks) or []:
        assert rollout.episode.truncated and len(rollout.episode.turns) == 2
        last = rollout.episode.turns[-1]
        assert rollout.final_observation is not None
        assert rollout.final_observation["feedback"] == f"You did {last.command}."


def test_the_value_model_reads_the_last_observation(learner: str, tmp_path: Path) -> None:
    """With lambda 1 and no rewards, the advantage is gamma times the value after the last turn less the value before."""
    env = make_doors(limit=1, n_turns=5, prize=0.0)
    model = make(Watched, learner, env, n_games=8, group_size=1, gamma=0.5, gae_lambda=1.0, normalize_advantage=False)
    randomise(model.lm, VALUE, scale=0.3)
    with torch.no_grad():
        model.value.head.weight.normal_()
    values = {}
    for command in ("look", "inventory"):
        for door in ("look", "inventory"):
            turns = [
                Turn(feedback=f"You see {door}.", admissible_commands=("look", "inventory"), command=command),
                Turn(feedback=f"You did {command}.", admissible_commands=("look", "inventory"), command="look"),
            ]
            episode = replace(make_episodes(1)[0], task="open the door.", turns=turns)
            values[door, command] = model.value.predict([episode], 1)[0]
    model.learn(1)
    assert len({tuple(v) for v in values.values()}) == 4
    for sample in model.samples:
        turn = sample.episode.turns[0]
        door = turn.feedback.removeprefix("You see ").removesuffix(".")
        first, second = values[door, turn.command]
        assert sample.advantages[0] == pytest.approx(0.5 * second - first, abs=1e-5)
