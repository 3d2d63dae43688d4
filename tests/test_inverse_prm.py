"""InversePRM: implied rewards by hand, sides in balance, answers at their states, no outcome read, toys to their end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from agentprm_gym.episodes import Episode
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.scoring import Responder, episode_log_probs
from agentprm_gym.prm.model import ProcessRewardModel
from algorithms import SFT, AgentPRM, InversePRM
from algorithms.agent_prm.fit import FitStage
from algorithms.agent_prm.targets import QTable, label_episodes
from algorithms.common.acting.policy import POLICY
from algorithms.common.acting.rollouts import RolloutTask, collect
from algorithms.inverse_prm import inverse_prm
from algorithms.inverse_prm.fit import (
    InverseFitStage,
    Trajectory,
    answers_of,
    balance,
    expert_likeness,
    fit_inverse_prm,
    implied_rewards,
)
from algorithms.inverse_prm.inverse_prm import InverseImproveStage
from tests.algorithm_helpers import SMALL_INVERSE_PRM, echo_demonstrations, make_toy, merged
from tests.chain_env import BACK, N_ROOMS, ON, make_chain, walk
from tests.llm_helpers import make_episodes, randomise


@pytest.fixture(scope="module")
def prm(learner: str) -> ProcessRewardModel:
    model = ProcessRewardModel(LanguageModel.load(learner))
    randomise(model.lm, "prm", scale=0.1)
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(model.head.weight.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    return model


def with_answers(episodes: list[Episode], **kwargs: Any) -> list[Trajectory]:
    """Trajectories in which the current policy would always say the last admissible command."""
    settings = {"is_expert": True, "ended": True} | kwargs
    return [Trajectory(e, answers=[t.admissible_commands[-1] for t in e.turns], **settings) for e in episodes]


def logit(prm: ProcessRewardModel, episode: Episode, t: int, command: str) -> float:
    with torch.no_grad(), prm.lm.active(prm.adapter):
        return float(prm.logits([(episode.task, episode.turns[: t + 1], [(t, [command])])])[0][0][0])


# ---------------------------------------------------------------------- the fit
@pytest.mark.parametrize("ended", [True, False])
def test_implied_rewards_by_hand(prm: ProcessRewardModel, ended: bool) -> None:
    batch = with_answers(make_episodes(3), ended=ended)
    with torch.no_grad(), prm.lm.active(prm.adapter):
        rewards = implied_rewards(prm, batch, gamma=0.9)
        one_step = implied_rewards(prm, batch, gamma=0.0)
    for trajectory, row, plain in zip(batch, rewards, one_step, strict=True):
        turns = trajectory.episode.turns
        assert len(row) == len(turns) - (not ended)
        q = [logit(prm, trajectory.episode, t, turn.command) for t, turn in enumerate(turns)]
        after = [logit(prm, trajectory.episode, t, turn.admissible_commands[-1]) for t, turn in enumerate(turns)]
        expected = [q[t] - 0.9 * after[t + 1] if t + 1 < len(turns) else q[t] for t in range(len(row))]
        assert row.tolist() == pytest.approx(expected, abs=1e-4)
        assert plain.tolist() == pytest.approx(q[: len(row)], abs=1e-4)


@pytest.mark.parametrize("ended", [True, False])
def test_how_an_episode_ended_does_not_make_it_like_the_experts(prm: ProcessRewardModel, ended: bool) -> None:
    batch = with_answers(make_episodes(3), ended=True)
    short = Trajectory(replace(batch[0].episode, turns=batch[0].episode.turns[:1]), False, ended, batch[0].answers[:1])
    with torch.no_grad(), prm.lm.active(prm.adapter):
        rows = implied_rewards(prm, batch, gamma=0.9)
    expected = [float(row[:-1].mean()) for row in rows]
    found = expert_likeness(prm, [replace(t, ended=ended) for t in (*batch, short)], gamma=0.9, micro_batch_size=2)
    assert found[:-1] == pytest.approx(expected, abs=1e-4)
    assert found[-1] == pytest.approx(logit(prm, short.episode, 0, short.episode.turns[0].command), abs=1e-4)


def test_gradients_stop_at_the_next_state_and_values_at_the_clip(prm: ProcessRewardModel) -> None:
    batch = with_answers(make_episodes(1))

    def gradient(**kwargs: Any) -> torch.Tensor:
        with prm.lm.active(prm.adapter, train=True):
            (rewards,) = implied_rewards(prm, batch, gamma=0.9, **kwargs)
            (grad,) = torch.autograd.grad(rewards[0], prm.head.weight)
        return grad

    assert not torch.allclose(gradient(), gradient(stop_gradient=True))
    assert torch.count_nonzero(gradient(clip=1e-9)) == 0


def test_both_sides_and_all_games_of_a_side_weigh_the_same() -> None:
    episodes = make_episodes(6)
    for i, episode in enumerate(episodes):
        episode.game_id = "abc"[i % 3]
    data = with_answers(episodes[:2]) + with_answers(episodes[2:], is_expert=False, ended=False)
    balance(data)
    for side, games in ((True, "ab"), (False, "abc")):
        totals = {
            game: sum(t.weight * t.n_transitions for t in data if t.is_expert == side and t.episode.game_id == game)
            for game in games
        }
        assert list(totals.values()) == pytest.approx([0.5 / len(games)] * len(games))


def test_answers_belong_to_their_states(learner: str) -> None:
    lm = LanguageModel.load(learner)
    lm.add_adapter("policy")
    randomise(lm, "policy", scale=0.2)
    episodes = make_episodes(5)
    with lm.active("policy"):
        # Without temperature there is one answer to a state, whatever else is asked for beside it.
        several = answers_of(Responder(lm), episodes, temperature=0.0, rng=np.random.default_rng(0), micro_batch_size=2)
        alone = [
            answers_of(Responder(lm), [e], temperature=0.0, rng=np.random.default_rng(1), micro_batch_size=1)[0]
            for e in episodes
        ]
    assert several == alone
    assert [len(a) for a in several] == [len(e.turns) for e in episodes]
    assert len({c for row in several for c in row}) > 1


def test_a_fit_needs_both_sides(prm: ProcessRewardModel) -> None:
    settings: dict[str, Any] = {"gamma": 0.9, "micro_batch_size": 2, "rng": np.random.default_rng(0)}
    with pytest.raises(ValueError, match="learner's"):
        fit_inverse_prm(prm, with_answers(make_episodes(2)), InverseFitStage(n_epochs=1, batch_size=2), **settings)


# ---------------------------------------------------------------------- the algorithm
class Lies(VecEnvWrapper):
    """Other outcomes than the true ones, everywhere that an algorithm could read them."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        rng = np.random.default_rng(len(infos))
        lies = [{**info, "is_success": bool(rng.integers(2)), "won": bool(rng.integers(2))} for info in infos]
        paid = rng.normal(size=rewards.shape)
        for info, reward in zip(lies, paid, strict=True):
            info["reward/env"] = float(reward)
        return observations, paid, dones, lies


