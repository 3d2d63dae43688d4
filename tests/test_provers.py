"""Provers of PAV against simulation, aggregation of turn scores, and weights that anneal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentprm_gym.bench.ranker import RankerError, UniformRanker
from agentprm_gym.episodes import Turn
from agentprm_gym.prm.rewards import PRMReward
from agentprm_gym.rewards import (
    ScoredTurn,
    best_of_k,
    best_of_k_advantage,
    episode_score,
    make_reward,
    turn_credit,
)
from algorithms import AgentPRM
from algorithms.bench.names import check_ranker_name, make_ranker
from algorithms.bench.provers import ProverRanker
from tests.algorithm_helpers import make_model, make_toy
from tests.bench_helpers import state_of
from tests.test_reward_models import opinionated

Q, PI = np.array([0.02, 0.3, 0.8]), np.array([0.5, 0.3, 0.2])


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_the_closed_form_is_that_of_a_simulated_best_of_k(k: int) -> None:
    rng, n = np.random.default_rng(0), 200_000
    won = np.stack([(rng.random((n, k)) < q).any(axis=1).mean() for q in Q])  # from (s, a), k times
    first = rng.choice(3, (n, k), p=PI)  # from s: each continuation draws its own command
    value = (rng.random((n, k)) < Q[first]).any(axis=1).mean()
    error = 4 * 0.5 / np.sqrt(n) * 2
    np.testing.assert_allclose(best_of_k_advantage(Q, PI, k, centred=False), won - value, atol=error)
    np.testing.assert_allclose(best_of_k_advantage(Q, PI, k), won - PI @ won, atol=error)


def test_the_papers_form_charges_for_turns_and_the_centred_one_does_not() -> None:
    for k in (2, 4, 32):
        assert PI @ best_of_k_advantage(Q, PI, k, centred=False) < 0
        assert PI @ best_of_k_advantage(Q, PI, k) == pytest.approx(0)
    np.testing.assert_allclose(best_of_k_advantage(Q, PI, 1, centred=False), Q - PI @ Q)
    # K magnifies near 0 and mutes near 1; tiny chances keep their digits.
    assert np.diff(best_of_k([0.02, 0.05], 4))[0] == pytest.approx(0.108, abs=5e-4)
    assert np.diff(best_of_k([0.8, 0.9], 4))[0] == pytest.approx(0.0015, abs=5e-5)
    assert best_of_k(1e-18, 4) == pytest.approx(4e-18, rel=1e-9)
    assert best_of_k([0.0, 1.0], 3).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("q", "k"), [([0.5], 0), ([1.5], 2), ([-0.1], 2), ([0.5], 2.5)])
def test_what_is_no_chance_and_no_number_of_draws_is_refused(q: list[float], k: Any) -> None:
    with pytest.raises(ValueError, match=r"best_of|chances"):
        best_of_k(q, k)


def test_a_prover_as_a_reward(learner: str) -> None:
    model = make_model(AgentPRM, learner, make_toy())
    opinionated(model)
    commands = ("apple", "bowl", "egg")
    candidates = [{"command": c, "log_prob": float(np.log(p))} for c, p in zip(commands, PI, strict=True)]
    turn = Turn(
        feedback="You see egg.", admissible_commands=commands, command="bowl", candidates=candidates, response="bowl"
    )
    scored = ScoredTurn("say it.", [turn], terminated=False)
    (values,) = model.prm.score([("say it.", [turn], [(0, list(commands))])])
    q = values[0].double().numpy()
    for k in (1, 4):
        (got,) = PRMReward(model.prm, form="advantage", best_of=k, coef=2.0).score([scored])
        assert got == pytest.approx(2 * best_of_k_advantage(q, PI, k)[1], abs=1e-6)
    with pytest.raises(ValueError, match="best_of=4 has no effect with form='value'"):
        PRMReward(model.prm, form="value", best_of=4)
    with pytest.raises(ValueError, match="best_of"):
        PRMReward(model.prm, form="advantage", best_of=0)


def test_a_prover_in_the_benchmark(tmp_path: Path) -> None:
    class Sure:
        name, scale = "sure", "logit"

        def score(self, task: str, history: Any, commands: Any) -> list[float]:
            return [float(i) for i in range(len(commands))]

    states = [state_of([0.0, 0.5, 1.0]), state_of([0.1, 0.2], name="t")]
    for state, row in zip(states, ProverRanker(Sure(), 3).score_states(states), strict=True):
        chances = 1 / (1 + np.exp(-np.arange(len(state.commands))))
        np.testing.assert_allclose(row, 1 - (1 - chances) ** 3)
    with pytest.raises(RankerError, match="chances of winning"):
        ProverRanker(UniformRanker(), 3)
    for wrong in ("prover:0:prm:x", "prover:4", "prover:x:uniform"):
        with pytest.raises(ValueError, match="prover:K:RANKER"):
            check_ranker_name(wrong)
    with pytest.raises(FileNotFoundError):
        check_ranker_name(f"prover:4:prm:{tmp_path}/none.zip")
    with pytest.raises(RankerError, match="chances"):
        make_ranker("prover:4:uniform")


# ---------------------------------------------------------------------- aggregation
def test_credits_by_hand() -> None:
    r = [0.5, 0.25, 1.0, 0.75]
    assert turn_credit(r, "clip", kappa=0.6).tolist() == pytest.approx([-0.1, -0.35, 0.0, 0.0])
    assert turn_credit(r, "delta").tolist() == pytest.approx([0.25, -0.75, 0.25, 0.0])
    assert turn_credit(r, "difference").tolist() == pytest.approx([0.5, -0.25, 0.75, -0.25])
    assert turn_credit(r, "min", tau=1e-3).tolist() == pytest.approx([0, 0.25, 0, 0])
    weights = np.exp(-np.array(r) / 0.5)
    np.testing.assert_allclose(turn_credit(r, "min", tau=0.5), weights / weights.sum() * np.array(r))
    assert episode_score(r, "max") == 1.0


def test_no_credit_pays_for_playing_on() -> None:
    """A turn that scores .9 is repeated: the sum grows, and these returns do not."""
    short, long = [0.9] * 3, [0.9] * 30
    assert sum(long) > sum(short)
    for how in ("clip", "delta", "min", "difference"):
        assert turn_credit(long, how, kappa=0.5).sum() == pytest.approx(turn_credit(short, how, kappa=0.5).sum())


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"how": "mini"}, "did you mean 'min'"),
        ({"how": "min", "tau": 0.0}, "tau"),
        ({"how": "clip", "kappa": float("nan")}, "kappa"),
    ],
)
def test_credits_that_do_not_exist_are_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        turn_credit([0.5], **given)
    with pytest.raises(ValueError, match="one turn or more"):
        turn_credit([], "delta")


# ---------------------------------------------------------------------- annealing
def test_alpha_goes_along_a_line_and_stays() -> None:
    turn = ScoredTurn("t", [Turn(feedback="x", admissible_commands=("a",), command="a")], terminated=False)
    ones = {"reward": lambda turns: np.ones(len(turns))}
    reward: Any = make_reward("annealed", part=ones, start=5.0, end=1.0, n_turns=8)
    paid = [reward.score([turn, turn]).tolist() for _ in range(6)]
    assert paid == [[a, a] for a in (5.0, 4.0, 3.0, 2.0, 1.0, 1.0)]
    with pytest.raises(ValueError, match="n_turns"):
        make_reward("annealed", part=ones, n_turns=0)
    with pytest.raises(ValueError, match="part 0 of the annealed reward"):
        make_reward("annealed", part={"rewards": "progress"})
