"""Policy gradient algorithms: advantages by hand, invariances of every loss, and that each of them learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.llm.scoring import score_turns
from algorithms import GRPO, PPO, REINFORCE, RFT, RLOO, GiGPO, OnlineDPO
from algorithms.common.acting.policy import POLICY
from algorithms.common.acting.rollouts import Rollout
from algorithms.common.learning.advantages import discounted_returns, gae, group_advantages, leave_one_out
from algorithms.common.learning.batches import pieces
from algorithms.common.learning.clipped import Sample
from algorithms.common.learning.on_policy import OnPolicyLLMAlgorithm
from algorithms.common.learning.surrogate import divergence, surrogate
from algorithms.common.learning.value import VALUE
from algorithms.common.measure.evaluation import make_eval_env
from tests.llm_helpers import make_episodes, randomise

CLASSES = (GRPO, RLOO, REINFORCE, GiGPO, PPO, RFT)


@pytest.fixture(scope="module")
def toy() -> VecEnv:
    return make_eval_env("TextIdentity-v0", n_envs=8)


class TestAdvantages:
    def test_gae_by_hand(self) -> None:
        # delta = [0 + .5 * .4 - .2, 1 + 0 - .4] = [0, .6]; A = [0 + .5 * .8 * .6, .6]
        np.testing.assert_allclose(gae([0.0, 1.0], [0.2, 0.4], 0.5, 0.8), [0.24, 0.6])
        # Cut off: what might have come counts.
        np.testing.assert_allclose(gae([0.0], [0.2], 0.5, 0.8, last_value=1.0), [0.3])

    def test_gae_with_lambda_one_is_the_return_less_the_value(self) -> None:
        rewards, values = [0.1, 0.0, 1.0], [0.3, 0.5, 0.2]
        expected = discounted_returns(rewards, 0.9, 0.7) - np.array(values)
        np.testing.assert_allclose(gae(rewards, values, 0.9, 1.0, 0.7), expected)

    @pytest.mark.parametrize("normalize", ["group", "batch", "none"])
    def test_group_advantages_sum_to_zero_within_each_group(self, normalize: str) -> None:
        returns, groups = [1.0, 0.0, 0.5, 0.2, 0.2, 0.9], ["a", "a", "a", "b", "b", "c"]
        out = group_advantages(returns, groups, normalize=normalize)
        np.testing.assert_allclose([out[:3].sum(), out[3:5].sum(), out[5]], 0, atol=1e-12)
        assert (out[0] > out[2] > out[1]) and not out[3:].any()

    def test_leave_one_out_by_hand(self) -> None:
        np.testing.assert_allclose(leave_one_out([1.0, 0.0, 0.5, 7.0], [0, 0, 0, 1]), [0.75, -0.75, 0.0, 0.0])


class TestSurrogate:
    def test_clipping_by_hand(self) -> None:
        old = [torch.zeros(1)] * 3
        new = [torch.log(torch.tensor([r])) for r in (1.5, 1.5, 0.5)]
        terms = surrogate(new, old, [1.0, -1.0, 1.0], clip_range=0.2)
        # A good turn earns up to 1.2, a bad one loses all of it, and below 0.8 a good one keeps its gradient.
        assert float(terms.loss) == pytest.approx(-(1.2 - 1.5 + 0.5))
        assert (terms.n, terms.n_clipped) == (3, 3)
        assert terms.kl > 0

    def test_levels(self) -> None:
        new, old = [torch.tensor([0.1, 0.2])], [torch.tensor([0.0, 0.0])]
        turn = surrogate(new, old, [1.0], clip_range=0.9)
        token = surrogate(new, old, [1.0], clip_range=0.9, level="token")
        assert float(turn.loss) == pytest.approx(-np.exp(0.3)) and turn.n == 1
        assert float(token.loss) == pytest.approx(-(np.exp(0.1) + np.exp(0.2))) and token.n == 2


def make(cls: type[OnPolicyLLMAlgorithm], learner: str, env: VecEnv, **kwargs: Any) -> Any:
    model = cls(learner, env, seed=0, **kwargs)
    randomise(model.lm, POLICY)
    return model


def samples_of(model: OnPolicyLLMAlgorithm, n: int = 8) -> list[Sample]:
    """Samples with advantages, as if the model had just played them."""
    rng = np.random.default_rng(0)
    out = []
    for i, episode in enumerate(make_episodes(n)):
        rewards = [turn.reward for turn in episode.turns]
        sample = Sample(Rollout(episode, [], 0, rewards), i // 2)
        out.append(sample)
    if isinstance(model, RFT):
        return out
    model.advantages(out)
    for sample in out:
        sample.advantages = rng.standard_normal(len(sample.episode.turns))
    model.clipped.remember(model.policy, out, 3)
    return out


def gradients(model: Any, samples: Sequence[Sample], micro_batch_size: int) -> torch.Tensor:
    """The gradient of a minibatch's loss, flat."""
    model.micro_batch_size = micro_batch_size
    n_turns = sum(len(s.episode.turns) for s in samples)
    with model.lm.active(POLICY, train=True):
        for piece in pieces(samples, micro_batch_size):
            if isinstance(model, RFT):
                (model.loss_sum(piece) / n_turns).backward()
            else:
                model.clipped.sums(model.policy, piece, model.clipped.n_ratios(samples), n_turns)[0].backward()
    if not isinstance(model, RFT):
        model.extra_loss(samples, n_turns)
    out = []
    for parameter in model.trained_parameters():
        out.append(torch.zeros(parameter.numel()) if parameter.grad is None else parameter.grad.flatten().clone())
        parameter.grad = None
    return torch.cat(out)


