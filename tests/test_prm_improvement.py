"""Policy improvement: what pairs come from, and what imitation adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.scoring import Responder, episode_log_probs
from agentprm_gym.prm.model import ProcessRewardModel
from algorithms.agent_prm.targets import QTable
from algorithms.common.prm.bandit import Bandit, ImproveStats
from algorithms.common.prm.evidence import Evidence
from algorithms.common.prm.improve import ImproveStage
from algorithms.common.prm.objectives.online_dpo import dpo_loss, ipo_loss
from tests.llm_helpers import make_episodes, randomise, save_random_model
from tests.prm_helpers import passes_of_any_size, random_prm


@pytest.fixture
def lm(tmp_path: Path) -> LanguageModel:
    model = LanguageModel.load(save_random_model(tmp_path))
    model.add_adapter("policy")
    randomise(model, "policy")
    model.copy_adapter("policy", "reference")
    return model


def bandit(command: str, won: bool) -> Episode:
    """One turn, three commands."""
    turn = Turn(feedback="You see a mug 1.", admissible_commands=("look", "help", "inventory"), command=command)
    turn.reward = float(won)
    return Episode(game_id="g", split="train", task_type="t", task="put a mug in shelf.", success=won, turns=[turn])


def improve(lm: LanguageModel, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor, ImproveStats]:
    """Train on the bandit's state; returns its log-probabilities before and after."""
    episode = bandit("look", False)
    responder = Responder(lm)

    def log_probs() -> torch.Tensor:
        with torch.no_grad(), lm.active("policy"):
            return episode_log_probs(responder, [episode])[0][0]

    before = log_probs()
    settings: dict[str, Any] = {"n_updates": 15, "batch_size": 4, "imitation_coef": 0.0}
    if kwargs.get("objective") != "imitation":
        settings |= {"turns_per_episode": 2, "beta": 0.5, "margin": 0.05}
    if kwargs.get("objective") not in ("imitation", "closed_form"):
        settings |= {"n_samples": 12}
    evidence = kwargs.pop("evidence", None)
    successes, learning_rate = kwargs.pop("successes", ()), kwargs.pop("learning_rate", 5e-3)
    if kwargs.get("objective") == "imitation":
        del settings["imitation_coef"]
    stats = ImproveStage(**{**settings, **kwargs})(
        Bandit(lm, "policy", "reference", responder, ProcessRewardModel(lm), evidence),
        [(episode, [0])] * 4,
        successes,
        learning_rate=learning_rate,
        micro_batch_size=16,
        rng=np.random.default_rng(0),
    )
    return before, log_probs(), stats


OBJECTIVES = [
    {"objective": name} for name in ("online_dpo", "online_ipo", "rejection", "policy_gradient", "closed_form")
]


@pytest.mark.parametrize("how", OBJECTIVES, ids=lambda how: "-".join(how.values()))
def test_what_was_measured_outweighs_an_indifferent_prm(lm: LanguageModel, how: dict[str, str]) -> None:
    table = QTable(0.95)
    table.add([bandit("help", True)] * 4 + [bandit("look", False)] * 4)
    before, after, stats = improve(lm, evidence=Evidence(table.tried, prior_visits=1.0), **how)
    gain = after - before
    assert stats.n_pairs > 0 and gain[1] > 0 > gain[0]
    assert stats.gaps[0] == pytest.approx((4 + 0.5) / 5 - 0.5 / 5)  # an untrained PRM says 0.5


def test_commands_that_were_not_tried_are_not_paired_on_evidence(lm: LanguageModel) -> None:
    table = QTable(0.95)
    table.add([bandit("help", True)])
    before, after, stats = improve(lm, evidence=Evidence(table.tried, prior_visits=1.0))
    assert stats.n_pairs == 0 and stats.n_untried > 0
    assert torch.equal(before, after)


@pytest.mark.parametrize("how", OBJECTIVES, ids=lambda how: "-".join(how.values()))
def test_an_indifferent_prm_alone_changes_nothing(lm: LanguageModel, how: dict[str, str]) -> None:
    before, after, stats = improve(lm, **how)
    assert stats.n_pairs == 0 and stats.n_close > 0
    assert torch.equal(before, after)


