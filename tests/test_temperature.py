"""At any temperature, training scores the distribution that was sampled from.

Two kinds of evidence. Expectations are exact sums over all responses to a turn: where all rewards are equal, the expected
policy gradient is 0, since the probabilities of all responses always sum to 1. It is not 0 where responses are drawn at one
temperature and scored at another. Draws are compared with the scored probabilities by Pearson's chi-square test, with as many
draws as are needed to tell the right temperature from a wrong one.

A single run with equal rewards is no such evidence. Without a baseline, the noise of its samples makes a policy surer, also
where the expectation is 0, and Adam turns small noise into steps of full size (Chung et al., ICML 2021, arXiv 2008.13773).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.llm.scoring import score_turns
from algorithms import GRPO, REINFORCE, OnlineDPO
from algorithms.common.acting.actors import Request
from algorithms.common.acting.policy import POLICY, LLMPolicy
from algorithms.common.acting.rollouts import Rollout, RolloutTask, collect
from algorithms.common.learning.batches import pieces
from algorithms.common.learning.grouped import Played
from tests.algorithm_helpers import make_toy
from tests.foreign_env import make_doors
from tests.gradient_helpers import MODES, SMALL, logged, make, save_gpt2
from tests.llm_helpers import randomise

#: Words with equally many tokens: where the sum of a command's log-probabilities counts, shorter words would always win.
WORDS = ("shelf1", "shelf2", "shelf3", "shelf4", "shelf5", "shelf6")
#: The turn that is answered.
TASK, FEEDBACK = "say the word that you see.", "You see shelf1."


@pytest.fixture(scope="module")
def toy() -> VecEnv:
    return make_toy(n_turns=2)


#: The shortest template with a place for a reason: hundreds of transcripts are read.
SHORT = """
{%- macro prompt(task, feedback, admissible_commands, first) -%}
{{ feedback }}
{%- endmacro -%}
{%- macro response(reason, command) -%}
{{ reason }}
> {{ command }}
{%- endmacro -%}
"""


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = save_gpt2(tmp_path_factory.mktemp("gpt2"))
    (Path(folder) / "short.jinja").write_text(SHORT, encoding="utf-8")
    return folder


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("level", ["turn", "token"])
def test_ratios_begin_at_one_at_any_temperature(mode: str, level: str, learner: str, toy: VecEnv) -> None:
    kwargs = {**MODES[mode], "temperature": 0.5}
    (row, *_) = logged(make(REINFORCE, learner, toy, policy_kwargs=kwargs, level=level, baseline="none", beta=0.01), 8)
    assert row["train/clip_fraction"] == 0
    assert row["train/approx_kl"] == pytest.approx(0, abs=1e-6)
    assert row["train/kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("cls", [GRPO, OnlineDPO])
def test_a_greedy_policy_is_refused_where_samples_are_compared(cls: type, learner: str, toy: VecEnv) -> None:
    with pytest.raises(ValueError, match="temperature above 0, got 0"):
        cls(learner, toy, policy_kwargs={"temperature": 0})


# ---------------------------------------------------------------------- all responses to a turn
def reinforce(base: str, env: VecEnv, mode: str, temperature: float, **settings: Any) -> REINFORCE:
    """REINFORCE without a baseline, on responses with one free token at most."""
    template = str(Path(base) / "short.jinja") if "reasons" in mode else "compact"
    kwargs = {**MODES[mode], "template": template, "temperature": temperature}
    if "max_new_tokens" in kwargs:
        kwargs["max_new_tokens"] = 1
    model = REINFORCE(base, env, **{**SMALL, "baseline": "none", "policy_kwargs": kwargs, **settings})
    randomise(model.lm, POLICY, 0.2)
    model.set_logger(Logger(None, []))
    return model


def words_of(mode: str) -> list[str]:
    """The admissible commands: two behind each of the many reasons, else six."""
    return list(WORDS[:2] if "reasons" in mode else WORDS)


def asked(words: Sequence[str]) -> Episode:
    """An episode with a turn that nobody has answered yet."""
    turn = Turn(feedback=FEEDBACK, admissible_commands=tuple(words), command=words[0])
    return Episode(
        game_id="echo/shelf1", split="train", task_type="text_identity", task=TASK, success=False, turns=[turn]
    )


def every_response(policy: LLMPolicy, words: Sequence[str]) -> list[Episode]:
    """The turn of :func:`asked` with every response that the policy can give to it."""
    episode, prompt, stop = asked(words), policy.lm.prompt, policy.responder.stop_tokens().tolist()
    turn = episode.turns[0]
    if policy.responder.mode == "generate":
        turns = [replace(turn, tokens=prompt.generated([i], stopped=end)) for i, end in enumerate(stop)]
    elif policy.responder.writes_freely:
        # All tokens that end a reason are one choice: the empty reason.
        reasons = [([], True), *(([i], False) for i, end in enumerate(stop) if not end)]
        turns = [
            replace(turn, command=c, tokens=prompt.with_reason(r, c, stopped=end)) for r, end in reasons for c in words
        ]
    else:
        turns = [replace(turn, command=c) for c in words]
    return [replace(episode, turns=[t]) for t in turns]


def drawn_with(policy: LLMPolicy, words: Sequence[str], temperature: float) -> torch.Tensor:
    """Probabilities of :func:`every_response` at a temperature by definition, float64.

    A free token is drawn from the library's own logits, divided by the temperature. A command is drawn as a whole, from the
    log-probabilities at temperature 1, divided by it.
    """
    lm, responder, episode = policy.lm, policy.responder, asked(words)
    if not responder.writes_freely:
        actor = policy.actor(1)
        actor.start(0, TASK, [])
        (log_probs,) = actor.log_probs([Request(0, TASK, FEEDBACK, list(words), np.random.default_rng(0))])
        return torch.softmax(log_probs.double() / temperature, 0)
    (passage,) = responder.encode(TASK, episode.turns)
    prefix = passage.ids[: passage.prompt_end[0] + 1]
    opened = prefix if responder.mode == "generate" else prefix + list(lm.prompt.reason_open)
    with torch.no_grad(), lm.active(POLICY):
        logits = lm.base(input_ids=torch.tensor([opened])).logits[0, -1].double()
        tokens = torch.softmax(logits / temperature, 0)
        if responder.mode == "generate":
            return tokens
        stop = responder.stop_tokens()
        reasons = torch.cat([tokens[stop].sum()[None], tokens[~stop]])  # (R,)
        first_of_each = every_response(policy, words)[:: len(words)]
        batches = pieces(first_of_each, 64)
        commands = [row[0].commands for batch in batches for row in score_turns(responder, batch)]
    given = torch.stack([torch.softmax(c.double() / temperature, 0) for c in commands if c is not None])  # (R, words)
    return (reasons[:, None] * given).flatten()


class Gradient(torch.optim.SGD):
    """Keeps the gradient that it is to follow, and follows none."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        self.kept = torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]])


