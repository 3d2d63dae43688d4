"""Policy improvement of a policy that gives reasons: whole responses are written, judged, compared and imitated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agentprm_gym.episodes import Episode
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.scoring import Responder, score_turns
from agentprm_gym.prm.model import FORMS
from algorithms.agent_prm.targets import QTable
from algorithms.common.acting.actors import PolicyActor, Request
from algorithms.common.prm.bandit import Bandit, Piece
from algorithms.common.prm.evidence import Evidence
from algorithms.common.prm.improve import ImproveStage
from algorithms.common.prm.objectives import imitate
from algorithms.common.prm.responses import PAIRED, ask_reference, hold_contests, log_probs_of
from benchmarks import analyses_parts
from tests.llm_helpers import make_episodes, randomise, save_random_model
from tests.prm_helpers import passes_of_any_size, random_prm


@pytest.fixture
def lm(tmp_path: Path) -> LanguageModel:
    model = LanguageModel.load(save_random_model(tmp_path), template="full", reasons=True)
    model.add_adapter("policy")
    randomise(model, "policy")
    model.copy_adapter("policy", "reference")
    return model


def bandit_of(lm: LanguageModel, form: str = "scalar", evidence: Evidence | None = None) -> Bandit:
    prm = random_prm(lm, form, scale=0.1)
    return Bandit(lm, "policy", "reference", Responder(lm, max_new_tokens=6), prm, evidence)


def with_reasons(episodes: list[Episode]) -> list[Episode]:
    return [replace(e, turns=[replace(t, reason=f"cabinet {i}") for i, t in enumerate(e.turns)]) for e in episodes]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_responses_are_judged_and_weighed_as_where_they_are_fitted_and_played(
    lm: LanguageModel, form: str, temperature: float
) -> None:
    bandit, episodes = bandit_of(lm, form), with_reasons(make_episodes(3))
    part = [Piece(e, [0, len(e.turns) - 1], seed=(3, i)) for i, e in enumerate(episodes)]
    contests = hold_contests(bandit, part, 4, temperature)
    assert [(c.piece.episode.game_id, c.turn) for c in contests] == [
        (p.episode.game_id, t) for p in part for t in p.turns
    ]
    open_ones = [c for c in contests if c.q]
    assert len(open_ones) > 3
    for contest in contests:  # the first is what was drawn first
        e, t = contest.piece.episode, contest.turn
        actor = PolicyActor(bandit.responder, "policy", 1, temperature=temperature)
        actor.start(0, e.task, e.turns[:t])
        rng = np.random.default_rng([*contest.piece.seed, t])
        request = Request(0, e.task, e.turns[t].feedback, e.turns[t].admissible_commands, rng)
        ((first, *_),) = actor.sample([request], 4)
        assert contest.written[0].response == first.response
    for contest in open_ones:
        assert len(contest.written) == len(contest.q) > 1 and any(turn.reason for turn in contest.written)
        contest.scores = dict(enumerate(contest.q))
        for turn, q in zip(contest.written, contest.q, strict=True):  # as where the model is fitted
            turns = [*contest.piece.episode.turns[: contest.turn], turn]
            assert float(bandit.prm.score_turns("put a mug in shelf.", turns)[-1]) == pytest.approx(q, abs=1e-4)
    ask_reference(bandit, open_ones, 2, temperature)
    with torch.no_grad(), lm.active("policy"):
        rows = list(log_probs_of(bandit.responder, open_ones, temperature))
    for contest, row in zip(open_ones, rows, strict=True):
        torch.testing.assert_close(row, contest.reference, atol=1e-4, rtol=0)  # the policy has not moved
        assert contest.divergence(row) == pytest.approx(0, abs=1e-4)
        choice = contest.choice(row)
        assert choice.scores[choice.best] == max(contest.q) and choice.scores[choice.worst] == min(contest.q)
        if temperature == 1:  # what acting gave, reason and command
            said = [contest.written[i].log_prob for i in contest.read]
            assert row.tolist() == pytest.approx(said, abs=1e-4)


@pytest.mark.ci
@pytest.mark.parametrize("objective", PAIRED)
def test_how_many_episodes_a_forward_pass_takes_changes_nothing(lm: LanguageModel, objective: str) -> None:
    bandit, episodes = bandit_of(lm), with_reasons(make_episodes(6))
    stage = ImproveStage(
        objective=objective, n_updates=2, batch_size=6, turns_per_episode=2, n_samples=3, margin=0.0, imitation_coef=0.5
    )
    stats = passes_of_any_size(stage, bandit, episodes, least=6)
    if objective == "online_dpo":
        assert stats.losses[0] == pytest.approx(np.log(2), abs=1e-5)
    assert stats.kl[0] == pytest.approx(0, abs=1e-5)


def test_a_small_cache_changes_nothing(lm: LanguageModel) -> None:
    bandit, episodes = bandit_of(lm), with_reasons(make_episodes(3))
    part = [Piece(e, [0, len(e.turns) - 1], seed=(3, i)) for i, e in enumerate(episodes)]
    free = hold_contests(bandit, part, 4, 1.0)
    bandit.cache_tokens = 1500
    held = hold_contests(bandit, part, 4, 1.0)
    assert [[t.response for t in c.written] for c in held] == [[t.response for t in c.written] for c in free]
    for a, b in zip(held, free, strict=True):
        assert a.q == pytest.approx(b.q, abs=1e-4)


def test_reasons_are_learnt_from_what_the_prm_says_of_them() -> None:
    """One state with one command, so that nothing but the reason differs."""
    template = Path(analyses_parts.__file__).parent / "templates" / "terse.jinja"
    lm = LanguageModel.load("tiny", template=str(template), reasons=True)
    for name in ("policy", "reference"):
        lm.add_adapter(name)
    episode = replace(make_episodes(1)[0])
    episode.turns = [replace(episode.turns[0], admissible_commands=["look"], command="look", reason="mug 1")]
    bandit = bandit_of(lm)
    with torch.no_grad():
        bandit.prm.head.weight.mul_(0.1)  # not sure of anything

    def mean_score() -> float:
        part = [Piece(episode, [0], seed=(7, i)) for i in range(24)]
        return float(np.mean([np.mean(c.q) for c in hold_contests(bandit, part, 4, 1.0) if c.q]))

    before = mean_score()
    stage = ImproveStage(
        n_updates=15, batch_size=8, turns_per_episode=1, n_samples=4, beta=0.05, margin=0.0, imitation_coef=0.0
    )
    stage(bandit, [(episode, [0])] * 8, learning_rate=3e-3, micro_batch_size=8, rng=np.random.default_rng(0))
    assert mean_score() > before + 0.1


def test_evidence_counts_by_the_command_of_a_response(lm: LanguageModel) -> None:
    (episode,) = with_reasons(make_episodes(1))
    state = episode.turns[0]
    won, lost = state.admissible_commands[:2]

    def ended(command: str, reward: float) -> Episode:
        return replace(episode, turns=[replace(state, command=command, reward=reward)], success=reward > 0)

    table = QTable(0.95)
    table.add([ended(won, 1.0)] * 3 + [ended(lost, 0.0)] * 3)
    evidence = Evidence(table.tried, prior_visits=1.0)
    untried = next(c for c in state.admissible_commands if c not in (won, lost))
    weighed = evidence.weigh(episode, 0, {0: 0.4, 1: 0.6, 2: 0.5, 3: 0.5}, [won, won, lost, untried])
    assert weighed == {0: pytest.approx(3.4 / 4), 1: pytest.approx(3.6 / 4), 2: pytest.approx(0.5 / 4)}
    bandit = bandit_of(lm, evidence=evidence)
    stats = ImproveStage(n_updates=12, batch_size=8, turns_per_episode=1, n_samples=12, beta=0.05, imitation_coef=0.0)(
        bandit, [(episode, [0])] * 8, learning_rate=1e-2, micro_batch_size=8, rng=np.random.default_rng(0)
    )
    assert stats.n_pairs > 10 and min(stats.gaps) > 0.5
    drawn = [
        t.command
        for c in hold_contests(bandit, [Piece(episode, [0], seed=(1, i)) for i in range(8)], 8, 1.0)
        for t in c.written
    ]
    assert drawn.count(won) > 2 * drawn.count(lost)


def test_imitation_teaches_the_reasons_too(lm: LanguageModel) -> None:
    """The gradient is that of all that was said, over the number of turns."""
    bandit, episodes = bandit_of(lm), with_reasons(make_episodes(3))
    parameters = lm.adapter_parameters("policy")
    gradients = []
    for micro in (1, 3, 0):
        for p in parameters:
            p.grad = None
        with lm.active("policy", train=True):
            if micro:
                imitate(bandit.responder, [(e, 1) for e in episodes], 0.5, micro)
            else:
                turns = [range(1, len(e.turns)) for e in episodes]
                said = [s.log_prob for row in score_turns(bandit.responder, episodes, turns) for s in row]
                (-0.5 * torch.stack(said).mean()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
    assert gradients[0].abs().max() > 1e-4
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-5, rtol=1e-3)