@pytest.mark.parametrize("how", OBJECTIVES[2:], ids=lambda how: "-".join(how.values()))  # DPO's works over longer runs
def test_a_stronger_pull_stays_nearer_the_reference(lm: LanguageModel, how: dict[str, str]) -> None:
    table = QTable(0.95)
    table.add([bandit("help", True)] * 4 + [bandit("look", False)] * 4)
    moved = []
    for beta in (0.05, 20.0):
        lm.copy_adapter("reference", "policy")
        before, after, _ = improve(lm, evidence=Evidence(table.tried, prior_visits=1.0), beta=beta, **how)
        moved.append(float((after - before).abs().max()))
    assert moved[0] > 1.5 * moved[1]


@pytest.mark.ci
def test_the_closed_form_ends_at_the_optimum_in_closed_form(lm: LanguageModel) -> None:
    """The reference times exp(Q / beta), where Q is .5, the PRM's, of a command never tried and 1 or 0 of those that were."""
    table = QTable(0.95)
    table.add([bandit("help", True)] * 100 + [bandit("look", False)] * 100)
    evidence = Evidence(table.tried, prior_visits=0.01)
    settings = {"n_updates": 150, "learning_rate": 1e-2, "beta": 3.0}
    before, after, _ = improve(lm, objective="closed_form", evidence=evidence, **settings)
    commands = bandit("look", False).turns[0].admissible_commands
    q = torch.tensor([{"help": 1.0, "look": 0.0}.get(command, 0.5) for command in commands])
    assert after.exp().tolist() == pytest.approx(torch.softmax(before + q / 3.0, 0).tolist(), abs=0.01)


def test_ipo_is_least_at_its_margin() -> None:
    ref = torch.zeros(1)
    assert float(ipo_loss(torch.tensor([2.5]), ref, ref, ref, beta=0.2)) == 0.0
    assert float(ipo_loss(ref, ref, ref, ref, beta=0.2)) == pytest.approx(2.5**2)
    assert float(dpo_loss(ref, ref, ref, ref, beta=0.2)) == pytest.approx(np.log(2))


def tempered(lm: LanguageModel, temperature: float, n: int) -> list[float]:
    """How often stage 3 samples each command of the bandit's state, told by the scores that it asks for."""
    asked: list[str] = []

    class Listening(ProcessRewardModel):
        def score(self, items: Any) -> Any:
            asked.extend(c for _, _, candidates in items for _, commands in candidates for c in commands)
            return super().score(items)

    stage = ImproveStage(n_updates=n, batch_size=1, n_samples=2, temperature=temperature, imitation_coef=0.0)
    stage(
        Bandit(lm, "policy", "reference", Responder(lm), Listening(lm)),
        [(bandit("look", False), [0])],
        learning_rate=1e-9,
        micro_batch_size=1,
        rng=np.random.default_rng(0),
    )
    # A state counts where its two samples differ: each command with its share of these pairs.
    return [asked.count(c) / max(1, len(asked)) for c in bandit("look", False).turns[0].admissible_commands]


@pytest.mark.ci
@pytest.mark.parametrize("temperature", [0.4, 2.5])
def test_stage_3_samples_at_its_own_temperature(lm: LanguageModel, temperature: float) -> None:
    episode = bandit("look", False)
    with torch.no_grad(), lm.active("policy"):
        row = episode_log_probs(Responder(lm), [episode])[0][0]
    p = torch.softmax(row / temperature, 0).double()
    pairs = [float(2 * p[i] * (1 - p[i])) for i in range(3)]  # both samples of a state, where they differ
    found = tempered(lm, temperature, 150)
    assert found == pytest.approx([x / sum(pairs) for x in pairs], abs=0.08)