def expected_gradient(model: REINFORCE, rollouts: Sequence[Rollout], probabilities: Sequence[float]) -> torch.Tensor:
    """What the algorithm's own update does to rollouts with the given probabilities, on average.

    An update is a mean over rollouts, and linear in their returns: paid N times its probability, each of the N rollouts counts
    as often as it is drawn.
    """
    n = len(rollouts)
    paid = [replace(r, rewards=[n * p * x for x in r.rewards]) for r, p in zip(rollouts, probabilities, strict=True)]
    model.updater.optimizer = optimizer = Gradient(model.trained_parameters(), lr=1.0)
    model.learn_from([Played(rollout, i) for i, rollout in enumerate(paid)])
    return optimizer.kept


#: Update settings under which a gradient is seen as it is: all rollouts in one update, nothing clipped.
WHOLE: dict[str, Any] = {"batch_size": 100_000, "micro_batch_size": 64, "max_grad_norm": 1e12}


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=[pytest.mark.slow] if "reasons" in mode else []) for mode in MODES]
)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_equal_rewards_have_no_gradient_on_average(mode: str, temperature: float, gpt2: str, toy: VecEnv) -> None:
    model, words = reinforce(gpt2, toy, mode, temperature, **WHOLE), words_of(mode)
    rollouts = [Rollout(e, [], 0, [1.0]) for e in every_response(model.policy, words)]
    probabilities = drawn_with(model.policy, words, temperature).tolist()
    others = drawn_with(model.policy, words, 2 * temperature).tolist()
    assert sum(probabilities) == pytest.approx(1, abs=1e-6)
    at_this, at_another = (expected_gradient(model, rollouts, p) for p in (probabilities, others))
    assert float(at_another.norm()) > 1e-2
    assert float(at_this.norm()) < 1e-4 * float(at_another.norm())


@pytest.mark.parametrize("mode", ["constrained", "score"])
def test_equal_rewards_have_no_gradient_on_average_over_whole_episodes(mode: str, gpt2: str) -> None:
    """All ways to play two turns in the environment itself, with returns-to-go that differ between the turns."""
    env = make_toy(n_envs=16, n_turns=2, words=list(WORDS[:2]))
    model = reinforce(gpt2, env, mode, 0.5, gamma=0.9, **WHOLE)
    actor = model.policy.actor(16)
    tasks = [RolloutTask({"game": 0}, (i,)) for i in range(512)]
    ways = {tuple(t.command for t in r.episode.turns): r for r in collect(actor, env, tasks) or []}
    assert len(ways) == 4, f"not every way to play was seen: {sorted(ways)}"
    probabilities = {0.5: [1.0] * 4, 1.0: [1.0] * 4}
    for i, rollout in enumerate(ways.values()):
        rollout.rewards[:] = [1.0, 1.0]
        actor.start(0, rollout.episode.task, [])
        for turn in rollout.episode.turns:
            commands = turn.admissible_commands
            (log_probs,) = actor.log_probs(
                [Request(0, rollout.episode.task, turn.feedback, commands, np.random.default_rng(0))]
            )
            for temperature, ps in probabilities.items():
                ps[i] *= float(torch.softmax(log_probs.double() / temperature, 0)[list(commands).index(turn.command)])
            actor.executed(0, turn)
    assert sum(probabilities[0.5]) == pytest.approx(1, abs=1e-6)
    at_this, at_another = (expected_gradient(model, list(ways.values()), p) for p in probabilities.values())
    assert float(at_another.norm()) > 1e-2
    assert float(at_this.norm()) < 1e-4 * float(at_another.norm())


