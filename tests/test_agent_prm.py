"""AgentPRM: targets by hand, losses at known points, the trained PRM in its three roles, and the toy to its end."""

from __future__ import annotations

import importlib
import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.llm.model import AdapterMismatchError, LanguageModel
from agentprm_gym.llm.saving import read_save, write_save
from agentprm_gym.prm import ProcessRewardModel, load_prm
from agentprm_gym.states import state_keys
from algorithms import SFT, AgentPRM, InversePRM
from algorithms.agent_prm.agent_prm import AgentImproveStage
from algorithms.agent_prm.branching import branch_tasks
from algorithms.agent_prm.fit import FitStage, prm_loss
from algorithms.agent_prm.relative import MIN_GAP
from algorithms.agent_prm.report import labelled_states
from algorithms.agent_prm.rollout import Experience
from algorithms.agent_prm.targets import (
    LabelledEpisode,
    QTable,
    Target,
    Visit,
    label_episodes,
    monte_carlo_targets,
    turn_returns,
)
from algorithms.common.acting.policy import POLICY
from algorithms.common.acting.rollouts import Rollout
from algorithms.common.acting.search import POLICY_WEIGHT
from algorithms.common.learning.advantages import discounted_returns
from algorithms.common.measure.evaluation import evaluate
from algorithms.common.measure.heldout import PRMReport, judge_prm
from algorithms.common.prm.bandit import Bandit, ImproveStats
from algorithms.common.prm.objectives.online_dpo import dpo_loss
from algorithms.common.prm.validation import BestPolicy, clearly_worse
from algorithms.common.prm.version_0_1 import current_settings
from algorithms.common.shell.load import load_actor
from tests.algorithm_helpers import SMALL_AGENT_PRM, echo_demonstrations, make_alfworld, make_model, make_toy, merged
from tests.llm_helpers import make_episodes, randomise


def judged(prm: ProcessRewardModel, data: Sequence[LabelledEpisode]) -> PRMReport:
    return judge_prm(labelled_states(prm, data), MIN_GAP)


def histogram(table: QTable) -> dict[int, int]:
    """How many (state, command) pairs were visited how often."""
    counts = [visit.n for commands in table.visits.values() for visit in commands.values()]
    return {n: counts.count(n) for n in sorted(set(counts))}


def episode(commands: Sequence[str], *, won: bool, feedback: Sequence[str] | None = None) -> Episode:
    """An episode that says the commands, each at a feedback of its own unless told otherwise."""
    feedback = feedback or [f"room {t}" for t in range(len(commands))]
    turns = [
        Turn(feedback=f, admissible_commands=("a", "b", "c"), command=c)
        for f, c in zip(feedback, commands, strict=True)
    ]
    turns[-1].reward = float(won)
    return Episode(game_id="g", split="train", task_type="t", task="task", success=won, turns=turns)


# ---------------------------------------------------------------------- targets
def test_a_success_is_worth_more_the_nearer_the_end() -> None:
    rewards = [turn.reward for turn in episode("aaaaa", won=True).turns]
    np.testing.assert_allclose(discounted_returns(rewards, 0.95), [0.81450625, 0.857375, 0.9025, 0.95, 1.0])
    np.testing.assert_array_equal(discounted_returns([0.0] * 5, 0.95), np.zeros(5))


def test_visits_of_the_same_state_and_command_are_pooled() -> None:
    table = QTable(0.95)
    # Three visits of the first state with "a": won at the third turn, lost, won at the second.
    episodes = [episode("aba", won=True), episode("ab", won=False), episode("ac", won=True), episode("b", won=False)]
    table.add(episodes)
    labels = {(row.turn, row.command): row for e in label_episodes(episodes, table) for row in e.targets}
    assert labels[0, "a"].count == 3
    assert labels[0, "a"].target == pytest.approx((0.95**2 + 0 + 0.95) / 3)
    assert (labels[0, "b"].target, labels[0, "b"].count) == (0.0, 1)
    assert (labels[1, "b"].target, labels[1, "b"].count) == (pytest.approx(0.95 / 2), 2)
    assert (labels[1, "c"].target, labels[1, "c"].count) == (1.0, 1)
    assert histogram(table) == {1: 3, 2: 1, 3: 1}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.8145, 0.8574, 0.9025, 0.9500, 1.0000]),
        ({"discount": "from_start", "reward_range": "signed"}, [1.0000, 0.9750, 0.9513, 0.9287, 0.9073]),
        ({"discount": "to_go", "reward_range": "signed"}, [0.9073, 0.9287, 0.9513, 0.9750, 1.0000]),
        ({"discount": "from_start"}, [1.0000, 0.9500, 0.9025, 0.8574, 0.8145]),
        ({"discount": "none"}, [1.0] * 5),
    ],
)
def test_targets_of_a_success_by_hand(settings: dict[str, str], expected: list[float]) -> None:
    rows = monte_carlo_targets([episode("aaaaa", won=True)], **settings)
    assert [round(row.target, 4) for row in rows] == pytest.approx(expected, abs=1.01e-4)
    assert [(row.turn, row.count, row.stderr) for row in rows] == [(t, 1, math.inf) for t in range(5)]