@pytest.mark.ci
def test_the_objective_is_about_the_policy_as_it_is_sampled(lm: LanguageModel) -> None:
    """The optimum ``reference * exp(score / beta)`` is reached by the distribution at the temperature of the samples."""
    table = QTable(0.95)
    table.add([bandit("help", True)] * 100 + [bandit("look", False)] * 100)
    table.add([bandit("inventory", won) for won in (True, False)] * 50)
    evidence = Evidence(table.tried, prior_visits=0.01)
    settings = {"n_updates": 200, "learning_rate": 1e-2, "beta": 3.0, "margin": 0.0, "n_samples": 48}
    _, after, _ = improve(lm, objective="policy_gradient", temperature=2.0, evidence=evidence, **settings)
    with torch.no_grad(), lm.active("reference"):
        before = episode_log_probs(Responder(lm), [bandit("look", False)])[0][0]
    # Help is worth 1 and look 0, so their log-odds move by 1 / beta.
    odds = (after[1] - after[0]) / 2 - (before[1] - before[0]) / 2
    assert float(odds) == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"objective": "adam"}, "objective"),
        ({"n_samples": 1}, "n_samples"),
        ({"temperature": 0.0}, "temperature"),
        ({"beta": 0}, "beta"),
        ({"beta": float("nan")}, "beta"),
        ({"objective": "imitation", "margin": 0.2}, "margin=0.2 has no effect"),
    ],
)
def test_unknown_ways_to_improve_are_refused(how: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ImproveStage(**how)


def test_imitation_raises_what_won(lm: LanguageModel) -> None:
    before, after, _ = improve(lm, successes=[(bandit("inventory", True), 0)], imitation_coef=1.0)
    assert after[2] > before[2] + 0.1


def test_imitation_alone_asks_no_prm(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("logits", "score", "score_all"):
        monkeypatch.delattr(ProcessRewardModel, name)
    won = [(bandit("inventory", True), 0)]
    before, after, stats = improve(lm, successes=won, objective="imitation", target_kl=0.05)
    assert after[2] > before[2] + 0.1
    assert stats.losses[0] == pytest.approx(-float(before[2]), abs=1e-5)
    assert 5 <= len(stats.losses) < 15 and np.mean(stats.kl[-5:]) > 0.05
    lm.copy_adapter("reference", "policy")
    before, after, _ = improve(lm, objective="imitation")
    assert torch.equal(before, after)  # nothing to imitate


def test_the_divergence_from_the_reference_starts_at_zero_and_can_end_training(lm: LanguageModel) -> None:
    won = [(bandit("inventory", True), 0)]
    _, _, free = improve(lm, successes=won, imitation_coef=1.0, n_updates=20)
    assert free.kl[0] == pytest.approx(0, abs=1e-6) and max(free.kl) > 0.01
    lm.copy_adapter("reference", "policy")
    _, _, held = improve(lm, successes=won, imitation_coef=1.0, n_updates=20, target_kl=0.005)
    assert len(held.kl) < len(free.kl)


def test_a_command_is_judged_alike_alone_and_among_others(lm: LanguageModel) -> None:
    prm, episodes = random_prm(lm, "scalar"), make_episodes(4)
    items = [
        (e.task, e.turns, [(t, list(turn.admissible_commands)) for t, turn in enumerate(e.turns)]) for e in episodes
    ]
    together = prm.score(items)
    for e, item in zip(episodes, together, strict=True):
        for t, turn in enumerate(e.turns):
            for command, q in zip(turn.admissible_commands, item[t], strict=True):
                alone = prm.score([(e.task, e.turns[: t + 1], [(t, [command])])])[0][0]
                torch.testing.assert_close(alone[0], q, atol=1e-5, rtol=0)


@pytest.mark.ci
@pytest.mark.parametrize("form", ["scalar", "log_prob"])
@pytest.mark.parametrize("how", OBJECTIVES, ids=lambda how: "-".join(how.values()))
def test_how_many_episodes_a_forward_pass_takes_changes_nothing(
    lm: LanguageModel, how: dict[str, str], form: str
) -> None:
    prm, episodes = random_prm(lm, form), make_episodes(6)
    settings = {"n_updates": 2, "batch_size": 6, "turns_per_episode": 3, "margin": 0.0, "imitation_coef": 0.5}
    passes_of_any_size(
        ImproveStage(**{**settings, **how}),  # type: ignore[arg-type]
        Bandit(lm, "policy", "reference", Responder(lm), prm),
        episodes,
        least=1,
    )