@pytest.mark.parametrize("baseline", ["turn", "batch"])
def test_equal_rewards_change_nothing_with_a_baseline(baseline: str, gpt2: str) -> None:
    """In every update, not on average: an advantage no larger than the rounding of a mean of equal numbers is none."""
    env = make_doors(16, n_turns=1 if baseline == "batch" else 3, prize=1.0)
    settings = {"baseline": baseline} if baseline != "turn" else {}  # the default
    kwargs = {"template": "compact", "temperature": 0.5}
    model = make(REINFORCE, gpt2, env, policy_kwargs=kwargs, n_games=48, group_size=1, **settings)
    assert model.baseline == baseline
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    for row in logged(model, 2 * 48):
        assert row.get("train/grad_norm", 0) < 1e-12
        assert row["rollout/share_without_signal"] == 1
    for name, tensor in model.policy.state_dict().items():
        torch.testing.assert_close(tensor, before[name], atol=1e-8, rtol=0)


# ---------------------------------------------------------------------- draws
#: The right distribution is refuted by mistake once in 10,000 sets of draws, a wrong one must be refuted a million times surer.
ACCEPTED, REFUTED = 1e-4, 1e-6
#: More responses than this are counted in so many cells of equal probability.
CELLS = 20


def chi_square_tail(statistic: float, dof: int) -> float:
    """Probability that a chi-square variable exceeds a value."""
    half = torch.tensor([dof / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def draws_needed(true: torch.Tensor, wrong: torch.Tensor) -> int:
    """How many draws refute the wrong one of two distributions (K,), with five standard deviations to spare.

    Pearson's statistic has K - 1 degrees of freedom and the non-centrality ``N * sum((true - wrong) ** 2 / wrong)``.
    """
    dof, effect = len(true) - 1, float(((true - wrong) ** 2 / wrong).sum())
    n = math.ceil(5 / float(torch.minimum(true, wrong).min()))  # every cell is expected five times
    while True:
        shift = n * effect
        if chi_square_tail(dof + shift - 5 * math.sqrt(2 * dof + 4 * shift), dof) < REFUTED:
            return n
        n = math.ceil(1.1 * n)


def cells_of(right: torch.Tensor, wrong: torch.Tensor) -> torch.Tensor:
    """The cell in which each response is counted, (R,): its own, or one of those that tell two distributions apart best.

    These hold responses with similar ratios of the two probabilities.
    """
    if len(right) <= CELLS:
        return torch.arange(len(right))
    order = (right / wrong).argsort()
    before = right[order].cumsum(0) - right[order] / 2
    cell = torch.zeros(len(right), dtype=torch.long)
    cell[order] = (before * CELLS).long().clamp_max(CELLS - 1)
    return torch.from_numpy(np.unique(cell.numpy(), return_inverse=True)[1])


def p_value(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """Pearson's test of counts (K,) against probabilities (K,)."""
    expected = counts.sum() * probabilities
    return chi_square_tail(float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_played_is_as_likely_as_it_is_scored(mode: str, gpt2: str) -> None:
    """Real episodes are counted; the probabilities are those of the pass that training uses."""
    words = words_of(mode)
    env = make_toy(n_envs=64, words=words)
    policy = reinforce(gpt2, env, mode, 0.5).policy
    every = every_response(policy, words)

    def scored(temperature: float) -> torch.Tensor:
        with torch.no_grad(), policy.lm.active(POLICY):
            batches = pieces(every, 64)
            rows = [row for batch in batches for row in score_turns(policy.responder, batch, temperature=temperature)]
        return torch.stack([row[0].log_prob for row in rows]).double().exp()

    def key(turn: Turn) -> Hashable:
        return turn.command if turn.tokens is None else turn.tokens.ids

    right, wrong = scored(0.5), scored(1.0)
    assert right.sum() == pytest.approx(1, abs=1e-4) and wrong.sum() == pytest.approx(1, abs=1e-4)
    cell = cells_of(right, wrong)

    def cells(values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(int(cell.max()) + 1, dtype=torch.float64).index_add(0, cell, values)

    n = draws_needed(cells(right), cells(wrong))
    with policy.lm.merged(POLICY):
        played = collect(policy.actor(64), env, [RolloutTask({"game": 0}, (7, i)) for i in range(n)]) or []
    seen = Counter(key(rollout.episode.turns[0]) for rollout in played)
    counts = torch.tensor([seen.pop(key(e.turns[0]), 0) for e in every], dtype=torch.float64)
    assert not seen and counts.sum() == n, "every response that was given is one that can be given"
    assert p_value(cells(counts), cells(right)) > ACCEPTED
    assert p_value(cells(counts), cells(wrong)) < REFUTED