def test_targets_of_a_failure_by_hand() -> None:
    lost = episode("aaa", won=False)
    for discount in ("to_go", "from_start", "none"):
        assert [row.target for row in monte_carlo_targets([lost], discount=discount)] == [0.0] * 3
    signed = monte_carlo_targets([lost], discount="from_start", reward_range="signed")
    assert [row.target for row in signed] == pytest.approx([0.0, 0.025, 0.04875])


def test_target_rows_pool_equal_texts_over_games() -> None:
    episodes = [episode("aba", won=True), episode("ab", won=False), episode("ac", won=True)]
    episodes[1].game_id = "another game"
    row, *_ = monte_carlo_targets(episodes)
    visits = [0.95**2, 0.0, 0.95]
    assert (row["episode"], row.turn, row.command, row.count) == (0, 0, "a", 3)
    assert row.target == pytest.approx(np.mean(visits))
    assert row["stderr"] == pytest.approx(np.std(visits, ddof=1) / math.sqrt(3))
    with pytest.raises(KeyError):
        row["q"]
    # What is possible there is a part of the state.
    episodes[1].turns[0].admissible_commands = ("a", "b")
    assert monte_carlo_targets(episodes)[0].count == 2


@pytest.mark.parametrize("settings", [{"gamma": 0.0}, {"discount": "backwards"}, {"reward_range": "percent"}])
def test_targets_of_unknown_kinds_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        monte_carlo_targets([episode("a", won=True)], **settings)


def test_each_state_is_labelled_once() -> None:
    episodes = [episode("ab", won=True), episode("ab", won=False)]
    table = QTable(1.0)
    table.add(episodes)
    labelled = label_episodes(episodes, table)
    assert [[(row.turn, row.command) for row in e.targets] for e in labelled] == [[(0, "a"), (1, "b")]]


def test_a_state_is_the_whole_transcript() -> None:
    one, two = episode("aa", won=True), episode("ba", won=True)
    assert state_keys("task", one.turns)[0] == state_keys("task", two.turns)[0]
    assert state_keys("task", one.turns)[1] != state_keys("task", two.turns)[1]
    assert state_keys("another task", one.turns)[0] != state_keys("task", one.turns)[0]
    # Concatenation alone would confuse these.
    glued = episode("aa", won=True, feedback=["x", "y"]), episode("aa", won=True, feedback=["xa", "y"])
    assert state_keys("task", glued[0].turns)[1] != state_keys("task", glued[1].turns)[1]


def test_a_continued_episode_counts_from_where_it_was_continued() -> None:
    table = QTable(0.5)
    table.add([episode("aab", won=True)], first_turn=[1])
    assert histogram(table) == {1: 2}
    table.add([episode("aab", won=True)])
    assert histogram(table) == {1: 1, 2: 2}


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.1])
def test_a_discount_out_of_range_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma"):
        QTable(gamma)


def test_targets_outside_zero_and_one_are_refused() -> None:
    odd = episode("ab", won=True)
    odd.turns[-1].reward = 5.0
    table = QTable(0.9)
    table.add([odd])
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        label_episodes([odd], table)


def test_returns_of_each_turn() -> None:
    won = episode("aaa", won=True)
    assert turn_returns(won, 0.5).tolist() == [0.25, 0.5, 1.0]
    assert turn_returns(won, 0.5, "from_start", "signed").tolist() == [1.0, 0.75, 0.625]