SETTINGS: list[tuple[Any, dict[str, Any]]] = [
    *((cls, {}) for cls in CLASSES),
    (GRPO, {"level": "token"}),
    (GRPO, {"beta": 0.1, "ent_coef": 0.01}),
    (PPO, {"clip_range_vf": 0.2}),
    (GRPO, {"policy_kwargs": {"template": "full", "action_mode": "score"}}),
    (GRPO, {"policy_kwargs": {"template": "full", "action_mode": "generate"}}),
]


@pytest.fixture(params=SETTINGS, ids=lambda s: f"{s[0].__name__}{'-'.join(['', *map(str, s[1])])}")
def model(request: pytest.FixtureRequest, learner: str, toy: VecEnv) -> Any:
    cls, kwargs = request.param
    model = make(cls, learner, toy, **kwargs)
    if getattr(model, "beta", 0) > 0:
        model.lm.copy_adapter(POLICY, "reference")
        randomise(model.lm, "reference", seed=3)
    return model


def test_batch_one_times_eight_equals_batch_eight(model: Any) -> None:
    """Gradient accumulation, and with it padding, changes nothing."""
    samples = samples_of(model)
    whole = gradients(model, samples, 8)
    assert whole.abs().max() > 1e-6
    for size in (1, 3):
        torch.testing.assert_close(gradients(model, samples, size), whole, atol=2e-5, rtol=1e-3)


def test_the_order_of_episodes_does_not_matter(model: Any) -> None:
    samples = samples_of(model)
    torch.testing.assert_close(gradients(model, samples[::-1], 4), gradients(model, samples, 4), atol=2e-5, rtol=1e-3)


def test_ratios_are_one_on_the_first_minibatch(model: Any) -> None:
    if isinstance(model, RFT):
        pytest.skip("RFT has no ratios")
    samples = samples_of(model)
    n = sum(len(s.episode.turns) for s in samples)
    with torch.no_grad(), model.lm.active(POLICY):
        _, sums = model.clipped.sums(model.policy, samples, n, n)
    assert sums["approx_kl"] == pytest.approx(0, abs=1e-6)
    assert sums["clip_fraction"] == 0


