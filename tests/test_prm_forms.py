"""Forms of the process reward model, and the guard against reward hacking."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import configure

from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.scoring import Responder, episode_log_probs
from agentprm_gym.prm import ProcessRewardModel, load_prm
from agentprm_gym.prm.model import FORMS
from agentprm_gym.prm.running import RunningScores
from algorithms import AgentPRM, InversePRM
from algorithms.agent_prm.fit import FitStage
from algorithms.agent_prm.targets import QTable, label_episodes
from algorithms.common.prm.guard import Guard
from tests.algorithm_helpers import SMALL_AGENT_PRM, make_toy, merged
from tests.llm_helpers import make_episodes, randomise, weigh_repeats


@pytest.fixture(scope="module")
def prm(learner: str) -> ProcessRewardModel:
    model = ProcessRewardModel(LanguageModel.load(learner), form="log_prob")
    randomise(model.lm, "prm", scale=0.2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(model.head.weight.shape, generator=generator) * 0.1)
        model.head.bias.fill_(0.3)
    return model


# ---------------------------------------------------------------------- what is read
@pytest.mark.parametrize("form", FORMS)
def test_reasons_are_left_out_where_they_are_not_to_be_read(learner: str, form: str, tmp_path: Path) -> None:
    """However the scores are asked for, and after saving; with sampled tokens that hold the reason, too."""
    kwargs: dict[str, Any] = {
        "policy_kwargs": {"reason": True, "template": "full"},
        "prm": {"form": form},
        "demonstrations": make_episodes(2),
    }
    model: Any = InversePRM(learner, make_toy(), **kwargs)
    randomise(model.lm, "prm", scale=0.2)
    with torch.no_grad():
        model.prm.head.weight.fill_(0.05)
    model.save(tmp_path / "model")
    prompt = model.lm.prompt
    bare = make_episodes(2)
    said = [
        replace(
            turn,
            reason="I wonder why",
            response="...",
            tokens=prompt.with_reason(prompt.command_ids("I wonder why")[:-1], turn.command, stopped=True),
        )
        for turn in bare[0].turns
    ]
    talking = [replace(bare[0], turns=said), bare[1]]
    assert talking[0].bare() == bare[0].bare()

    def scores(prm: ProcessRewardModel, episodes: list[Episode]) -> list[float]:
        alone = [prm.score_turns(e.task, e.turns) for e in episodes]
        every = [row for of_episode in prm.score_all(episodes) for row in of_episode]
        running = RunningScores(prm).score([(e.task, e.turns, ["look"]) for e in episodes])
        return [*torch.cat([*alone, *every]).tolist(), *(q for found in running for q in found.values())]

    for prm in (model.prm, load_prm(tmp_path / "model.zip")):
        assert not prm.read_reasons
        expected = scores(prm, bare)
        assert scores(prm, talking) == pytest.approx(expected, abs=1e-4)
        prm.read_reasons = True
        assert scores(prm, talking) != pytest.approx(expected, abs=1e-3)


# ---------------------------------------------------------------------- Q as log-probabilities
def test_commands_of_a_state_rank_as_the_adapter_would_say_them(prm: ProcessRewardModel) -> None:
    episodes = make_episodes(4)
    items = [
        (e.task, e.turns, [(t, list(turn.admissible_commands)) for t, turn in enumerate(e.turns)]) for e in episodes
    ]
    with torch.no_grad(), prm.lm.active(prm.adapter):
        logits = prm.logits(items)
        log_probs = episode_log_probs(Responder(prm.lm), episodes)
    alpha = float(prm.head.log_alpha.detach().exp())  # type: ignore[union-attr, operator]
    for of_episode, expected in zip(logits, log_probs, strict=True):
        for z, row in zip(of_episode, expected, strict=True):
            offset = z - alpha * row  # v(s), the same for every command
            assert offset.tolist() == pytest.approx([float(offset[0])] * len(z), abs=1e-4)
            assert len(z) == 1 or float(z.std()) > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_all_commands_score_as_each_alone(learner: str, form: str) -> None:
    prm = ProcessRewardModel(LanguageModel.load(learner), form=form)
    randomise(prm.lm, "prm", scale=0.2)
    with torch.no_grad():
        prm.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    weigh_repeats(prm)
    episodes = make_episodes(3)
    episodes[2].turns[2].command = episodes[2].turns[1].command = (
        episodes[2].turns[0].command
    )  # repeated, and in the trunk
    episodes[0].turns[0].command = "dance"
    turns = [[0], [1, 0], list(range(len(episodes[2].turns)))]
    for e, which, rows in zip(episodes, turns, prm.score_all(episodes, turns), strict=True):
        expected = prm.score([(e.task, e.turns, [(t, list(e.turns[t].admissible_commands)) for t in which])])[0]
        for row, q in zip(rows, expected, strict=True):
            assert torch.sigmoid(row).tolist() == pytest.approx(q.tolist(), abs=1e-4)


def test_v_moves_all_commands_alike(prm: ProcessRewardModel) -> None:
    (episode,) = make_episodes(1)
    items = [(episode.task, episode.turns, [(0, list(episode.turns[0].admissible_commands))])]
    with torch.no_grad(), prm.lm.active(prm.adapter):
        ((before,),) = prm.logits(items)
        prm.head.bias += 1.0
        ((after,),) = prm.logits(items)
        prm.head.bias -= 1.0
    assert (after - before).tolist() == pytest.approx([1.0] * len(before), abs=1e-5)


def test_a_command_is_worth_more_or_less_where_it_was_executed_before(prm: ProcessRewardModel) -> None:
    """Once, twice, and three times or more; at the turn itself and by the same model without an opinion on repeats."""
    turns = [Turn(feedback="Nothing happens.", admissible_commands=["look", "inventory"], command="look")] * 5
    items = [("put a mug in fridge", turns, [(t, ["inventory", "look"]) for t in range(5)])]
    with torch.no_grad(), prm.lm.active(prm.adapter):
        (before,) = prm.logits(items)
        weigh_repeats(prm)
        (after,) = prm.logits(items)
        r = prm.head.repeats.clone()
        prm.head.repeats.zero_()
    for n, (old, new) in enumerate(zip(before, after, strict=True)):
        expected = 0.0 if n == 0 else float(r[min(n, 3) - 1])
        assert (new - old).tolist() == pytest.approx([0.0, expected], abs=1e-5)


def test_a_save_from_before_repeats_were_counted_says_nothing_of_them(learner: str) -> None:
    prm = ProcessRewardModel(LanguageModel.load(learner), form="log_prob")
    weigh_repeats(prm)
    heads = prm.heads_state()
    del heads["prm"]["repeats"]
    prm.load_heads_state(heads)
    assert prm.head.repeats.tolist() == [0.0, 0.0, 0.0]
    assert "repeats" not in heads["prm"]  # what was given stays as it is


def test_the_fit_learns_that_going_in_circles_does_not_win(learner: str) -> None:
    """Half of the players look again and again and lose, the others win at their second turn."""

    def played(commands: list[str], won: bool) -> Episode:
        turns = [
            Turn(feedback="You see a mug 1.", admissible_commands=["look", "inventory"], command=c) for c in commands
        ]
        turns[-1].reward = float(won)
        return replace(make_episodes(1)[0], turns=turns, success=won)

    prm = ProcessRewardModel(LanguageModel.load(learner), form="log_prob")
    episodes = [played(["look", "inventory"], True), played(["look"] * 6, False)] * 8
    table = QTable(0.95)
    table.add(episodes)
    rng = np.random.default_rng(0)
    FitStage(batch_size=2, n_epochs=8)(prm, label_episodes(episodes, table) * 8, micro_batch_size=2, rng=rng)
    assert all(r < -0.5 for r in prm.head.repeats.tolist())


def test_what_is_not_admissible_ranks_below_what_is(prm: ProcessRewardModel) -> None:
    turn = Turn(feedback="You see a mug 1.", admissible_commands=["look", "inventory"], command="dance")
    ((scores,),) = prm.score([("put a mug in fridge", [turn], [(0, ["look", "inventory", "dance"])])])
    assert scores.argmin() == 2


def test_the_head_learns_beside_the_adapter(prm: ProcessRewardModel) -> None:
    (episode,) = make_episodes(1)
    with prm.lm.active(prm.adapter, train=True):
        ((logits,),) = prm.logits([(episode.task, episode.turns, [(0, ["look"])])])
        logits.sum().backward()
    parameters = prm.parameters()
    assert all(p.grad is not None for p in parameters)
    assert {id(p) for p in prm.head.parameters()} <= {id(p) for p in parameters}
    for p in parameters:
        p.grad = None


def test_a_save_keeps_the_form(learner: str, tmp_path: Path) -> None:
    model: Any = AgentPRM(learner, make_toy(), prm={"form": "log_prob"}, seed=0)
    randomise(model.lm, "prm", scale=0.2)
    with torch.no_grad():
        model.prm.head.bias.fill_(0.7)
        model.prm.head.log_alpha.fill_(math.log(0.5))
    model.save(tmp_path / "agent.zip")
    (episode,) = make_episodes(1)
    items = [(episode.task, episode.turns, [(0, ["look", "inventory"])])]
    for again in (load_prm(tmp_path / "agent.zip"), AgentPRM.load(tmp_path / "agent.zip").prm):
        assert again.form == "log_prob"
        assert torch.allclose(again.score(items)[0][0], model.prm.score(items)[0][0], atol=1e-6)
    other: Any = AgentPRM(learner, make_toy(), prm={"form": "scalar"}, seed=0)
    with pytest.raises(ValueError, match="log_prob"):
        other.set_parameters({"prm": model.get_parameters()["prm"]}, exact_match=False)


def test_only_a_scalar_form_is_exported(prm: ProcessRewardModel, tmp_path: Path) -> None:
    for export in (prm.export, prm.export_adapter):
        with pytest.raises(ValueError, match="scalar"):
            export(tmp_path)


@pytest.mark.parametrize("algorithm", [AgentPRM, InversePRM])
def test_commands_of_a_policy_that_writes_freely_are_not_compared(learner: str, algorithm: Any) -> None:
    with pytest.raises(ValueError, match="constrained"):
        algorithm(learner, make_toy(), policy_kwargs={"action_mode": "generate"})


# ---------------------------------------------------------------------- reward hacking
class Hacked(Guard):
    """Finds a divergence after every improvement."""

    def _divergence(self, *_: Any) -> float:
        return 0.5


def guarded(learner: str, **kwargs: Any) -> Any:
    settings = merged(
        SMALL_AGENT_PRM, {"n_validation_games": 2, "n_iterations": 2, "rollout": {"n_branch_states": 0}}, kwargs
    )
    model = AgentPRM(learner, make_toy(), **settings)
    model.guard = Hacked(model.guard.answer, model.guard.max_divergence)
    return model


def test_scores_that_leave_success_behind_are_told(learner: str) -> None:
    model = guarded(learner)
    with pytest.warns(UserWarning, match="further than true success"):
        model.learn()
    assert model.iteration == 2


def test_stopping_takes_the_improvement_back(learner: str) -> None:
    model = guarded(learner, on_divergence="stop")
    before = model.get_parameters()["policy"]
    with pytest.warns(UserWarning, match="learning ends"):
        model.learn()
    after = model.get_parameters()["policy"]
    assert model.num_timesteps > 0 and model.iteration <= 1
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_refitting_plays_more_and_improves_again(learner: str) -> None:
    plain = guarded(learner, n_iterations=1)
    plain.guard = Guard(max_divergence=1.0)
    plain.learn()
    fitted_to: list[int] = []

    class Counting(FitStage):
        def targets(self, experience: Any, gamma: float) -> Any:
            fitted_to.append(len(experience.trunks))
            return super().targets(experience, gamma)

    model = guarded(learner, on_divergence="refit", n_iterations=1, prm=Counting(), improve={"prior_visits": None})
    with pytest.warns(UserWarning, match="improved again"):
        model.learn()
    assert model.num_timesteps > plain.num_timesteps
    assert fitted_to[0] < fitted_to[1] and len(fitted_to) == 2


class Opinionated(ProcessRewardModel):
    """Gives scores of a list in place of its own, one an episode."""

    opinions: list[float]

    def score(self, items: Any) -> Any:
        return [[torch.tensor([self.opinions.pop(0)])] for _ in items]


@pytest.mark.parametrize(
    ("score", "success", "n", "diverged"),
    [
        (0.7, 0.25, 64, True),  # scores rose by .4, success by .125
        (0.7, 0.5, 64, False),  # by .4 and .375
        (0.7, 0.25, 8, False),  # of so few episodes that is nothing
        (0.7, 0.25, 0, False),  # nothing to compare with
    ],
)
def test_the_guard_compares_rises(learner: str, score: float, success: float, n: int, diverged: bool) -> None:
    def episodes(n: int, share: float) -> list[Episode]:
        (episode,) = make_episodes(1)
        return [replace(episode, success=i < share * n) for i in range(n)]

    model: Any = guarded(learner)
    model.guard = Guard("warn")
    model.set_logger(configure(None, []))
    model.prm = Opinionated(model.lm, "prm")
    model.prm.opinions = [score] * 64 + [0.3] * n  # after, before
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert model.guard(model, episodes(n, 0.125), episodes(64, success), lambda: None)
    assert bool(caught) == diverged
    if n:
        assert model.logger.name_to_value["prm/divergence"] == pytest.approx(score - success - 0.3 + 0.125)
