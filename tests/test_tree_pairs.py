"""Preferences of tree searches, label smoothing, advantage-weighted regression, and searches whose wins are imitated."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from algorithms import AgentPRM, OnlineDPO
from algorithms.common.acting.rollouts import RolloutTask, collect
from algorithms.common.learning.grouped import Played
from algorithms.common.prm.objectives.awr import MAX_WEIGHT, awr
from algorithms.common.prm.objectives.choice import Choice
from algorithms.common.prm.objectives.closed_form import closed_form
from algorithms.common.prm.objectives.online_dpo import dpo_loss
from algorithms.common.prm.objectives.smoothed_dpo import smoothed_dpo_loss
from algorithms.online_dpo.trees import TreeStage
from tests.algorithm_helpers import make_alfworld, make_model
from tests.chain_env import ON, make_chain
from tests.cli_helpers import Cli


def test_label_smoothing_by_hand() -> None:
    c, r, rc, rr = (torch.tensor([x]) for x in (-1.0, -2.0, -1.5, -1.0))
    m = 0.5 * ((-1.0 + 1.5) - (-2.0 + 1.0))  # beta times the margin: .75
    log = lambda x: math.log(1 / (1 + math.exp(-x)))  # noqa: E731
    found = smoothed_dpo_loss(c, r, rc, rr, 0.5, torch.tensor([0.2]))
    assert found.item() == pytest.approx(-0.8 * log(m) - 0.2 * log(-m))
    assert torch.equal(smoothed_dpo_loss(c, r, rc, rr, 0.5, torch.zeros(1)), dpo_loss(c, r, rc, rr, 0.5))
    even = [smoothed_dpo_loss(c + s, r - s, c, r, 0.5, torch.full((1,), 0.5)).item() for s in (-0.1, 0.0, 0.1)]
    assert even[1] < even[0] == pytest.approx(even[2])  # equal counts: no reason to move


def test_awr_is_the_closed_form_up_to_its_normaliser() -> None:
    """All commands drawn as often as the policy says, which has moved away from the reference."""
    reference = torch.log(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))
    scores, beta = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64), 0.4
    logits = torch.log(torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)).requires_grad_()
    log_probs = torch.log_softmax(logits, 0)
    choice = Choice(log_probs, reference, {0: 3, 1: 3, 2: 4}, dict(enumerate(scores.tolist())))
    (loss,) = awr([choice], beta)
    baseline = float(reference.exp() @ scores)
    z = float((reference.exp() * ((scores - baseline) / beta).exp()).sum())
    assert loss.item() == pytest.approx(z * closed_form(log_probs, reference, scores, beta).item())
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (expected,) = torch.autograd.grad(z * closed_form(log_probs, reference, scores, beta), logits)
    assert torch.allclose(gradient, expected)


def test_awr_caps_its_weights() -> None:
    row = torch.log(torch.tensor([0.5, 0.5], dtype=torch.float64)).requires_grad_()
    (loss,) = awr([Choice(row, row.detach(), {0: 1, 1: 1}, {0: 0.0, 1: 1.0})], 0.01)
    (gradient,) = torch.autograd.grad(loss, row)
    assert gradient.tolist() == pytest.approx([-0.5 * math.exp(-50), -0.5 * MAX_WEIGHT])


def test_awr_improves_a_policy(learner: str) -> None:
    model = make_model(AgentPRM, learner, make_chain(), improve={"objective": "awr"})
    model.learn(1)
    assert model.num_timesteps > 0


class TestTrees:
    def test_pairs_prefer_what_wins(self, learner: str) -> None:
        """In the chain only one command leads on, so every tree's pair prefers it, surely at the last room."""
        tree = {"n_trees": 30, "n_iterations": 24, "n_children": 2, "depth": 4}
        model = make_model(OnlineDPO, learner, make_chain(), tree=tree)
        venv = model.venv
        tasks = [RolloutTask({"game": 0}, (i,)) for i in range(16)]
        rollouts = collect(model.policy.actor(venv.num_envs), venv, tasks, snapshots=True) or []
        pairs = model.tree_pairs(model.tree, [Played(r, 0) for r in rollouts])
        assert pairs
        chosen = [p.played.episode.turns[p.turn].admissible_commands[p.chosen] for p in pairs]
        assert set(chosen) == {ON}
        assert all(0.0 <= p.epsilon < 0.5 for p in pairs)
        assert all(p.chosen != p.rejected for p in pairs)

    @pytest.mark.ci
    def test_it_learns_the_chain_from_trees(self, learner: str, tmp_path: Path) -> None:
        tree = {"n_trees": 8, "n_iterations": 16, "n_children": 2, "depth": 4, "backup": "max", "gamma": 0.9}
        model = make_model(OnlineDPO, learner, make_chain(), tree=tree, learning_rate=1e-2)

        def chance() -> float:
            actor = model.policy.actor(1)
            played = collect(actor, make_chain(1), [RolloutTask({"game": 0}, (0,), first_command=ON)]) or []
            first = played[0].episode.turns[0]
            assert first.command == ON
            from agentprm_gym.llm.scoring import episode_log_probs

            with torch.no_grad(), model.lm.active("policy"):
                ((row,),) = episode_log_probs(model.policy.responder, [played[0].episode], [[0]])
            return float(row[list(first.admissible_commands).index(ON)].exp())

        before = chance()
        model.learn(60)
        assert chance() > before
        model.save(tmp_path / "model.zip")
        assert OnlineDPO.load(tmp_path / "model.zip").tree == TreeStage(**tree)

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"n_trees": 0}, "tree.n_trees"), ({"backup": "sum"}, "'mean', 'max'"), ({"n_tree": 1}, "did you mean")],
    )
    def test_options_that_do_not_fit_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            TreeStage.of(options)


class TestDistilled:
    def test_agent_prm_imitates_what_a_search_wins(self, learner: str) -> None:
        improve = {
            "n_searched": 2,
            "search_best_of": 2,
            "searched_by": "predictive",
            "search_depth": 3,
            "search_options": {"gamma": 0.9},
        }
        model = make_model(AgentPRM, learner, make_chain(), improve=improve, n_iterations=1)
        model.learn()
        assert model.iteration == 1

    def test_options_without_effect_are_refused(self, learner: str) -> None:
        with pytest.raises(ValueError, match="no option 'alpha'"):
            make_model(
                AgentPRM,
                learner,
                make_chain(),
                improve={"n_searched": 2, "searched_by": "refine", "search_options": {"alpha": 1.0}},
            )
        with pytest.raises(ValueError, match="search_depth"):
            make_model(AgentPRM, learner, make_chain(), improve={"n_searched": 2, "search_depth": 3})


def test_the_command_line_searches_and_counts(cli: Cli, saved: Path) -> None:
    done = cli(
        *("eval", saved / "agent.zip", "--games", "generated", "--max-games", 2, "--max-steps", 3, "--n-envs", 2),
        *("--search", "beam", "--n", 2, "--depth", 2, "--search-options", "alpha=0.2", "beam=2", "--out", "out"),
    )
    assert done.status == 0, done.err
    result = json.loads(Path("out/result.json").read_text())
    assert result["search_options"] == {"alpha": 0.2, "beam": 2}
    assert result["calls"]["policy"] > 0 and result["calls"]["prm"] > 0 and result["calls"]["steps"] > 0
    assert make_alfworld(1).num_envs == 1
    refused = cli(
        "eval", saved / "agent.zip", "--games", "generated", "--search", "beam", "--search-options", "epsilon=1"
    )
    assert refused.status != 0
    assert "no option 'epsilon'" in refused.err