def test_no_outcome_is_read(learner: str) -> None:
    def train(env: VecEnv) -> dict[str, Any]:
        model = InversePRM(learner, env, demonstrations=echo_demonstrations(), **SMALL_INVERSE_PRM)
        return model.learn(24).get_parameters()

    true, lied = train(make_toy()), train(Lies(make_toy()))
    for group, state in true.items():
        assert all(torch.equal(value, lied[group][key]) for key, value in state.items())


def test_what_does_not_fit_is_refused(learner: str) -> None:
    toy = make_toy()
    with pytest.raises(ValueError, match="demonstrations"):
        InversePRM(learner, toy).learn(8)
    for options, named in (
        ({"gamma": 1.5}, "gamma"),
        ({"prm": {"logit_clip": 0.0}}, "logit_clip"),
        ({"improve": {"imitate": "winners"}}, "imitate must be one of 'learners'"),
        ({"improve": {"imitation_quantile": 1.5}}, "imitation_quantile"),
        ({"improve": {"imitation_coef": 0.0, "imitate": "both"}}, "imitate='both' has no effect"),
        ({"improve": {"prior_visits": 2.0}}, "no option 'prior_visits'"),
        ({"prm": {"rank_coef": 2.0}}, "no option 'rank_coef'"),
        ({"rollout": {"n_other_games": -1}}, "n_other_games"),
    ):
        with pytest.raises(ValueError, match=named):
            InversePRM(learner, toy, **options)  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match="n_validation_games"
    ):  # to choose a policy by its success would be to read outcomes
        InversePRM(learner, toy, n_validation_games=10)  # type: ignore[call-arg]