def test_the_first_update_needs_no_pass_for_the_policy_that_acted(model: Any) -> None:
    """It is the policy that the update begins with, so its log-probabilities are read in the pass with gradients."""
    if isinstance(model, RFT) or model.level == "token":
        pytest.skip("RFT has no ratios, and a mean over tokens needs their number before")
    samples = samples_of(model)
    expected = gradients(model, samples, 3)
    for sample in samples:
        sample.old = []
    # Gradients are up to 2.3 here, and passes with and without them round by 5e-6 of that on some processors.
    torch.testing.assert_close(gradients(model, samples, 3), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "n_without"),
    [({}, 4), ({"beta": 0.1}, 4), ({"n_epochs": 2}, 0), ({"level": "token"}, 0), ({"batch_size": 8}, 8)],
    ids=str,
)
def test_who_gets_old_log_probabilities(learner: str, toy: VecEnv, kwargs: dict[str, Any], n_without: int) -> None:
    model = make(GRPO, learner, toy, **{"batch_size": 4, "micro_batch_size": 3, "learning_rate": 1e-12} | kwargs)
    model._prepare()
    samples = samples_of(model)
    for sample in samples:
        sample.old, sample.reference = [], []
    stats = model._updates(samples)
    assert sum(not sample.old for sample in samples) == n_without
    assert all(len(s.reference) == (len(s.episode.turns) if model.beta else 0) for s in samples)
    for step in stats:  # nothing was learnt, so every ratio is 1 at every update
        assert step["approx_kl"] == pytest.approx(0, abs=1e-6) and step["clip_fraction"] == 0


def test_without_an_advantage_there_is_no_gradient(learner: str, toy: VecEnv) -> None:
    model = make(GRPO, learner, toy)
    samples = samples_of(model)
    for sample in samples:
        sample.advantages[:] = 0
    assert not gradients(model, samples, 8).any()


def test_what_the_agent_read_is_not_trained_on(learner: str, toy: VecEnv) -> None:
    """Only the tokens that were a choice of the agent's have a ratio; there are none where a single command was left."""
    model = make(GRPO, learner, toy, level="token")
    samples = samples_of(model)
    counts = [len(old) for s in samples for old in s.old]
    branching = [
        len(model.policy.responder.trie(t.admissible_commands).command_choices[t.admissible_commands.index(t.command)])
        for s in samples
        for t in s.episode.turns
    ]
    assert counts == branching


def test_the_divergence_is_zero_at_the_start_and_never_negative(learner: str, toy: VecEnv) -> None:
    model = make(GRPO, learner, toy)
    episodes = make_episodes(4)
    with torch.no_grad():
        with model.lm.active(POLICY):
            scores = [s for row in score_turns(model.policy.responder, episodes) for s in row]
        model.lm.copy_adapter(POLICY, "other")
        randomise(model.lm, "other", seed=9)
        with model.lm.active("other"):
            others = [s for row in score_turns(model.policy.responder, episodes) for s in row]
    for score, other in zip(scores, others, strict=True):
        assert float(divergence(score, score)) == pytest.approx(0, abs=1e-6)
        assert float(divergence(score, other)) > 0


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_reference_runs_only_where_it_counts(learner: str, toy: VecEnv, beta: float) -> None:
    model = make(GRPO, learner, toy, n_games=2, group_size=4, batch_size=8, beta=beta)
    model.learn(8)
    assert ("reference" in model.lm.adapters) == (beta > 0)


class Last(BaseCallback):
    """Keeps how many updates were logged."""

    def __init__(self, out: list[float]) -> None:
        super().__init__()
        self.out = out

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.out.append(self.model._n_updates)


def test_target_kl_ends_the_updates(learner: str, toy: VecEnv) -> None:
    counts = []
    for target_kl in (None, 1e-9):
        kwargs = {"n_games": 4, "group_size": 4, "batch_size": 2, "n_epochs": 3, "learning_rate": 0.05}
        model = make(GRPO, learner, toy, target_kl=target_kl, **kwargs)
        logged: list[float] = []
        model.learn(16, callback=Last(logged))
        counts.append(logged[-1])
    assert counts[1] < counts[0]


def test_the_value_head_is_saved(learner: str, toy: VecEnv, tmp_path: Any) -> None:
    model = make(PPO, learner, toy, n_games=8, batch_size=8)
    model.learn(8)
    episodes = make_episodes(3)
    model.save(tmp_path / "ppo")
    loaded = PPO.load(tmp_path / "ppo", toy)
    assert loaded.value.predict(episodes, 2) == model.value.predict(episodes, 2)
    assert set(model.get_parameters()) == {POLICY, VALUE}