# ---------------------------------------------------------------------- losses
def test_dpo_begins_at_log_two_and_pulls_towards_the_chosen() -> None:
    chosen, rejected = (torch.tensor([-1.0, -2.0], requires_grad=True) for _ in range(2))
    loss = dpo_loss(chosen, rejected, chosen.detach(), rejected.detach(), beta=0.3)
    torch.testing.assert_close(loss.detach(), torch.full((2,), math.log(2)))
    loss.sum().backward()
    torch.testing.assert_close(chosen.grad, torch.full((2,), -0.15))  # -beta / 2
    torch.testing.assert_close(rejected.grad, torch.full((2,), 0.15))


def test_dpo_counts_from_the_reference() -> None:
    # The policy prefers the chosen one by 1 nat more than the reference does.
    terms = (torch.tensor(x) for x in (-1.0, -3.0, -2.0, -3.0))
    assert float(dpo_loss(*terms, beta=2.0)) == pytest.approx(-math.log(1 / (1 + math.exp(-2.0))))


def test_the_relative_loss_by_hand() -> None:
    logits, targets, visits = [torch.tensor([0.0, math.log(3.0)])], [torch.tensor([0.2, 1.0])], [torch.ones(2)]
    plain, _, _ = prm_loss(logits, targets, visits, rank_coef=0.0)
    # The better one is log 3 ahead: softplus(-log 3) is log 4/3, times the gap of .8, times the weight.
    pairs, _, n_pairs = prm_loss(logits, targets, visits, rank_coef=2.0)
    assert (float(pairs - plain), n_pairs) == (pytest.approx(2 * 0.8 * math.log(4 / 3), abs=1e-6), 1)


def test_the_loss_over_a_list_by_hand_and_where_it_is_smallest() -> None:
    # Q = .5 and .75, targets .2 and .3, tau .1: a divergence of softmax(5, 7.5) from softmax(2, 3).
    logits, targets, visits = (
        [torch.tensor([0.0, math.log(3.0)])],
        [torch.tensor([0.2, 0.3])],
        [torch.tensor([1.0, 3.0])],
    )
    plain, _, _ = prm_loss(logits, targets, visits, rank_coef=0.0)
    listed, _, n = prm_loss(logits, targets, visits, 0.5, 0.1)
    p, q = (1 / (1 + math.exp(-x)) for x in (1.0, 2.5))  # of the second command: wanted, given
    divergence = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert (float(listed - plain), n) == (pytest.approx(0.5 * 2.0 * divergence, rel=1e-5), 1)  # 2: the mean weight

    z = torch.logit(targets[0]).requires_grad_()
    loss, _, _ = prm_loss([z], targets, visits, 1.0, 0.02)
    loss.backward()
    torch.testing.assert_close(z.grad, torch.zeros(2), atol=1e-5, rtol=0)  # both losses are smallest at Q = Q-hat
    alone, _, n = prm_loss([torch.zeros(1)], [torch.ones(1)], [torch.ones(1)], 1.0, 0.02)
    assert (float(alone), n) == (pytest.approx(math.log(2)), 0)  # one command is no list


@pytest.mark.parametrize(("count_weight", "ratio"), [("visits", 9.0), ("sqrt", 3.0), ("equal", 1.0)])
def test_what_a_target_counts(learner: str, count_weight: str, ratio: float) -> None:
    """Two labels of one state, nine visits and one, pull a PRM that cannot tell them apart to their weighted mean."""
    (episode,) = make_episodes(1)
    rows = [Target(0, 0, b"", "look", q, n, math.inf) for q, n in ((1.0, 9), (0.0, 1))]
    prm = ProcessRewardModel(LanguageModel.load(learner))
    fit = FitStage(batch_size=1, learning_rate=3e-2, n_epochs=60, rank_coef=0.0, count_weight=count_weight)
    fit(prm, [LabelledEpisode(episode, rows)], micro_batch_size=1, rng=np.random.default_rng(0))
    (((score,),),) = prm.score([(episode.task, episode.turns, [(0, ["look"])])])
    assert float(score) == pytest.approx(ratio / (ratio + 1), abs=0.05)


def test_the_prm_loss_weighs_by_visits() -> None:
    logits = [torch.tensor([0.3, -0.2])]
    pooled, weight, _ = prm_loss(logits, [torch.tensor([0.5, 1.0])], [torch.tensor([2.0, 1.0])], rank_coef=0.0)
    single = [torch.tensor([0.3]), torch.tensor([0.3]), torch.tensor([-0.2])]
    ones = [torch.tensor([1.0])] * 3
    apart, n, _ = prm_loss(single, [torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([1.0])], ones, rank_coef=0.0)
    assert float(weight) == float(n) == 3.0
    torch.testing.assert_close(pooled, apart)


