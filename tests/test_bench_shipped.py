"""The panels that come with the package: what they hold, and that their recipe makes them again."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from agentprm_gym.bench import PanelMetrics, read_panel, score_panel
from agentprm_gym.bench.labels import fair_labels, on_policy_labels, oracle_labels, steps_to_go
from agentprm_gym.bench.panel import Panel
from agentprm_gym.bench.ranker import LabelRanker, UniformRanker
from agentprm_gym.bench.states import PLAYERS
from agentprm_gym.games import find_games
from agentprm_gym.games.names import TASK_TYPES
from algorithms import SFT
from algorithms.bench.on_policy import PolicyPlaysOn
from benchmarks.bench_panel import MAX_STEPS, POLICIES, SEED, WALK, _rounded

#: States whose labels are made again here; all of them with ``benchmarks.bench_panel --from-plays``.
N_AGAIN = 6


@pytest.fixture(scope="module")
def panel() -> Panel:
    return read_panel("generated")


def test_what_it_holds(panel: Panel) -> None:
    assert Counter(s.player for s in panel.states) == dict.fromkeys(PLAYERS, 500)
    assert {s.task_type for s in panel.states} == set(TASK_TYPES)
    assert {s.split for s in panel.states} == {"valid_seen", "valid_unseen"}
    assert sum(any(s.dead_end) and not all(s.dead_end) for s in panel.states) >= 100
    assert min(sum(s.turn < 8 for s in panel.states), sum(s.turn >= 8 for s in panel.states)) >= 400
    assert panel.labels == ("oracle", "fair", "on_policy")
    assert {s.labels["on_policy"].n for s in panel.states} == {4}


def test_known_rankers_score_as_they_must(panel: Panel) -> None:
    oracle = PanelMetrics(panel.states, "oracle", n_samples=0)
    planner = oracle.measure([row.tolist() for row in score_panel(LabelRanker("oracle"), panel.states)])
    assert planner["regret"].overall.value == pytest.approx(0.0, abs=1e-12)
    assert planner["pair_accuracy"].overall.value == 1.0
    assert planner.n_walks >= 4 * 400 // (2 * WALK)
    uniform = oracle.measure([row.tolist() for row in score_panel(UniformRanker(), panel.states)])
    assert uniform["pair_accuracy"].overall.value == pytest.approx(0.5)


@pytest.mark.ci
@pytest.mark.parametrize("name", ["generated", "real"])
def test_labels_are_made_again_to_the_last_digit(name: str) -> None:
    source = "generated" if name == "generated" else "alfworld"
    try:
        games = {g.game_id: g for split in ("valid_seen", "valid_unseen") for g in find_games(split, source)}
        states = read_panel(name).states
    except FileNotFoundError:
        pytest.skip("ALFWorld's games are not here: set ALFWORLD_DATA to their folder")
    for i in np.random.default_rng(0).permutation(len(states))[:N_AGAIN]:
        state, game = states[int(i)], games[states[int(i)].game_id]
        bare = replace(state, labels={}, steps_to_go=())
        assert steps_to_go(game, bare) == state.steps_to_go
        assert _rounded(oracle_labels(game, bare)) == state.labels["oracle"]
        assert _rounded(fair_labels(game, bare)) == state.labels["fair"]


@pytest.mark.parametrize(
    "name", [pytest.param("generated", marks=pytest.mark.ci), pytest.param("real", marks=pytest.mark.slow)]
)
def test_labels_of_the_policy_are_made_again(name: str) -> None:
    """The policy draws with the same random numbers; where a probability rounds otherwise, it may draw another command."""
    source = "generated" if name == "generated" else "alfworld"
    try:
        games = {g.game_id: g for g in find_games("valid_seen", source)}
        states = [s for s in read_panel(name).states if s.split == "valid_seen" and len(s.commands) < 16]
    except FileNotFoundError:
        pytest.skip("ALFWorld's games are not here: set ALFWORLD_DATA to their folder")
    play_on = PolicyPlaysOn(SFT.load(POLICIES / "sft_v1.zip", env=None).policy, source, max_steps=MAX_STEPS)
    assert {s.labels["on_policy"].n for s in states} == {4}
    states = [states[int(i)] for i in np.random.default_rng(0).permutation(len(states))[:2]]
    found = on_policy_labels([(games[s.game_id], s) for s in states], play_on, 4, SEED)
    pairs = [
        (a, b)
        for state, labels in zip(states, found, strict=True)
        for a, b in zip(_rounded(labels).values, state.labels["on_policy"].values, strict=True)
    ]
    assert np.mean([a == b for a, b in pairs]) >= 0.9
    assert any(b > 0 for _, b in pairs)
