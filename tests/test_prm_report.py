"""What is reported of a process reward model: measures by hand, the planner's Q along a plan, the log of a real fit."""

from __future__ import annotations

import itertools
import json
import math
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import Figure, KVWriter, configure
from stable_baselines3.common.vec_env import VecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agentprm_gym.episodes import Turn
from agentprm_gym.experts.planner import Planner
from agentprm_gym.games import GameList
from agentprm_gym.llm.scoring import Responder
from algorithms import AgentPRM
from algorithms.agent_prm.relative import MIN_GAP
from algorithms.agent_prm.report import labelled_states
from algorithms.agent_prm.targets import LabelledEpisode, Target
from algorithms.common.acting.actors import candidate_row
from algorithms.common.acting.rollouts import Rollout, RolloutTask, collect
from algorithms.common.measure.figures import record_planner
from algorithms.common.measure.heldout import LabelledState, judge_prm, record_heldout
from algorithms.common.measure.planner import choose_states, planner_report, planner_targets
from algorithms.common.measure.prm_measures import (
    ScoredState,
    calibration,
    candidate_log_probs,
    judge_choices,
    kendall_tau,
    rank_states,
)
from algorithms.common.measure.samples import candidates_markdown
from tests.algorithm_helpers import make_alfworld, make_model, make_toy
from tests.llm_helpers import randomise

HELD_OUT = {f"prm/heldout_{name}" for name in ("ece", "kendall_tau", "top1", "choice_gain")}
PLANNER = {f"prm/planner_{name}" for name in ("kendall_tau", "top1", "choice_gain", "policy_top1", "states")}
FIGURES = {"prm/calibration", "prm/fit_curve"}


def scored(scores: list[float], targets: list[float], log_probs: list[float] | None = None) -> ScoredState:
    return ScoredState(np.array(scores), np.array(targets), None if log_probs is None else np.array(log_probs))


# ---------------------------------------------------------------------- calibration
def test_calibration_by_hand() -> None:
    # Bins of a quarter: 0.1 once and 0.2 three times, (0.1 + 0.6) / 4 = 0.175 against 0.75; none; 0.5 against 0; 0.9 against 1.
    found = calibration([0.1, 1.0, 0.2, 0.5, 0.8], [0.0, 1.0, 1.0, 0.0, 1.0], [1, 1, 3, 2, 1], n_bins=4)
    np.testing.assert_allclose(found.scores, [0.175, 0.5, 0.9])
    np.testing.assert_allclose(found.targets, [0.75, 0.0, 1.0])
    np.testing.assert_array_equal(found.weights, [4, 2, 2])
    assert found.ece == pytest.approx((4 * 0.575 + 2 * 0.5 + 2 * 0.1) / 8)


def test_weights_are_visits() -> None:
    pooled = calibration([0.32, 0.71], [0.5, 1.0], [2, 1])
    apart = calibration([0.32, 0.32, 0.71], [0.0, 1.0, 1.0])
    assert pooled.ece == pytest.approx(apart.ece)
    np.testing.assert_allclose(pooled.targets, apart.targets)
    # Weight 0 is as good as absent, and does not make a bin.
    assert len(calibration([0.1, 0.9], [0.0, 1.0], [0, 1]).weights) == 1


def test_scores_that_keep_their_promise_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    came = rng.random(20_000) < p
    assert calibration(p, came).ece < 0.02
    # Twice as sure in log-odds: right about which are better, wrong about how good they are.
    odds = (p / (1 - p)) ** 2
    assert calibration(odds / (1 + odds), came).ece > 0.08