class Recording(InverseImproveStage):
    """Writes down which states it is given, and which episodes to imitate."""

    states: ClassVar[list[Episode]] = []
    imitated: ClassVar[list[Episode]] = []

    def __call__(self, bandit: Any, states: Any, successes: Any = (), **kwargs: Any) -> Any:
        self.states[:] = [e for e, _ in states]
        self.imitated[:] = [e for e, _ in successes]
        return super().__call__(bandit, states, successes, **kwargs)


def test_other_games_are_played_and_learnt_from_but_not_compared_with_the_expert(
    learner: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[list[Episode]] = []
    fit = inverse_prm.fit_inverse_prm

    def fitting(prm: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
        compared.append([t.episode for t in data if not t.is_expert])
        return fit(prm, data, *args, **kwargs)

    monkeypatch.setattr(inverse_prm, "fit_inverse_prm", fitting)
    demos = echo_demonstrations()
    own = {e.game_id for e in demos[:2]}
    rollout = {"n_games": 2, "n_repeats": 3, "n_other_games": 4}
    settings = {
        **SMALL_INVERSE_PRM,
        "rollout": rollout,
        "n_iterations": 1,
        "improve": Recording(n_updates=2, batch_size=4),
    }
    toy = make_toy()
    model: Any = InversePRM(learner, toy, demonstrations=demos[:2], **settings)
    model.checkpoint_dir = tmp_path
    model.learn()
    played = [e for e in Recording.states if e not in demos]
    assert [e.game_id in own for e in played] == [True] * 6 + [False] * 4
    assert len({e.game_id for e in played}) == 6
    assert [e.game_id for e in compared[0]] == [e.game_id for e in played[:6]]
    again: Any = InversePRM.resume(tmp_path, toy, demonstrations=demos[:2], n_iterations=2)
    again.learn(reset_num_timesteps=False)
    assert [e.game_id for e in compared[1][:6]] == [e.game_id for e in played[:6]] and len(compared[1]) == 12


def test_where_games_of_the_demonstrations_are_missing_all_is_compared_with_the_expert(learner: str) -> None:
    demos = [*echo_demonstrations()[:2], replace(echo_demonstrations()[2], game_id="elsewhere")]
    n = len(echo_demonstrations())
    options = {"rollout": {"n_games": n, "n_repeats": 1, "n_other_games": 4}, "improve": Recording(n_updates=2)}
    model: Any = InversePRM(
        learner, make_toy(), demonstrations=demos, **merged(SMALL_INVERSE_PRM, options, {"n_iterations": 1})
    )
    model.learn()
    played = [e.game_id for e in Recording.states if e not in demos]
    assert len(played) == len(set(played)) == n > 3


def test_demonstrations_that_cannot_be_learnt_from_are_told(learner: str) -> None:
    def foreign(episode: Episode) -> Episode:
        return replace(episode, turns=[replace(turn, command="put it in the thing") for turn in episode.turns])

    demos = echo_demonstrations()
    model: Any = InversePRM(learner, make_toy(), demonstrations=[foreign(demos[0]), *demos[1:]], **SMALL_INVERSE_PRM)
    with pytest.warns(UserWarning, match=r"1 of 8 turns in the demonstrations .*'put it in the thing'"):
        model.learn(8)
    model = InversePRM(learner, make_toy(), demonstrations=[foreign(e) for e in demos], **SMALL_INVERSE_PRM)
    with pytest.raises(ValueError, match="not one of them"):
        model.learn(8)


def exact(model: Any) -> list[float]:
    """Q of going on in each room, at a discount of 0.9, under a policy's own probabilities."""
    episode = walk()
    with torch.no_grad(), model.lm.active(POLICY):
        (scores,) = episode_log_probs(model.policy.responder, [episode])
    on = [float(row[episode.turns[t].admissible_commands.index(ON)].exp()) for t, row in enumerate(scores)]
    q = [1.0]
    for t in range(N_ROOMS - 1, 0, -1):
        q.insert(0, 0.9 * on[t] * q[0])
    return q


@pytest.mark.ci
def test_the_exact_q_of_a_chain(learner: str) -> None:
    """Monte Carlo finds Q of the policy that rolls out; demonstrations find which command is better."""
    policy: Any = SFT(learner, make_chain(), demonstrations=[walk()], seed=0)
    rollouts = collect(
        policy.policy.actor(8, temperature=1.0), make_chain(), [RolloutTask({"game": 0}, (0, i)) for i in range(300)]
    )
    assert rollouts is not None
    episodes = [rollout.episode for rollout in rollouts]
    table = QTable(0.9)
    table.add(episodes)
    model = ProcessRewardModel(LanguageModel.load(learner))
    fit = FitStage(batch_size=8, learning_rate=1e-2, n_epochs=150, rank_coef=0.0)
    fit(model, label_episodes(episodes, table), micro_batch_size=8, rng=np.random.default_rng(0))
    states = [(t, [ON, BACK]) for t in range(N_ROOMS)]
    ((*fitted,),) = model.score([(walk().task, walk().turns, states)])
    assert [float(q[0]) for q in fitted] == pytest.approx(exact(policy), abs=0.12)
    assert all(float(q[1]) < 0.1 for q in fitted)

    settings: dict[str, Any] = {"n_iterations": 1, "micro_batch_size": 32, "seed": 0, "improve": {"n_updates": 1}}
    settings["rollout"] = {"n_games": 1, "n_repeats": 60, "temperature": 10.0}  # both commands about as often
    settings["prm"] = {"init": "base", "form": "scalar", "stop_gradient": True, "learning_rate": 1e-2}
    settings["prm"] |= {"batch_size": 64, "n_epochs": 60}
    agent: Any = InversePRM(learner, make_chain(), demonstrations=[walk()], **settings)
    agent.learn()
    ((*ranked,),) = agent.prm.score([(walk().task, walk().turns, states)])
    assert all(float(q[0]) > float(q[1]) + 0.3 for q in ranked)


def test_what_is_like_the_experts_is_imitated(learner: str) -> None:
    demos = echo_demonstrations()
    rollout = {"n_games": 8, "n_repeats": 4, "temperature": 3.0}
    settings: dict[str, Any] = {"gamma": 0.0, "n_iterations": 1, "seed": 0, "rollout": rollout}
    improve = Recording(n_updates=1, imitation_quantile=0.5)
    model: Any = InversePRM(learner, make_toy(), demonstrations=demos, improve=improve, **settings)
    model.learn()
    played = Recording.states[: -len(demos)]
    expert = expert_likeness(model.prm, with_answers(demos), gamma=0.0, clip=10.0)
    likeness = expert_likeness(model.prm, with_answers(played), gamma=0.0, clip=10.0)
    wanted = [e for e, x in zip(played, likeness, strict=True) if x >= np.quantile(expert, 0.5)]
    assert 0 < len(wanted) < len(played)
    assert Recording.imitated == wanted


@pytest.mark.slow
@pytest.mark.parametrize("cls", [AgentPRM, InversePRM])
def test_the_toy_is_solved_from_the_bundled_model(cls: type, tmp_path: Any) -> None:
    """Through SB3's own EvalCallback, which keeps the best."""
    settings: dict[str, Any] = {"seed": 0, "learning_rate": 3e-3}
    rollout: dict[str, Any] = {"n_games": 8, "temperature": 1.0}
    prm: dict[str, Any] = {"form": "log_prob"}
    improve: dict[str, Any] = {"objective": "closed_form", "n_updates": 40, "batch_size": 16, "margin": 0.0}
    if cls is AgentPRM:
        rollout |= {"n_repeats": 16, "n_branch_states": 0}
        improve |= {"beta": 0.1}
        settings |= {"n_validation_games": 0}
    else:
        rollout |= {"n_repeats": 8}
        prm |= {"batch_size": 32, "learning_rate": 3e-3}
        improve |= {"beta": 1.0, "score_scale": "logit", "imitate": "demonstrations"}
        settings |= {"demonstrations": echo_demonstrations()}
    settings |= {"rollout": rollout, "prm": prm, "improve": improve}
    callback = EvalCallback(make_toy(8), n_eval_episodes=16, eval_freq=1, deterministic=True, verbose=0)
    model: Any = cls("tiny", make_toy(32), n_iterations=4, **settings)
    model.learn(callback=callback)
    model.learn(1, callback=callback, reset_num_timesteps=False)
    assert callback.best_mean_reward == 1.0
