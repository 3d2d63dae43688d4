"""The targets around Algorithm 1, each against numbers by hand or against the exact values of a game with three rooms."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.states import state_keys
from algorithms import AgentPRM
from algorithms.agent_prm.branching import branch_tasks
from algorithms.agent_prm.fit import FitStage
from algorithms.agent_prm.labels import Notes, make_targets
from algorithms.agent_prm.options import FitOptions
from algorithms.agent_prm.rollout import Experience
from algorithms.agent_prm.target_entropic import entropic_mean
from algorithms.agent_prm.target_reference import Reference, advantages
from algorithms.agent_prm.target_siblings import entropy_of, sibling_advantages
from algorithms.agent_prm.target_td import progress_loss, td_table
from algorithms.agent_prm.targets import QTable, turn_returns
from algorithms.agent_prm.values import ValueOptions, fit_value, predict_values
from algorithms.common.acting.policy import POLICY
from algorithms.common.acting.rollouts import Rollout
from algorithms.common.learning.value import VALUE
from tests.algorithm_helpers import SMALL_AGENT_PRM, make_model, make_toy, merged
from tests.chain_env import BACK, N_ROOMS, ON, make_chain
from tests.test_resume import LONG, go_on, same

GAMMA = 0.9


def played(commands: Sequence[str], rewards: Sequence[float], n_history: int = 0) -> Rollout:
    """A rollout that says the commands, each at a feedback of its own."""
    turns = [
        Turn(feedback=f"room {t}", admissible_commands=("a", "b", "c"), command=c, reward=r)
        for t, (c, r) in enumerate(zip(commands, rewards, strict=True))
    ]
    episode = Episode(game_id="g", split="train", task_type="t", task="task", success=rewards[-1] > 0, turns=turns)
    return Rollout(episode, [], n_history)


def label(table: QTable, rollout: Rollout, turn: int, command: str | None = None) -> float:
    episode = rollout.episode
    key = state_keys(episode.task, episode.turns)[turn]
    return table.visits[key][command or episode.turns[turn].command].mean


def value_of(rollout: Rollout, values: Sequence[float]) -> dict[bytes, float]:
    return dict(zip(state_keys(rollout.episode.task, rollout.episode.turns), values, strict=True))


# ---------------------------------------------------------------------- TD and GAE
def test_labels_of_one_step_and_of_many_by_hand() -> None:
    won = played("abc", [0, 0, 1.0])
    values = value_of(won, [0.2, 0.5, 0.6])
    td = td_table([won], [], values, GAMMA, 0.0)
    assert [label(td, won, t) for t in range(3)] == pytest.approx([0.9 * 0.5, 0.9 * 0.6, 1.0])
    # delta = .25, .04, .4; A = delta + .45 A' with gamma lambda = .45
    a2, a1 = 0.4, 0.04 + 0.45 * 0.4
    half = td_table([won], [], values, GAMMA, 0.5)
    assert [label(half, won, t) for t in range(3)] == pytest.approx(
        [0.2 + 0.25 + 0.45 * a1, 0.5 + a1, 0.6 + a2], abs=1e-12
    )
    whole = td_table([won], [], values, GAMMA, 1.0)
    assert [label(whole, won, t) for t in range(3)] == pytest.approx(turn_returns(won.episode, GAMMA).tolist())


def test_labels_are_means_over_visits_and_histories_do_not_count() -> None:
    one, branch = played("ab", [0, 1.0]), played("ab", [0, 0.0], n_history=1)
    table = td_table([one, branch], [], value_of(one, [0.3, 0.5]), GAMMA, 0.0)
    assert label(table, one, 0) == pytest.approx(0.45)
    assert label(table, one, 1) == pytest.approx(0.5)  # the mean of 1 and 0
    assert [v.n for c in table.visits.values() for v in c.values()] == [1, 2]


def test_a_reward_that_is_no_outcome_is_refused() -> None:
    odd = played("a", [5.0])
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        td_table([odd], [], value_of(odd, [0.5]), GAMMA, 0.0)


def test_progress_is_compared_between_neighbours() -> None:
    logits = [torch.tensor([0.0, 5.0]), torch.tensor([math.log(3.0)]), torch.tensor([0.0])]
    targets = [torch.tensor([0.2, 0.0]), torch.tensor([0.9]), torch.tensor([0.1])]
    # Q = .5, .75: progress .25 where .7 is wanted. The third turn does not follow the second.
    found = progress_loss(logits, targets, [0, 0, 0], [0, 1, 3])
    assert float(found) == pytest.approx((0.25 - 0.7) ** 2)
    assert float(progress_loss(logits, targets, [None, 0, 0], [0, 1, 2])) == pytest.approx((-0.25 + 0.8) ** 2)
    assert float(progress_loss(logits, targets, [0, None, 0], [0, 1, 2])) == 0.0


# ---------------------------------------------------------------------- the chain, whose values are known
def chain_value(room: int, p: float) -> float:
    """V of a policy that goes on with probability p: Q(room, ON) = GAMMA V(room + 1), or 1 in the last room."""
    return p * (1.0 if room == N_ROOMS - 1 else GAMMA * chain_value(room + 1, p))


def chain_q(room: int, command: str, p: float) -> float:
    if command == BACK:
        return 0.0
    return 1.0 if room == N_ROOMS - 1 else GAMMA * chain_value(room + 1, p)


def peeking(learner: str, **prm: Any) -> tuple[Any, Experience]:
    """An AgentPRM on the chain, and what its first stage played."""
    settings = merged(
        SMALL_AGENT_PRM,
        {
            "rollout": {"n_games": 1, "n_repeats": 24, "n_branch_states": 2, "n_peek_states": 40, "temperature": 3.0},
            "n_validation_games": 0,
            "prm": {"target": "td", **prm},
            "gamma": GAMMA,
        },
    )
    model = AgentPRM(learner, make_chain(), **settings)
    model.learn(1)
    return model, model.fit_seen  # type: ignore[attr-defined]


@pytest.fixture
def seen(learner: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Experience]:
    kept: dict[str, Experience] = {}
    plain = AgentPRM._fit_prm

    def fit(self: AgentPRM, experience: Experience) -> None:
        plain(self, experience)
        kept["experience"] = experience

    monkeypatch.setattr(AgentPRM, "_fit_prm", fit)
    monkeypatch.setattr(AgentPRM, "fit_seen", property(lambda self: kept["experience"]), raising=False)
    return peeking(learner)


def test_one_step_of_the_engine_labels_every_command_that_was_weighed(seen: tuple[Any, Experience]) -> None:
    """With the exact V the label of any command is its exact Q, also where it was never played out."""
    _, experience = seen
    assert experience.peeks and experience.notes is not None
    assert not any(r.episode.success for r in experience.peeks)  # a peek is no win to imitate
    p = 0.7
    exact: dict[bytes, float] = {}
    for r in (*experience.trunks, *experience.branches, *experience.peeks):
        for room, key in enumerate(state_keys(r.episode.task, r.episode.turns)):
            exact[key] = chain_value(room, p)
    assert set(exact) == set(experience.notes.values)  # V was told for all of them
    table = td_table([], experience.peeks, exact, GAMMA, 0.0)
    labels = {
        (r.n_history, r.episode.turns[r.n_history].command): label(table, r, r.n_history) for r in experience.peeks
    }
    assert {c for _, c in labels} == {ON, BACK}
    for (room, command), got in labels.items():
        assert got == pytest.approx(chain_q(room, command, p))


def test_peeks_cost_one_step_each_and_are_kept_in_checkpoints(seen: tuple[Any, Experience], tmp_path: Any) -> None:
    model, experience = seen
    turns = sum(len(r.episode.turns) - r.n_history for r in (*experience.trunks, *experience.branches))
    assert model.num_timesteps == turns + len(experience.peeks)
    Experience.write(tmp_path, experience)
    again = Experience.read(tmp_path)
    assert [(r.episode, r.n_history) for r in again.peeks] == [(r.episode, r.n_history) for r in experience.peeks]


def test_a_value_model_learns_how_often_a_state_is_won(learner: str) -> None:
    """One room of three is always won from, and one never."""
    model = make_model(AgentPRM, learner, make_toy())
    won, lost = played("a", [1.0]), played("b", [0.0])
    lost.episode.task = "another task"
    options = ValueOptions(learning_rate=1e-2, batch_size=2, n_epochs=60, micro_batch_size=2)
    pairs = [(won.episode, 0), (lost.episode, 0)]
    value = fit_value(model.policy.responder, pairs, GAMMA, options, np.random.default_rng(0), POLICY)
    found = predict_values(value, [won.episode, lost.episode], 1)
    assert found[state_keys("task", won.episode.turns)[0]] > 0.9
    assert found[state_keys("another task", lost.episode.turns)[0]] < 0.1
    with pytest.raises(ValueError, match="no episode"):
        fit_value(model.policy.responder, [(won.episode, 1)], GAMMA, options, np.random.default_rng(0), POLICY)


def test_a_run_with_each_target(learner: str) -> None:
    """They run on the toy through stage 3; the adapter of the value model is gone behind it."""
    for prm in (
        {"target": "gae", "progress_coef": 0.5},
        {"target": "td", "centre": "siblings", "shaping_coef": 0.5},
        {"target": "entropic", "eta": -2.0},
    ):
        settings = merged(SMALL_AGENT_PRM, {"rollout": {"n_peek_states": 4, "branch_states": "entropy"}, "prm": prm})
        model = AgentPRM(learner, make_toy(), **settings)
        model.learn(10**9)
        assert model.iteration == 1 and VALUE not in model.lm.adapters
        assert all(torch.isfinite(p).all() for p in model.prm.parameters())


def test_the_reference_stays_the_first_policy_and_survives_a_restart(learner: str) -> None:
    settings = merged(SMALL_AGENT_PRM, {"n_iterations": 2, "prm": {"shaping_coef": 0.8, "shaping_decay": 0.25}})
    model = AgentPRM(learner, make_toy(), **settings)
    noted: list[tuple[float, dict[bytes, float]]] = []
    first: list[Experience] = []
    prepare = model.labels.prepare

    def prepared(experience: Experience) -> None:
        prepare(experience)
        assert experience.notes is not None and experience.notes.reference is not None
        first.append(experience)
        noted.append((experience.notes.reference.alpha, dict(experience.notes.reference.values)))

    model.labels.prepare = prepared  # type: ignore[method-assign]
    model.learn(10**9)
    assert sorted({alpha for alpha, _ in noted}, reverse=True) == pytest.approx([0.8, 0.2])
    # A copy that takes the state over tells the same of the same states.
    other = AgentPRM(learner, make_toy(), **settings)
    other.labels.restore(model.labels.state())
    again = Experience(first[0].trunks, first[0].others, first[0].branches)
    other.labels.prepare(again)
    assert again.notes is not None and again.notes.reference is not None
    assert again.notes.reference.values == pytest.approx(noted[0][1], abs=1e-5)
    shared = [values for _, values in noted]
    common = shared[0].keys() & shared[-1].keys()
    assert common and all(shared[0][k] == pytest.approx(shared[-1][k], abs=1e-5) for k in common)


@pytest.mark.ci
def test_a_run_that_is_killed_goes_on_with_the_same_targets(learner: str, tmp_path: Path) -> None:
    """Values of states are no part of a checkpoint: they are fitted again, from the same random stream."""
    toy = make_toy()
    settings = {
        "n_iterations": 2,
        "rollout": {"n_peek_states": 4},
        "prm": {"init": "base", "target": "td", "shaping_coef": 0.5},
        "policy_kwargs": {"lora": {"r": 4, "lora_dropout": 0.1}},
    }
    model = make_model(AgentPRM, learner, toy, **settings)
    model.checkpoint_dir = tmp_path / "run"
    write = model.write_checkpoint

    def watched(gathered: Any) -> None:
        write(gathered)
        stage = model.stages_done[-1] if model.stages_done else "end"
        shutil.copytree(model.checkpoint_dir, tmp_path / f"{model.iteration}-{stage}")

    model.write_checkpoint = watched
    model.learn(LONG)
    for copy in ("0-roll out", "0-fit", "1-end", "1-fit"):
        torch.manual_seed(99)
        assert same(go_on(AgentPRM, tmp_path / copy, toy), model), copy


# ---------------------------------------------------------------------- entropic
@pytest.mark.parametrize(
    ("eta", "expected"),
    [
        (1.0, [0.082, 0.357, 0.620, 0.828, 0.968]),
        (2.0, [0.139, 0.477, 0.717, 0.878, 0.978]),
        (5.0, [0.425, 0.727, 0.863, 0.943, 0.990]),
        (-1.0, [0.032, 0.172, 0.380, 0.643, 0.918]),
        (0.0, [0.05, 0.25, 0.5, 0.75, 0.95]),
        (1e-9, [0.05, 0.25, 0.5, 0.75, 0.95]),
    ],
)
def test_entropic_targets_of_win_shares(eta: float, expected: list[float]) -> None:
    wins = [1, 5, 10, 15, 19]
    found = [entropic_mean([1.0] * n + [0.0] * (20 - n), eta) for n in wins]
    assert found == pytest.approx(expected, abs=6e-4)
    mirrored = [1 - entropic_mean([0.0] * n + [1.0] * (20 - n), -eta) for n in wins]
    assert found == pytest.approx(mirrored)  # y_{-eta}(p) = 1 - y_eta(1 - p)


def test_entropic_targets_tend_to_the_extremes_and_prefer_the_risky_short_win() -> None:
    assert entropic_mean([0.1, 0.9], 100.0) == pytest.approx(0.9, abs=0.01)
    assert entropic_mean([0.1, 0.9], -100.0) == pytest.approx(0.1, abs=0.01)
    safe, risky = [0.6, 0.6], [1.0, 0.0]
    assert entropic_mean(safe, 5.0) < entropic_mean(risky, 5.0)
    assert entropic_mean(safe, -5.0) > entropic_mean(risky, -5.0)
    visits = [played("ab", [0, 1.0]), played("ab", [0, 0.0]), played("b", [1.0])]
    table = make_targets(FitOptions(target="entropic", eta=2.0), Experience(visits), GAMMA)
    assert label(table, visits[0], 0) == pytest.approx(math.log((math.exp(1.8) + 1) / 2) / 2)
    assert (label(table, visits[2], 0), table.visits.popitem()[1]["b"].n) == (1.0, 2)


# ---------------------------------------------------------------------- siblings
def test_siblings_are_measured_from_the_others() -> None:
    assert sibling_advantages([1.0, 0.0, 0.5]) == pytest.approx([0.75, -0.75, 0.0])
    visits = [played("ab", [0, 1.0]), played("b", [1.0]), played("c", [0.0])]
    table = make_targets(FitOptions(centre="siblings"), Experience(visits), GAMMA)
    # Returns .9, 1, 0: advantages .4, .55, -.95, mapped by (A + 1) / 2; the second state had one command and no label.
    assert len(table.visits) == 1
    assert [label(table, r, 0) for r in visits] == pytest.approx([0.7, 0.775, 0.025])
    again = make_targets(FitOptions(), Experience(visits), GAMMA)
    assert [label(again, r, 0) for r in visits] == pytest.approx([0.9, 1.0, 0.0])


def weighed(probabilities: Sequence[float]) -> Turn:
    candidates = [{"command": f"c{i}", "log_prob": math.log(p)} for i, p in enumerate(probabilities)]
    return Turn(feedback="x", admissible_commands=("c0", "c1", "c2"), command="c0", candidates=candidates)


def test_branches_begin_where_the_policy_is_unsure() -> None:
    sure, unsure = weighed([0.999, 0.001]), weighed([0.5, 0.25])
    assert entropy_of(unsure) == pytest.approx(0.5 * math.log(2) + 2 * 0.25 * math.log(4))  # .25 is left over
    assert entropy_of(Turn(feedback="x", admissible_commands=(), command="")) == 0.0
    episode = Episode(game_id="g", split="s", task_type="t", task="t", success=False, turns=[sure, unsure, sure, sure])
    rollout = Rollout(episode, list(range(4)), 0)

    def chosen(prefer: str) -> list[Any]:
        return [
            branch_tasks(
                [rollout],
                n_states=1,
                n_candidates=2,
                max_turns=9,
                seed=(0,),
                rng=np.random.default_rng(i),
                prefer=prefer,
            )[0].options["snapshot"]
            for i in range(40)
        ]

    assert chosen("entropy").count(1) > 35 and chosen("uniform").count(1) < 25


# ---------------------------------------------------------------------- a reference policy
def chain_experience() -> Experience:
    """Every way through the chain, as often as is needed for each of them once."""
    rollouts = []
    for n_on, last in product(range(N_ROOMS), (ON, BACK)):
        if last == ON and n_on < N_ROOMS - 1:
            continue
        commands = [ON] * n_on + [last]
        rollouts.append(played(commands, [0.0] * n_on + [float(last == ON)]))
    return Experience(rollouts)


def chain_notes(experience: Experience, p: float, alpha: float) -> Notes:
    values = {
        key: chain_value(room, p)
        for r in experience.trunks
        for room, key in enumerate(state_keys(r.episode.task, r.episode.turns))
    }
    return Notes(values, Reference(values, alpha))


def test_advantages_of_an_episode_add_up_to_its_return_less_the_first_value() -> None:
    """Only so with -V(s) kept on the turn that ends it: ending a game early where V is high gains nothing."""
    experience = chain_experience()
    values = chain_notes(experience, 0.6, 0.5).values
    for rollout in experience.trunks:
        total = sum(GAMMA**t * a for t, a in enumerate(advantages(rollout, values, GAMMA)))
        first = values[state_keys(rollout.episode.task, rollout.episode.turns)[0]]
        assert total == pytest.approx(turn_returns(rollout.episode, GAMMA)[0] - first)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_shaping_by_the_policy_itself_keeps_the_order_of_the_exact_q(alpha: float) -> None:
    p = 0.6
    experience = chain_experience()
    experience.notes = chain_notes(experience, p, alpha)
    # TD with the exact V gives the exact Q; shaped by the same policy it is (1 - alpha) Q + alpha (Q - V), mapped.
    table = make_targets(FitOptions(target="td", shaping_coef=0.5), experience, GAMMA)
    longest = experience.trunks[-1]
    for room in range(N_ROOMS):
        for command in (ON, BACK):
            q, v = chain_q(room, command, p), chain_value(room, p)
            expected = ((1 - alpha) * q + alpha * (q - v) + alpha) / (1 + alpha)
            assert label(table, longest, room, command) == pytest.approx(expected)
        assert label(table, longest, room, ON) > label(table, longest, room, BACK)


def test_without_alpha_and_without_options_targets_are_monte_carlo() -> None:
    experience = chain_experience()
    plain = make_targets(FitOptions(), experience, GAMMA)
    experience.notes = chain_notes(experience, 0.6, 0.0)
    shaped = make_targets(FitOptions(shaping_coef=0.5), experience, GAMMA)
    assert plain.visits == shaped.visits == experience.add_visits(QTable(GAMMA)).visits


# ---------------------------------------------------------------------- options
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"target": "tdd"}, "did you mean 'td'"),
        ({"centre": "median"}, "siblings"),
        ({"gae_lambda": 1.5, "target": "gae"}, "gae_lambda"),
        ({"gae_lambda": 0.5}, "gae_lambda=0.5 has no effect"),
        ({"progress_coef": 1.0}, "progress_coef=1.0 has no effect"),
        ({"value_epochs": 2}, "value_epochs=2 has no effect"),
        ({"eta": 2.0}, "eta=2.0 has no effect"),
        ({"eta": 1e3, "target": "entropic"}, "eta"),
        ({"shaping_decay": 0.1}, "shaping_decay=0.1 has no effect"),
        ({"shaping_coef": 2.0}, "shaping_coef"),
        ({"target": "td", "discount": "none"}, "does not fit values of states"),
        ({"shaping_coef": 0.5, "reward_range": "signed"}, "does not fit values of states"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        FitStage(**options)


def test_targets_that_need_values_say_so() -> None:
    with pytest.raises(ValueError, match="prepare"):
        make_targets(FitOptions(target="td"), chain_experience(), GAMMA)