def test_process_rewards_are_learnt_from_and_the_task_is_reported(learner: str) -> None:
    env = make_eval_env("ALFWorldPRM-v0", n_envs=4, games="generated", reward="progress", max_episode_steps=4)
    seen: list[Sample] = []

    class Watched(REINFORCE):
        def advantages(self, samples: Sequence[Sample]) -> None:
            seen.extend(samples)
            super().advantages(samples)

    make(Watched, learner, env, n_games=4).learn(4)
    assert seen
    for sample in seen:
        assert len(sample.rollout.rewards) == len(sample.episode.turns)
        assert all(turn.reward in (0.0, 1.0) for turn in sample.episode.turns)


def test_a_save_holds_the_arguments_of_every_base(learner: str, toy: VecEnv, tmp_path: Any) -> None:
    model = make(GiGPO, learner, toy, n_games=3, normalize="group", step_coef=0.5, clip_range=0.1)
    model.save(tmp_path / "gigpo")
    loaded = GiGPO.load(tmp_path / "gigpo", toy)
    assert (loaded.n_games, loaded.normalize, loaded.step_coef, loaded.clip_range) == (3, "group", 0.5, 0.1)


@pytest.mark.parametrize(
    ("cls", "kwargs", "message"),
    [
        (GRPO, {"group_size": 1}, "group_size must be 2 or more"),
        (RLOO, {"group_size": 1}, "group_size must be 2 or more"),
        (GRPO, {"normalize": "all"}, "'group', 'batch', 'none'"),
        (PPO, {"gae_lambda": 1.5}, "gae_lambda"),
        (PPO, {"level": "word"}, "'turn', 'token'"),
        (REINFORCE, {"baseline": "mean"}, "'batch', 'turn', 'none'"),
        (OnlineDPO, {"beta": 0.0}, "above 0"),
        (RFT, {"n_per_game": 0}, "1 or more"),
        (PPO, {"gamma": 0.0}, "gamma"),
        (PPO, {"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_arguments_are_refused(cls: Any, kwargs: dict[str, Any], message: str, toy: VecEnv) -> None:
    with pytest.raises(ValueError, match=message):
        cls("tiny", toy, **kwargs)


# One of them by .ci/run; each takes several seconds.
ECHOES = [pytest.param(c, marks=pytest.mark.ci if c is GRPO else pytest.mark.slow) for c in (*CLASSES, OnlineDPO)]


@pytest.mark.parametrize("cls", ECHOES)
def test_learns_to_echo(cls: Any) -> None:
    """The bundled model, which says any of the words, learns to say the one it is shown."""
    env = make_eval_env("TextIdentity-v0", n_envs=32)
    single = cls in (PPO, REINFORCE)
    settings = {"n_games": 64 if single else 8, "group_size": 1 if single else 8, "batch_size": 32}
    settings |= {"n_epochs": 2} if cls is PPO else {}
    model = cls("tiny", env, seed=0, learning_rate=2e-3, **settings)
    model.learn(1)  # an iteration, played by the model as it was
    before = float(np.mean([e["r"] for e in model.ep_info_buffer]))
    model.learn(2000, reset_num_timesteps=False)
    after = float(np.mean([e["r"] for e in model.ep_info_buffer]))
    # Other processors round otherwise, so other runs: seeds 0 to 2 of GRPO gained 0.44 to 0.56 here.
    assert after > before + 0.15, (before, after)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [30, 31])
def test_the_toy_is_learnt_with_the_settings_of_its_page(seed: int) -> None:
    """Most of its eight words: on some seeds one or two are not learnt, as the page says."""
    settings = {"learning_rate": 3e-3, "n_games": 16, "batch_size": 16, "target_kl": 0.05}
    model = GRPO("tiny", "TextIdentity-v0", seed=seed, **settings).learn(5_000)
    assert float(np.mean([e["r"] for e in model.ep_info_buffer or []])) > 5 / 8