def test_the_pairwise_loss_stays_within_states() -> None:
    targets = [torch.tensor([1.0]), torch.tensor([0.0, 0.95, 0.9])]
    visits = [torch.ones(1), torch.ones(3)]
    logits = [torch.zeros(1), torch.zeros(3, requires_grad=True)]
    loss, _, n_pairs = prm_loss(logits, targets, visits, rank_coef=1.0)
    plain, _, _ = prm_loss(logits, targets, visits, rank_coef=0.0)
    assert n_pairs == 2  # 0.95 and 0.9 are too close to tell apart, and the other state has one command
    torch.testing.assert_close(loss - plain, torch.tensor(math.log(2) * (0.95 + 0.9)))


# ---------------------------------------------------------------------- the process reward model
@pytest.fixture(scope="module")
def household() -> VecEnv:
    return make_alfworld()


@pytest.fixture(scope="module")
def agent(learner: str, household: VecEnv) -> Any:
    """An untrained AgentPRM with a PRM that has opinions, and a policy that is not too sure of itself."""
    model = make_model(AgentPRM, learner, household)
    randomise(model.lm, "policy", scale=0.1)
    randomise(model.lm, "prm", scale=0.3, seed=1)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(2)
        model.prm.head.weight.copy_(torch.randn(model.prm.head.weight.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def saved(agent: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agent") / "agent.zip"
    agent.save(path)
    return path


def test_a_saved_prm_scores_the_same(agent: Any, saved: Path, household: VecEnv) -> None:
    (played,) = evaluate(agent.policy.actor(household.num_envs), household, games=[0])
    here, there = (prm.score_turns(played.task, played.turns) for prm in (agent.prm, load_prm(saved)))
    assert here.shape == (30,) and here.std() > 1e-3
    torch.testing.assert_close(there, here)


def test_a_saved_prm_is_a_process_reward_of_the_environment(saved: Path) -> None:
    env: Any = gym.make("ALFWorldPRM-v0", games="generated", reward=f"prm:{saved}", reward_kwargs={"gamma": 0.9})
    env.reset(seed=0, options={"game": 0})
    got = []
    for command in ("look", "inventory", "dance"):
        _, reward, _, _, info = env.step(command)
        assert reward == info["reward/env"] + info["reward/prm"]
        got.append(info["reward/prm"])
    q = load_prm(saved).score_turns(env.unwrapped.episode().task, env.unwrapped.turns).double().numpy()
    np.testing.assert_allclose(got, [0.9 * q[0], 0.9 * q[1] - q[0], 0.9 * q[2] - q[1]], atol=1e-5)


def test_best_of_n_executes_what_the_prm_likes_best(agent: Any, saved: Path, household: VecEnv) -> None:
    alone = {"policy_weight": 0.0}
    for actor in (agent.best_of_n(4, 6, **alone), load_actor(str(saved), household, search="best-of-n", n=6, **alone)):
        played = evaluate(actor, household, games=range(3))
        n_choices = 0
        for e in played:
            weighed = [[c["command"] for c in turn.candidates or []] for turn in e.turns]
            (scores,) = agent.prm.score([(e.task, e.turns, list(enumerate(weighed)))])
            for turn, expected in zip(e.turns, scores, strict=True):
                given = torch.tensor([c["score"] for c in turn.candidates or []])
                torch.testing.assert_close(given, expected, atol=1e-4, rtol=0)
                assert turn.candidates is not None
                assert turn.command == turn.candidates[int(given.argmax())]["command"]
                n_choices += len(given) > 1
        assert n_choices > 3  # how many differs between processors: 12 to 60


def test_best_of_one_is_the_policy_itself(agent: Any, household: VecEnv) -> None:
    alone = evaluate(agent.policy.actor(4), household, games=range(3), seed=5)
    best = evaluate(agent.best_of_n(4, 1), household, games=range(3), seed=5)
    assert [[t.command for t in e.turns] for e in best] == [[t.command for t in e.turns] for e in alone]


def test_a_save_without_a_prm_says_so(learner: str, saved: Path, stranger: str, tmp_path: Path) -> None:
    toy = make_toy()
    make_model(SFT, learner, toy).save(tmp_path / "sft")
    with pytest.raises(ValueError, match="no process reward model"):
        load_actor(str(tmp_path / "sft.zip"), toy, search="best-of-n", n=4)
    with pytest.raises(AdapterMismatchError, match="base model"):
        load_prm(saved, LanguageModel.load(stranger))


def test_a_prm_learns_to_order_the_commands_of_a_state(learner: str) -> None:
    model = make_model(AgentPRM, learner, make_toy())
    words = ["apple", "bowl", "egg", "mug"]
    episodes = []
    for seen in words:
        for said in words:
            turn = Turn(
                feedback=f"You see {seen}.", admissible_commands=words, command=said, reward=float(said == seen)
            )
            episodes.append(
                Episode(
                    game_id=seen, split="train", task_type="toy", task="say it.", success=said == seen, turns=[turn]
                )
            )
    table = QTable(0.95)
    table.add(episodes)
    data = label_episodes(episodes, table)
    assert judged(model.prm, data).pair_accuracy < 0.7
    rng = np.random.default_rng(0)
    fit = FitStage(learning_rate=1e-3, batch_size=2, n_epochs=200)
    fit(model.prm, data, micro_batch_size=1, rng=rng)
    report = judged(model.prm, data)
    assert report.pair_accuracy == 1.0 and report.n_pairs == 12
    with pytest.raises(ValueError, match="no labelled episodes"):
        fit(model.prm, [], micro_batch_size=1, rng=rng)
    assert math.isnan(judged(model.prm, []).bce)


# ---------------------------------------------------------------------- the whole loop
@pytest.mark.ci
def test_agent_prm_solves_a_small_toy(learner: str) -> None:
    """From a random policy: its own rollouts, its own PRM, its own pairs."""
    toy = make_toy(words=["apple", "bowl", "candle", "mug"])
    model = AgentPRM(
        learner,
        toy,
        learning_rate=1e-3,
        n_iterations=1,
        # A random model is sure of itself for no reason: hence the temperature.
        rollout={"n_games": 4, "n_repeats": 8, "n_branch_states": 16, "n_branch_candidates": 4, "temperature": 3.0},
        prm={"init": "base", "n_epochs": 200, "batch_size": 2},
        improve={"n_updates": 100, "batch_size": 32},
        n_validation_games=0,
        seed=1,
    )
    assert evaluate_policy(model, toy, n_eval_episodes=8)[0] < 0.8
    model.learn(10**9)
    assert evaluate_policy(model, toy, n_eval_episodes=8)[0] == 1.0


def test_the_start_stays_where_every_iteration_is_clearly_worse(
    learner: str, household: VecEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its PRM is the one that was fitted to its rollouts, not the untrained one."""
    offer = BestPolicy.offer
    monkeypatch.setattr(BestPolicy, "offer", lambda self, model, _: offer(self, model, [not self.state()["most_wins"]]))
    model = make_model(AgentPRM, learner, household)
    before = model.lm.adapter_state(POLICY)
    model.learn(10)
    assert (model.iteration, model.best_iteration, model.best_success) == (1, 0, 1.0)
    assert all(torch.equal(before[name], value) for name, value in model.lm.adapter_state(POLICY).items())
    assert model.prm.head.weight.abs().max().item() > 0


def test_kept_is_the_last_policy_that_is_not_clearly_worse_than_the_best(learner: str) -> None:
    model = make_model(AgentPRM, learner, make_toy())
    kept = []
    # Of 100 games: the best wins 20 more than the start, the next lose 8 and 1 of what it won, the last loses 10, wins none.
    for model.iteration, n in zip((0, 0, 1, 2, 3), (70, 90, 82, 89, 80), strict=True):
        model.best.offer(model, [i < n for i in range(100)])
        kept.append(model.best_iteration)
    # Paired, 8 losses against none are 8 +- 2.7: clearly worse. 1 is not.
    assert kept == [0, 1, 1, 3, 3]
    model.best.withdraw()
    assert model.best_success == 0.89


def test_games_lost_and_won_in_turn_are_no_clear_difference() -> None:
    best = [True] * 90 + [False] * 10
    assert not clearly_worse([False] * 12 + [True] * 85 + [False] * 3, best)  # 12 lost, 7 won: 5 +- 4.3 points
    assert clearly_worse([False] * 12 + [True] * 78 + [False] * 10, best)  # 12 lost, none won
    assert not clearly_worse(best, [])


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"prm": {"init": "random"}}, "'policy'"),
        ({"prm": {"form": "cubic"}}, "log_prob"),
        ({"prm": {"learning_rate": float("nan")}}, "finite"),
        ({"rollout": {"n_games": 0}}, "n_games"),
        ({"rollout": {"n_games": 2.5}}, "whole number"),
        ({"rollout": {"n_games": True}}, "whole number"),
        ({"rollout": {"n_game": 4}}, "did you mean 'n_games'"),
        ({"rollout": 4}, "mapping"),
        ({"improve": {"n_samples": 1}}, "n_samples"),
        ({"improve": {"objective": "adam"}}, "online_dpo"),
        ({"gamma": 2}, "gamma"),
        ({"gamma": 0.0}, "gamma"),
        ({"gamma": "x"}, "gamma"),
        ({"n_envs": 0}, "n_envs"),
        ({"n_iterations": 1.5}, "n_iterations"),
        ({"improve": {"n_searched": -1}}, "n_searched"),
        ({"improve": {"n_searched": 4, "search_best_of": 1}}, "search_best_of"),
        # Options without effect.
        ({"improve": {"n_searched": 4, "imitation_coef": 0.0}}, "n_searched"),
        ({"improve": {"search_best_of": 8}}, "search_best_of=8 has no effect"),
        ({"improve": {"objective": "imitation", "beta": 0.3}}, "beta=0.3 has no effect"),
        ({"improve": {"objective": "imitation", "prior_visits": None}}, "prior_visits=None has no effect"),
        ({"improve": {"objective": "closed_form", "n_samples": 2}}, "n_samples=2 has no effect"),
        ({"on_divergence": "panic"}, "refit"),
        ({"max_divergence": -1}, "max_divergence"),
    ],
)
def test_settings_out_of_range_are_refused(
    learner: str, household: VecEnv, setting: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        make_model(AgentPRM, learner, household, **setting)


# ---------------------------------------------------------------------- the paper's recipe, and old saves
def test_the_papers_recipe(learner: str) -> None:
    model = AgentPRM.paper(learner, make_toy(), seed=3, rollout={"n_games": 2})
    assert (model.n_iterations, model.seed, model.rollout.n_games, model.rollout.n_repeats) == (3, 3, 2, 16)
    assert (model.rollout.n_branch_states, model.rollout.n_trunks, model.rollout.temperature) == (0, None, 0.3)
    assert (model.fit.form, model.fit.init, model.fit.rank_coef) == ("scalar", "base", 0.0)
    improve = model.improve
    assert (improve.objective, improve.n_samples, improve.margin, improve.beta) == ("online_dpo", 2, 0.0, 0.03)
    assert (improve.temperature, improve.prior_visits, improve.imitation_coef) == (0.7, None, 0.0)
    assert model.best_of_n(2).n == 16
    model = AgentPRM.paper(
        learner, make_toy(), n_iterations=1, rollout={"n_games": 2, "n_repeats": 2}, improve={"n_updates": 2}
    )
    assert model.learn().iteration == 1


def test_options_come_back_from_a_save(agent: Any, saved: Path) -> None:
    again = AgentPRM.load(saved)
    assert (again.rollout, again.fit, again.improve) == (agent.rollout, agent.fit, agent.improve)
    assert AgentPRM.load(saved, improve={"beta": 0.5}).improve.beta == 0.5


def with_settings(saved: Path, path: Path, settings: dict[str, Any]) -> Path:
    """A save with other constructor arguments."""
    found = read_save(saved)
    dropped = ("rollout", "prm", "improve")
    found.manifest["data"] = {k: v for k, v in found.manifest["data"].items() if k not in dropped} | settings
    write_save(path, found)
    return path


#: Constructor arguments of AgentPRM in version 0.1, where they were not the defaults.
VERSION_0_1: dict[str, Any] = {
    **{
        "n_games": 7,
        "temperature": 0.9,
        "prm_form": "scalar",
        "prm_learning_rate": 2e-3,
        "optimizer": "mpo",
        "loss": "dpo",
    },
    **{"n_samples": 5, "beta": 0.3, "batch_size": 9, "prm_batch_size": 3, "level": "turn", "clip_range": 0.2},
}


def test_saves_of_version_0_1_load(saved: Path, tmp_path: Path) -> None:
    silent = {name: value for name, value in VERSION_0_1.items() if name != "prm_form"}
    assert current_settings(silent, "AgentPRM", "")["prm"]["form"] == "scalar"  # as it was when it did not say
    old = {**VERSION_0_1, "prm_form": "log_prob"}  # as the save at hand has it
    model = AgentPRM.load(with_settings(saved, tmp_path / "old.zip", old))
    assert (model.rollout.n_games, model.rollout.temperature, model.fit.learning_rate) == (7, 0.9, 2e-3)
    assert (model.improve.objective, model.improve.beta, model.improve.batch_size) == ("closed_form", 0.3, 9)
    assert model.fit.batch_size == 3
    with pytest.warns(UserWarning, match="rank_loss='centred'"):
        AgentPRM.load(with_settings(saved, tmp_path / "odd.zip", {**old, "rank_loss": "centred"}))
    with pytest.raises(ValueError, match="start PPO from its policy"):
        AgentPRM.load(with_settings(saved, tmp_path / "ppo.zip", {**old, "optimizer": "ppo"}))


def test_learning_needs_a_limit(learner: str, household: VecEnv) -> None:
    with pytest.raises(ValueError, match="n_iterations"):
        make_model(AgentPRM, learner, household, n_iterations=None).learn()


# ---------------------------------------------------------------------- search
def test_what_the_prm_finds_by_search_is_imitated_and_no_evidence(learner: str, household: VecEnv) -> None:
    seen: dict[str, Any] = {}

    class Lucky(AgentImproveStage):
        """Wins two of the games that it searches, which does not happen by chance here; and writes down what it is given."""

        def search(self, *args: Any) -> Any:
            seen["before"] = model.num_timesteps
            seen["found"] = super().search(*args)
            for rollout in seen["found"][:2]:
                rollout.episode.success = True
            return seen["found"]

        def __call__(self, bandit: Bandit, states: Any, successes: Any = (), **kwargs: Any) -> ImproveStats:
            seen.update(states=states, successes=successes, trunks=model.stages.gathered.trunks)
            return super().__call__(bandit, states, successes, **kwargs)

    improve = Lucky(n_updates=2, batch_size=4, n_searched=3, search_best_of=5)
    rollout = {"n_games": 4, "n_repeats": 1, "n_branch_states": 0, "n_branch_candidates": 2}
    model: Any = AgentPRM(
        learner, household, n_iterations=1, rollout=rollout, improve=improve, n_validation_games=0, seed=0
    )
    model.learn()
    found = seen["found"]
    assert len({r.episode.game_id for r in found}) == 3
    assert model.num_timesteps - seen["before"] == sum(len(r.episode.turns) for r in found)
    assert any(len(turn.candidates) > 1 for r in found for turn in r.episode.turns)
    for turn in (turn for r in found for turn in r.episode.turns):
        worth = {c["command"]: c["score"] + POLICY_WEIGHT * c["log_prob"] for c in turn.candidates}
        assert turn.command == max(worth, key=worth.__getitem__)
    assert [episode for episode, _ in seen["successes"]] == [r.episode for r in found[:2]]
    assert {id(episode) for episode, _ in seen["states"]} <= {id(r.episode) for r in seen["trunks"]}


# ---------------------------------------------------------------------- where targets come from
def test_all_iterations_are_fitted_to_where_asked_for(learner: str) -> None:
    def train(aggregate: bool) -> list[int]:
        visits: list[int] = []

        class Counting(FitStage):
            def targets(self, experience: Experience, gamma: float) -> QTable:
                table = super().targets(experience, gamma)
                visits.append(sum(n * pairs for n, pairs in histogram(table).items()))
                return table

        settings = merged(
            SMALL_AGENT_PRM, {"n_iterations": 3, "rollout": {"n_branch_states": 0}, "n_validation_games": 0}
        )
        settings["improve"] = {**settings["improve"], "prior_visits": None}
        model = AgentPRM(learner, make_toy(), **{**settings, "prm": Counting(aggregate=aggregate)})
        model.learn()
        return visits

    alone, together = train(False), train(True)
    # One turn an episode, and as many episodes an iteration.
    assert alone == [alone[0]] * 3
    assert together == [alone[0], 2 * alone[0], 3 * alone[0]]


def test_targets_of_ones_own(learner: str) -> None:
    """The PRM is fitted to whatever targets a stage gives."""

    class AlwaysWon(FitStage):
        def targets(self, experience: Experience, gamma: float) -> QTable:
            table = QTable(1.0)
            for episode in experience.episodes:
                for key, turn in zip(state_keys(episode.task, episode.turns), episode.turns, strict=True):
                    table.visits.setdefault(key, {}).setdefault(turn.command, Visit()).add(1.0)
            return table

    fit = AlwaysWon(n_epochs=40, learning_rate=1e-2)
    model = AgentPRM(learner, make_toy(), **{**SMALL_AGENT_PRM, "n_validation_games": 0, "prm": fit})
    model.learn(1)
    (demo,) = echo_demonstrations()[:1]
    assert float(model.prm.score_turns(demo.task, demo.turns).mean()) > 0.9


# ---------------------------------------------------------------------- reading the paper beside the code
def named_in(text: str) -> list[str]:
    return re.findall(r"\| :(?:meth|class|func):`([\w.]+)` \|", text)


@pytest.mark.parametrize("algorithm", [AgentPRM, InversePRM])
def test_the_table_of_formulas_names_code_that_exists(algorithm: type) -> None:
    module = importlib.import_module(algorithm.__module__)
    names = named_in(module.__doc__ or "")
    assert len(names) >= 4
    for name in names:
        parts = name.split(".")
        if parts[0] == algorithm.__name__:
            assert callable(getattr(algorithm, parts[1]))
        else:
            assert callable(getattr(importlib.import_module(".".join(parts[:-1])), parts[-1]))


@pytest.mark.parametrize(("algorithm", "most"), [(AgentPRM, 25), (InversePRM, 22)])
def test_options_can_be_counted(algorithm: type, most: int) -> None:
    """All of them stand in the signature, so that none is hidden behind keywords."""
    parameters = inspect.signature(algorithm).parameters
    assert len(parameters) <= most
    assert all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    assert set(parameters) == set(algorithm.constructor_names())  # type: ignore[attr-defined]


def test_algorithm_1_fits_into_900_lines_of_six_files() -> None:
    modules = {name.rsplit(".", 1)[0] for name in named_in(importlib.import_module(AgentPRM.__module__).__doc__ or "")}
    files = {importlib.import_module(m).__file__ for m in modules if m.startswith("algorithms.")} | {
        importlib.import_module(AgentPRM.__module__).__file__
    }
    assert len(files) <= 6
    assert sum(len(Path(str(f)).read_text().splitlines()) for f in files) <= 900


def test_branches_try_every_command_as_often_and_with_the_same_random_numbers() -> None:
    turn = Turn(
        feedback="x",
        admissible_commands=("look", "inventory"),
        command="look",
        candidates=[{"command": c, "response": c, "score": None, "log_prob": -1.0} for c in ("look", "inventory")],
    )
    (episode,) = make_episodes(1)
    rollout = Rollout(replace(episode, turns=[turn, turn]), ["before", "after"], 0)
    tasks = branch_tasks(
        [rollout], n_states=2, n_candidates=2, n_rollouts=3, max_turns=9, seed=(5,), rng=np.random.default_rng(0)
    )
    assert len(tasks) == 2 * 2 * 3
    by_command: dict[tuple[object, str | None], list[Sequence[int]]] = {}
    for task in tasks:
        by_command.setdefault((task.options["snapshot"], task.first_command), []).append(task.seed)
    for state in ("before", "after"):
        assert by_command[state, "look"] == by_command[state, "inventory"]  # common random numbers
        assert len(set(by_command[state, "look"])) == 3
    assert by_command["before", "look"] != by_command["after", "look"]


def test_the_bar_of_a_run_without_a_number_of_turns_counts_iterations(
    learner: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []
    model = AgentPRM(
        learner, make_toy(), n_iterations=2, rollout={"n_games": 2, "n_repeats": 2}, improve={"n_updates": 2}
    )
    model.learn(progress_bar=True, callback=lambda names, _: bool(seen.append(1)) or True)
    err = capsys.readouterr().err
    assert "2/2" in err and f"{model.num_timesteps:,} turns" in err and "e+" not in err
    assert seen  # the user's own callback is called as well