def test_no_scores_have_no_calibration() -> None:
    found = calibration([], [])
    assert math.isnan(found.ece) and found.scores.shape == found.targets.shape == found.weights.shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5], [1.0, 0.0]), r"\(1,\), \(2,\)"),
        (([1.5], [1.0]), r"scores must lie in \[0, 1\], got 1.5"),
        (([math.nan], [1.0]), "scores must lie in .*got nan"),
        (([0.5], [2.0]), "targets must lie in"),
        (([0.5], [1.0], [-1]), "weights must lie in"),
        (([0.5], [1.0], [1], 0), "n_bins must be 1 or more, got 0"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibration(*arguments)


# ---------------------------------------------------------------------- order within a state
def brute_force_tau(x: list[int], y: list[int]) -> float:
    """Tau-b pair by pair, as the textbook has it."""
    concordant = discordant = only_x = only_y = 0
    for i, j in itertools.combinations(range(len(x)), 2):
        dx, dy = x[i] - x[j], y[i] - y[j]
        if dx * dy > 0:
            concordant += 1
        elif dx * dy < 0:
            discordant += 1
        elif dx != 0:
            only_y += 1
        elif dy != 0:
            only_x += 1
    untied = (concordant + discordant + only_x) * (concordant + discordant + only_y)
    return (concordant - discordant) / math.sqrt(untied) if untied else math.nan


def test_kendall_tau_by_hand() -> None:
    assert kendall_tau([1, 2, 3], [10, 20, 30]) == 1.0
    assert kendall_tau([3, 2, 1], [10, 20, 30]) == -1.0
    # Six pairs: one tied in the scores, one in the targets, four in order: 4 / sqrt(5 * 5).
    assert kendall_tau([1, 1, 2, 3], [1, 2, 3, 3]) == pytest.approx(0.8)


def test_kendall_tau_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    n_defined = 0
    for _ in range(300):
        n = int(rng.integers(1, 8))
        x, y = (rng.integers(0, 4, n).tolist() for _ in range(2))
        np.testing.assert_allclose(kendall_tau(x, y), brute_force_tau(x, y), atol=1e-12)
        n_defined += not math.isnan(brute_force_tau(x, y))
    assert 150 < n_defined < 300  # both kinds were met


def test_top_one_shares_ties() -> None:
    right = scored([0.1, 0.9, 0.2], [0.0, 1.0, 0.5])
    half = scored([0.9, 0.9, 0.2], [0.0, 1.0, 0.5])  # one of its two favourites is best
    either = scored([0.1, 0.2, 0.9], [0.0, 1.0, 1.0])  # there are two best ones, it likes one of them
    wrong = scored([0.9, 0.2, 0.1], [0.0, 1.0, 0.5])
    assert [rank_states([s]).top1 for s in (right, half, either, wrong)] == [1.0, 0.5, 1.0, 0.0]
    assert rank_states([right, half, either, wrong]).top1 == 0.625


def test_states_where_nothing_is_better_do_not_count() -> None:
    report = rank_states([scored([0.1, 0.9], [0.0, 0.0]), scored([0.5], [1.0]), scored([0.9, 0.1], [0.0, 1.0])])
    assert report.n_states == 1 and report.kendall_tau == -1.0 and report.top1 == 0.0
    nothing = rank_states([scored([0.1, 0.9], [0.0, 0.0])])
    assert nothing.n_states == 0 and all(map(math.isnan, (nothing.kendall_tau, nothing.top1, nothing.pair_accuracy)))


def test_no_opinion_is_chance() -> None:
    """A PRM that scores everything alike must not be left with the states where it happens to be right."""
    blank, right = scored([0.5, 0.5], [0.0, 1.0]), scored([0.2, 0.5], [0.0, 1.0])
    assert math.isnan(kendall_tau(blank.scores, blank.targets))
    assert rank_states([blank, right]).kendall_tau == 0.5
    assert rank_states([blank, right]).top1 == 0.75


def test_order_is_judged_state_by_state() -> None:
    """Good states told from bad ones, commands of a state the wrong way round: pooled, that would look splendid."""
    states = [scored([0.9, 0.8], [0.9, 1.0]), scored([0.2, 0.1], [0.0, 0.1])]
    pooled = kendall_tau(*(np.concatenate(x) for x in zip(*((s.scores, s.targets) for s in states), strict=True)))
    assert pooled > 0 and rank_states(states).kendall_tau == -1.0 and rank_states(states).pair_accuracy == 0.0


def test_pairs_count_from_a_gap_on() -> None:
    state = scored([0.3, 0.2, 0.1], [0.0, 0.05, 1.0])  # all three pairs are the wrong way round
    assert rank_states([state, scored([0.1, 0.9], [0.0, 0.5])]).pair_accuracy == 1 / 4
    assert rank_states([state, scored([0.1, 0.9], [0.0, 0.5])], min_gap=0.1).pair_accuracy == 1 / 3


@pytest.mark.parametrize(
    ("parts", "message"),
    [(([0.1, 0.2], [0.0]), "one number a command"), (([], []), "1 or more"), (([math.nan], [0.0]), "finite")],
)
def test_odd_states_are_refused(parts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scored(*parts)


# ---------------------------------------------------------------------- the choice
def test_the_choice_by_hand() -> None:
    targets = [1.0, 0.5, 0.0]
    best, middle, worst = ([float(i == k) for i in range(3)] for k in range(3))
    for scores, gain, ratio in (
        (best, 0.5, 1.0),
        (middle, 0.0, 0.0),
        (worst, -0.5, -1.0),
        ([1.0, 1.0, 0.0], 0.25, 0.5),
    ):
        report = judge_choices([scored(scores, targets)])
        assert (report.gain, report.possible, report.ratio) == (gain, 0.5, ratio)
    # Two states: a state in which more is to be gained counts more.
    both = judge_choices([scored(best, targets), scored([1.0, 0.0], [0.0, 0.2])])
    assert both.gain == pytest.approx((0.5 - 0.1) / 2) and both.possible == pytest.approx((0.5 + 0.1) / 2)
    assert both.ratio == pytest.approx(0.4 / 0.6) and both.n_states == 2


def test_a_random_command_is_the_policys() -> None:
    # Unnormalised: three to one for the better one, worth 0.75 on average.
    report = judge_choices([scored([0.1, 0.9], [0.0, 1.0], [-700.0 - math.log(3), -700.0])])
    assert report.gain == pytest.approx(0.25) and report.possible == pytest.approx(0.25)


def test_no_choice_has_no_gain() -> None:
    assert math.isnan(judge_choices([scored([0.5], [1.0])]).ratio)
    same = judge_choices([scored([0.1, 0.9], [0.5, 0.5])])
    assert (same.gain, same.possible, same.n_states) == (0.0, 0.0, 1) and math.isnan(same.ratio)


def test_log_probs_are_taken_from_the_candidates() -> None:
    turn = Turn(feedback="", admissible_commands=["a", "b", "c"], command="a")
    assert candidate_log_probs(turn, ["a"]) is None
    turn.candidates = [candidate_row("a", None, -0.5), candidate_row("b", None, -2.0)]
    np.testing.assert_array_equal(candidate_log_probs(turn, ["b", "a"]), [-2.0, -0.5])
    assert candidate_log_probs(turn, ["a", "c"]) is None  # another episode tried that one
    turn.candidates = [candidate_row("a", None, -9.0, "REASON: hm\nACTION: a"), candidate_row("b", None, -2.0)]
    assert candidate_log_probs(turn, ["a", "b"]) is None  # of a reason and the command


# ---------------------------------------------------------------------- the planner
@pytest.fixture(scope="module")
def household() -> VecEnv:
    return make_alfworld()


def follow_plan(venv: VecEnv, game: int, plan: tuple[str, ...]) -> Rollout:
    """A rollout of a shortest plan, with snapshots."""
    env: Any = venv.envs[0]  # type: ignore[attr-defined]
    env.reset(options={"game": game})
    snapshots = []
    for command in plan:
        snapshots.append(env.unwrapped.snapshot())
        env.step(command)
    assert env.unwrapped.cost_to_go() == 0
    return Rollout(env.unwrapped.episode(), snapshots, 0)


@pytest.mark.parametrize("game", [0, 5])
def test_the_planners_targets_along_a_plan(household: VecEnv, generated_games: GameList, game: int) -> None:
    plan = Planner(generated_games[game]).plan()
    rollout = follow_plan(household, game, plan)
    found = planner_targets(household, [(rollout, t) for t in range(len(plan))], gamma=0.9)
    assert found is not None and len(plan) > 3
    for t, (q, turn) in enumerate(zip(found, rollout.episode.turns, strict=True)):
        left = len(plan) - 1 - t
        assert list(q) == list(turn.admissible_commands)
        assert q[plan[t]] == max(q.values()) == pytest.approx(0.9**left)
        # A glance at one's pockets costs a turn, and changes nothing.
        assert q["inventory"] == pytest.approx(0.9 ** (left + 1))
    assert found[-1][plan[-1]] == 1.0


def test_a_dead_end_is_worth_nothing(household: VecEnv, generated_games: GameList) -> None:
    """In some games a thing can be taken that fits nowhere, and fills the hand for good."""
    for game in range(60):
        planner = Planner(generated_games[game])
        snapshots = follow_plan(household, game, planner.plan()).snapshots
        rollout = Rollout(household.envs[0].unwrapped.episode(), snapshots, 0)  # type: ignore[attr-defined]
        found = planner_targets(household, [(rollout, t) for t in range(len(snapshots))], 0.9) or []
        for state, q in zip(snapshots, found, strict=True):
            costs = planner.action_costs(state.engine)  # type: ignore[attr-defined]
            dead = [c for c, cost in costs.items() if cost == math.inf]
            if dead:
                assert [q[c] for c in dead] == [0.0] * len(dead)
                return
    raise AssertionError("no dead end in 60 games")


def test_branches_have_snapshots_from_where_they_begin(household: VecEnv, generated_games: GameList) -> None:
    plan = Planner(generated_games[0]).plan()
    whole = follow_plan(household, 0, plan)
    branch = Rollout(whole.episode, whole.snapshots[2:], 2)
    assert planner_targets(household, [(branch, 2)], 0.9) == planner_targets(household, [(whole, 2)], 0.9)
    for rollout, t in ((branch, 1), (whole, len(plan)), (Rollout(whole.episode, [], 0), 0)):
        with pytest.raises(ValueError, match=f"no snapshot of turn {t} of .*snapshots=True"):
            planner_targets(household, [(rollout, t)], 0.9)


def test_environments_without_a_planner_have_no_targets(learner: str) -> None:
    toy = make_toy()
    model = make_model(AgentPRM, learner, toy)
    rollouts = collect(model.policy.actor(8), toy, [RolloutTask({"game": 0}, (0,))], snapshots=True) or []
    assert planner_targets(toy, [(rollouts[0], 0)], 0.9) is None
    rng = np.random.default_rng(0)
    assert planner_report(model.prm, toy, rollouts, gamma=0.9, rng=rng) is None
    record_planner(model.logger, None)
    assert not model.logger.name_to_value


@pytest.fixture(scope="module")
def played(household: VecEnv) -> tuple[Any, list[Rollout]]:
    """An AgentPRM with an opinion on every command, which the random model has not, and what it played."""
    model = make_model(AgentPRM, "tiny", household)
    randomise(model.lm, "prm", seed=1)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(2)
        model.prm.head.weight.copy_(torch.randn(model.prm.head.weight.shape, generator=generator) / 4)
    tasks = [RolloutTask({"game": g}, (g, i), max_turns=8) for g in range(3) for i in range(2)]
    return model, collect(model.policy.actor(4), household, tasks, snapshots=True) or []


def test_chosen_states_are_distinct_and_of_all_rollouts(played: tuple[Any, list[Rollout]]) -> None:
    _, rollouts = played
    states = choose_states(rollouts, 12, np.random.default_rng(0))
    assert Counter(id(r) for r, _ in states) == {id(r): 2 for r in rollouts}
    # Six episodes of three games: a game's first state is one state.
    everything = choose_states(rollouts, 10**6, np.random.default_rng(0))
    assert sum(t == 0 for _, t in everything) == 3
    assert len({(id(r), t) for r, t in everything}) == len(everything)
    assert choose_states([], 5, np.random.default_rng(0)) == []


def test_the_planners_report_is_what_one_finds_state_by_state(played: tuple[Any, list[Rollout]]) -> None:
    model, rollouts = played
    report = planner_report(
        model.prm,
        model.get_env(),
        rollouts,
        gamma=0.9,
        rng=np.random.default_rng(3),
        responder=model.policy.responder,
        n_states=30,
        batch_size=4,
    )
    assert report is not None
    states = choose_states(rollouts, 30, np.random.default_rng(3))
    targets = planner_targets(model.get_env(), states, 0.9)
    assert targets is not None
    taus, top1, policy_top1 = [], [], []
    greedy = model.policy.actor(1, temperature=0.0)
    for (rollout, t), q in zip(states, targets, strict=True):
        e = rollout.episode
        commands = list(e.turns[t].admissible_commands)
        ((z,),) = model.prm.score([(e.task, e.turns, [(t, commands)])])
        values = [q[c] for c in commands]
        taus.append(kendall_tau(z.tolist(), values))
        top1.append(values[int(z.argmax())] == max(values))
        task = RolloutTask({"snapshot": rollout.snapshots[t]}, (0,), history=list(e.turns[:t]), max_turns=t + 1)
        (again,) = collect(greedy, make_alfworld(1), [task]) or []
        policy_top1.append(q[again.episode.turns[t].command] == max(values))
    assert 20 <= len(states) == report.ranking.n_states and report.ranking.kendall_tau == pytest.approx(
        np.mean(taus), abs=1e-3
    )
    assert report.ranking.top1 == pytest.approx(np.mean(top1))
    assert report.policy_top1 == pytest.approx(np.mean(policy_top1))
    assert 0 < report.choice.possible < 1 and report.choice.ratio <= 1


def test_a_policy_that_writes_freely_is_left_out(played: tuple[Any, list[Rollout]]) -> None:
    model, rollouts = played
    rng = np.random.default_rng(3)
    report = planner_report(model.prm, model.get_env(), rollouts, gamma=0.9, rng=rng, n_states=4)
    assert report is not None and math.isnan(report.policy_top1) and not math.isnan(report.ranking.kendall_tau)
    logger = configure(None, [])
    record_planner(logger, report)
    assert set(logger.name_to_value) == PLANNER - {"prm/planner_policy_top1"}


def test_a_sample_of_turns_shows_what_the_prm_and_the_policy_think(played: tuple[Any, list[Rollout]]) -> None:
    model, rollouts = played
    episodes = [r.episode for r in rollouts]
    for e in episodes[:3]:
        head, *rows = candidates_markdown(model.prm, model.policy.responder, [e], np.random.default_rng(0)).split("\n")[
            4:
        ]
        outcome = "won" if e.success else "lost"
        said = re.search(rf"turn (\d) of {len(e.turns)}, {outcome}: ", head)
        assert said is not None
        t = int(said[1]) - 1
        commands = list(e.turns[t].admissible_commands)
        ((q,),) = model.prm.score([(e.task, e.turns, [(t, commands)])])
        shown = {re.sub("[▶★] ", "", row.split(" | ")[0][2:]): row.split(" | ")[1:] for row in rows}
        assert len(shown) == min(6, len(commands)) and e.turns[t].command in shown
        for command, (chance, score) in shown.items():
            assert float(score.strip(" |")) == pytest.approx(float(q[commands.index(command)]), abs=6e-4)
            assert 0 <= float(chance.strip("%")) <= 100
        # Sorted by Q, and the best of all is there.
        assert "★" in rows[0] and commands[int(q.argmax())] in rows[0] and "★" not in "".join(rows[1:])
        assert [row for row in rows if "▶" in row and e.turns[t].command in row]
    every = candidates_markdown(model.prm, model.policy.responder, episodes, np.random.default_rng(0))
    assert every.count("★") == 1 + len(episodes)  # one explains it
    writes = Responder(model.lm, mode="generate")
    assert candidates_markdown(model.prm, writes, episodes, np.random.default_rng(0)) == ""


# ---------------------------------------------------------------------- the report of a fit
def test_held_out_labels_are_judged_within_their_state(played: tuple[Any, list[Rollout]]) -> None:
    model, rollouts = played
    e = rollouts[0].episode
    a, b = e.turns[0].admissible_commands[:2]
    ((first, second),) = model.prm.score([(e.task, e.turns, [(0, [a, b]), (1, [e.turns[1].command])])])
    better = a if first[0] > first[1] else b
    worse = b if better == a else a
    for good, tau, gain in ((better, 1.0, 1.0), (worse, -1.0, -1.0)):
        rows = [(0, a, float(a == good), 3), (1, e.turns[1].command, 0.5, 1), (0, b, float(b == good), 1)]
        targets = [Target(0, t, b"", command, q, n, math.inf) for t, command, q, n in rows]
        report = judge_prm(labelled_states(model.prm, [LabelledEpisode(e, targets)]), MIN_GAP)
        assert report.ranking.n_states == report.n_pairs == 1
        assert (report.ranking.kendall_tau, report.choice.ratio) == (tau, gain)
        assert report.ranking.top1 == report.ranking.pair_accuracy == report.pair_accuracy == float(tau > 0)
        expected = calibration(
            [*first.tolist(), *second.tolist()], [float(a == good), float(b == good), 0.5], [3, 1, 1]
        )
        assert report.calibration.ece == pytest.approx(expected.ece, abs=1e-5)
    nothing = judge_prm([], MIN_GAP)
    assert nothing.ranking.n_states == nothing.choice.n_states == 0 and math.isnan(nothing.calibration.ece)


@pytest.mark.parametrize("informed", [True, False])
def test_a_prm_that_says_nothing_is_warned_of(informed: bool) -> None:
    targets = [torch.tensor([float(i % 2)]) for i in range(200)]
    states = [
        LabelledState(torch.tensor([2.0 if bool(y) == informed else -2.0]), y, torch.tensor([1.0])) for y in targets
    ]
    report = judge_prm(states, MIN_GAP)
    assert report.constant_bce == pytest.approx(math.log(2)) and report.n_targets == 200
    logger = configure(None, [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        record_heldout(logger, report, [0.7])
        record_heldout(logger, judge_prm(states[:10], MIN_GAP), [0.7])  # of so few nothing is said
    assert [str(w.message).count("no better than a constant") for w in caught] == ([] if informed else [1])


@pytest.mark.parametrize("right", [True, False])
def test_a_prm_that_orders_commands_is_not_warned_of(right: bool) -> None:
    """Its scores are all too low, so a constant has the smaller cross-entropy."""
    logits, targets = torch.tensor([-4.0, -5.0]), torch.tensor([1.0, 0.0] if right else [0.0, 1.0])
    report = judge_prm([LabelledState(logits, targets, torch.ones(2))] * 60, MIN_GAP)
    assert report.bce > report.constant_bce and report.pair_accuracy == float(right)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        record_heldout(configure(None, []), report, [0.7])
    assert len(caught) == int(not right)


class Keeper(KVWriter):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.excluded: dict[str, tuple[str, ...]] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.values |= key_values
        self.excluded |= key_excluded

    def close(self) -> None:
        pass


def test_a_fit_logs_its_report(learner: str, household: VecEnv, tmp_path: Path) -> None:
    model = make_model(AgentPRM, learner, household, rollout={"n_games": 10, "n_branch_states": 12})
    logger, keeper = configure(str(tmp_path), ["tensorboard", "json", "csv"]), Keeper()
    logger.output_formats.append(keeper)
    model.set_logger(logger)
    model.learn(10)
    logger.close()
    assert HELD_OUT | PLANNER | FIGURES <= set(keeper.values)
    for tag in PLANNER | {"prm/heldout_ece"}:
        assert math.isfinite(keeper.values[tag]), tag
    assert 0 <= keeper.values["prm/heldout_ece"] <= 1 and 1 <= keeper.values["prm/planner_states"] <= 64
    # The figures are where figures can be shown, and nowhere else.
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert "samples/candidates/text_summary" in events.Tags()["tensors"]
    assert set(events.Tags()["images"]) == FIGURES and PLANNER | HELD_OUT <= set(events.Tags()["scalars"])
    assert all(isinstance(keeper.values[tag], Figure) for tag in FIGURES)
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert not any(FIGURES & set(row) for row in rows) and any(PLANNER <= set(row) for row in rows)
    # 9 games to fit on, in batches of 8: an update's loss each.
    axis = keeper.values["prm/fit_curve"].figure.axes[0]
    losses = axis.lines[0].get_ydata()
    assert len(losses) == 2 and np.mean(losses) == pytest.approx(keeper.values["prm/loss"])


def test_a_toy_logs_no_planner(learner: str) -> None:
    toy = make_toy()
    model = make_model(AgentPRM, learner, toy, rollout={"n_games": 10})
    keeper = Keeper()
    logger = configure(None, [])
    logger.output_formats.append(keeper)
    model.set_logger(logger)
    model.learn(10)
    assert set(keeper.values) >= HELD_OUT and not set(keeper.values) & PLANNER
