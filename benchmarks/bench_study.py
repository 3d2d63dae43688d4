"""Does a metric predict what training against a ranker brings? ``python -m benchmarks.bench_study [--quick] [--out FILE]``.

Rankers of graded quality are measured on the panel, and one and the same policy, cloned from ten demonstrations, is improved
against each of them, always by the same step: online DPO on states of its own episodes, best against worst of eight draws, so
that only the order of a ranker's scores counts. The gain is the difference of success to the policy itself on held-out games,
each played once, sampled and greedily. Then the rank correlation (Spearman) of every metric with the gain, with intervals from
resampled rankers and games.

Rankers: the planner's and the fair labels with noise of five sizes; process reward models of both forms, fitted to few and many
episodes, to exact, fair and Monte-Carlo labels; log-probabilities of the policy itself and of a better one, an implicit reward,
the length of a command, and uniform scores. The fitted ones are those of ``benchmarks.prm_curve``, whose labels are taken from
its folder.

What is done is kept in ``--work``, so an interrupted study goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from agentprm_gym.bench.labels import fair_labels, oracle_labels
from agentprm_gym.bench.metrics import METRICS, PanelMetrics
from agentprm_gym.bench.metrics_table import Floats
from agentprm_gym.bench.panel import read_panel
from agentprm_gym.bench.ranker import LabelRanker, LengthRanker, Ranker, UniformRanker, score_panel
from agentprm_gym.bench.states import BenchState
from agentprm_gym.episodes import Turn
from agentprm_gym.experts import demonstrations
from agentprm_gym.games import find_games
from algorithms import SFT
from algorithms.bench.saves import ImplicitRanker, PolicyRanker, PRMRanker
from algorithms.cli.output import provenance, write_json
from algorithms.common.acting.policy import POLICY
from algorithms.common.acting.rollouts import RolloutTask, collect
from algorithms.common.measure.evaluation import draw_games, evaluate, make_eval_env
from algorithms.common.prm.bandit import REFERENCE, Bandit
from algorithms.common.prm.improve import ImproveStage
from benchmarks.bench_panel import MAX_STEPS, POLICIES, states_of
from benchmarks.prm_curve import Cell, fit, label, play, softmax

RESULTS = Path(__file__).parent / "results"
#: The improvement step, the same against every ranker.
STEP = ImproveStage(objective="online_dpo", n_updates=60, batch_size=16, margin=0.0, imitation_coef=0.0)
LEARNING_RATE = 1e-3
#: Episodes that the states of the step are from, and games that the gain is measured on.
N_EPISODES, N_GAMES = 200, 400
#: Demonstrations that the policy is cloned from, and passes over them.
N_DEMOS, EPOCHS = 10, 8
NOISES = (0.0, 0.05, 0.1, 0.2, 0.4)
FITTED = (
    *(Cell("mc", form, "list", n) for n in (100, 400) for form in ("scalar", "log_prob")),
    *(Cell("fair", form, "list", n) for n in (100, 400, 1600) for form in ("scalar", "log_prob")),
    *(Cell("oracle", form, "list", n) for n in (400, 1600) for form in ("scalar", "log_prob")),
    Cell("mc", "scalar", "none", 400),
)
#: Metrics whose correlation with the gain is asked for.
ASKED = tuple(METRICS)


@dataclass
class Setting:
    """What all rankers share.

    Attributes:
        states: the labelled states of the policy's own episodes, by episode and turn.
        turns: the episodes' lists of turns, in the same order.
        panel: held-out states.
        work: folder.
        save: the policy that is improved.
        fitted_from: the policy that the fitted rankers begin as; better than the one that is improved.
        quick: a small study.
    """

    states: list[dict[int, BenchState]]
    episodes: list[Any]
    panel: list[BenchState]
    work: Path
    save: Path
    fitted_from: Path
    quick: bool


class Scorer:
    """A ranker in the place of a process reward model in stage 3."""

    form = "scalar"  # it is asked for what is sampled, not for all commands at once
    adapter = ""

    def __init__(self, ranker: Ranker, setting: Setting) -> None:
        self.ranker = ranker
        self.at = {id(e.turns): states for e, states in zip(setting.episodes, setting.states, strict=True)}

    def score(
        self, items: Sequence[tuple[str, Sequence[Turn], Sequence[tuple[int, Sequence[str]]]]]
    ) -> list[list[torch.Tensor]]:
        """Scores of commands at turns of episodes; see :meth:`ProcessRewardModel.score`."""
        asked = [self.at[id(turns)][t] for _, turns, wanted in items for t, _ in wanted]
        rows = iter(score_panel(self.ranker, asked))
        out = []
        for _, turns, wanted in items:
            here = []
            for t, commands in wanted:
                row, state = next(rows), self.at[id(turns)][t]
                here.append(torch.tensor([row[state.commands.index(c)] for c in commands]))
            out.append(here)
        return out


def prepare(args: argparse.Namespace) -> Setting:
    """Play the policy's own episodes and label their states; take the panel's held-out states."""
    n = 24 if args.quick else N_EPISODES
    args.work.mkdir(parents=True, exist_ok=True)
    save = args.policy or cloned(args.work / "policy.zip")
    policy = SFT.load(save, env=None).policy
    venv = make_eval_env(n_envs=64, split="train", games="generated", max_episode_steps=MAX_STEPS)
    n_games = venv.get_attr("n_games", indices=[0])[0]
    drawn = np.random.default_rng([0, 31]).permutation(n_games)[:n]
    tasks = [RolloutTask({"game": int(g)}, (0, 31, i)) for i, g in enumerate(drawn)]
    rollouts = collect(policy.actor(64, temperature=1.0), venv, tasks, policy_name="sft", progress_bar=True)
    venv.close()
    assert rollouts is not None
    games = {game.game_id: game for game in find_games("train", "generated")}
    path = args.work / "fair.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    known = {row["state_id"]: row["values"] for row in (json.loads(x) for x in lines if x.endswith("}"))}
    labelled = []
    with path.open("a", encoding="utf-8") as file:
        for rollout in rollouts:
            here = {}
            for state in states_of(rollout.episode):
                game = games[state.game_id]
                if state.state_id not in known:
                    known[state.state_id] = list(fair_labels(game, state, 16).values)
                    file.write(json.dumps({"state_id": state.state_id, "values": known[state.state_id]}) + "\n")
                oracle = oracle_labels(game, state)
                fair = replace(oracle, values=tuple(known[state.state_id]))
                here[state.turn] = replace(state, labels={"oracle": oracle, "fair": fair})
            labelled.append(here)
    panel = [s for s in read_panel(args.panel).states if s.split == "valid_seen"]
    panel = panel[:80] if args.quick else panel
    return Setting(labelled, [r.episode for r in rollouts], panel, args.work, save, POLICIES / "sft_v1.zip", args.quick)


def cloned(path: Path) -> Path:
    """The policy that is improved, trained where it is not there yet: one that leaves room for a gain."""
    if not path.exists():
        shown = demonstrations(find_games("train", "generated"), N_DEMOS, 0)
        model = SFT("tiny", make_eval_env(n_envs=8, split="train", games="generated"), demonstrations=shown, seed=0)
        model.learn(EPOCHS * sum(len(episode.turns) for episode in shown)).save(path)
    return path


def rankers(setting: Setting, curve: Path) -> dict[str, Callable[[], Any]]:
    """All rankers by name, each made when it is needed."""
    better = str(setting.fitted_from)
    out: dict[str, Callable[[], Any]] = {}
    for kind in ("oracle", "fair"):
        for noise in NOISES:
            out[f"{kind}_noise_{noise:g}"] = partial(LabelRanker, kind, noise)
    out |= {"uniform": UniformRanker, "length": LengthRanker, "policy": lambda: PolicyRanker.load(str(setting.save))}
    out["better_policy"] = lambda: PolicyRanker.load(better)
    out["implicit"] = lambda: ImplicitRanker.load(str(setting.fitted_from.with_name("better_v1.zip")), better)
    for cell in FITTED:
        out[cell.name] = partial(_fitted, cell, setting, curve)
    return {name: out[name] for name in ("oracle_noise_0", "fair_noise_0.2", "uniform")} if setting.quick else out


def _fitted(cell: Cell, setting: Setting, curve: Path) -> PRMRanker:
    """A PRM of the learning curve, fitted again to its labels."""
    policy = SFT.load(setting.fitted_from, env=None).policy
    played = play(policy, max(c.n for c in FITTED), 0)
    label(played, cell.labels, cell.n, policy, curve / "seed_0" / f"labels_{cell.labels}.jsonl")
    return PRMRanker(fit(cell, played, setting.fitted_from, 0))


def gain(ranker: Ranker | None, setting: Setting, seed: int) -> dict[str, list[float]]:
    """Improve the policy against a ranker and let it play; success of each game, sampled and greedily.

    Args:
        ranker: ``None`` leaves the policy as it is.
        setting: what all rankers share.
        seed: of the step.
    """
    model = SFT.load(setting.save, env=None)
    policy = model.policy
    if ranker is not None:
        policy.lm.copy_adapter(POLICY, REFERENCE)
        scorer: Any = Scorer(ranker, setting)
        bandit = Bandit(policy.lm, POLICY, REFERENCE, policy.responder, scorer)
        states = [(e, sorted(here)) for e, here in zip(setting.episodes, setting.states, strict=True) if here]
        step = replace(STEP, n_updates=3) if setting.quick else STEP
        step(bandit, states, learning_rate=LEARNING_RATE, micro_batch_size=16, rng=np.random.default_rng([seed, 32]))
    venv = make_eval_env(n_envs=64, split="valid_seen", games="generated", max_episode_steps=MAX_STEPS)
    kinds = [game.task_type for game in find_games("valid_seen", "generated")]
    drawn = draw_games(kinds, 12 if setting.quick else N_GAMES, 0)
    out = {}
    for how, temperature in (("sampled", 1.0), ("greedy", 0.0)):
        found = evaluate(policy.actor(64, temperature=temperature), venv, games=drawn, seed=0)
        out[how] = [float(e.success) for e in found]
    venv.close()
    return out


def ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle: Floats = np.cumsum(counts) - (counts - 1) / 2
    return middle[where]


def correlation(metric: Floats, gains: Floats) -> float:
    """Spearman's rank correlation; NaN where either does not vary."""
    a, b = ranks(metric), ranks(gains)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else float("nan")


def interval(metric: Floats, games: Floats, rng: np.random.Generator, n: int = 2000) -> tuple[float, float]:
    """95 % interval of the correlation from resampled rankers and games.

    Args:
        metric: (R,) of each ranker.
        games: (R, G) gain of each ranker in each game.
        rng: draws.
        n: how many samples.
    """
    found = []
    for _ in range(n):
        r = rng.integers(len(metric), size=len(metric))
        g = rng.integers(games.shape[1], size=games.shape[1])
        found.append(correlation(metric[r], games[np.ix_(r, g)].mean(axis=1)))
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rankers, a small step")
    parser.add_argument("--panel", default="generated", help="a panel with oracle and fair labels")
    parser.add_argument("--policy", type=Path, help="who is improved (default: cloned from 10 demonstrations)")
    parser.add_argument("--curve", type=Path, default=Path("runs/prm_curve"), help="folder of benchmarks.prm_curve")
    parser.add_argument("--seed", type=int, default=0, help="of the improvement steps")
    parser.add_argument("--rankers", nargs="+", metavar="NAME", help="only these (default: all)")
    parser.add_argument("--work", type=Path, default=Path("runs/bench_study"), help="where work is kept")
    parser.add_argument("--out", type=Path, default=RESULTS / "bench_study.json", help="result file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    setting = prepare(args)
    line = score_panel(PolicyRanker.load(str(setting.save)), setting.panel)
    draws = [softmax(row).tolist() for row in line]
    measured = {kind: PanelMetrics(setting.panel, kind, policy=draws, n_samples=0) for kind in ("fair", "oracle")}
    rows, known = [], rankers(setting, args.curve)
    if unknown := set(args.rankers or ()) - set(known):
        raise SystemExit(f"error: unknown rankers {', '.join(sorted(unknown))}: choose from {', '.join(known)}")
    chosen = {name: make for name, make in known.items() if args.rankers is None or name in args.rankers}
    for name, make in {"start": lambda: None, **chosen}.items():
        path = args.work / f"{name}_{args.seed}.json"
        if not path.exists():
            ranker = make()
            row: dict[str, Any] = {"ranker": name, "won": gain(ranker, setting, args.seed)}
            if ranker is not None:
                scores = [s.tolist() for s in score_panel(ranker, setting.panel)]
                for kind, metrics in measured.items():
                    report = metrics.measure(scores)
                    row[kind] = {m: report[m].overall.value for m in ASKED}
            write_json(path, row)
        rows.append(json.loads(path.read_text(encoding="utf-8")))
        print(name, {how: float(np.mean(won)) for how, won in rows[-1]["won"].items()}, flush=True)
    report_on(rows, args)


def report_on(rows: Sequence[dict[str, Any]], args: argparse.Namespace) -> None:
    """Correlate, print the table and write the result."""
    start, others = rows[0], rows[1:]
    rng = np.random.default_rng(0)
    figures: dict[str, float] = {"n_rankers": float(len(others))}
    found = []
    table = Table(title=f"rank correlation with the gain, {len(others)} rankers")
    for column in ("metric", "labels", "with the sampled gain", "with the greedy gain"):
        table.add_column(column)
    for kind in ("fair", "oracle"):
        for metric in ASKED:
            values = np.array(
                [np.nan if row[kind][metric] is None else row[kind][metric] for row in others], dtype=float
            )
            known = np.isfinite(values)
            if known.sum() < 4:
                continue
            cells = []
            for how in ("sampled", "greedy"):
                games = np.array([row["won"][how] for row in others]) - np.array(start["won"][how])  # (R, G)
                rho = correlation(values[known], games[known].mean(axis=1))
                low, high = interval(values[known], games[known], rng)
                key = f"{kind}_{metric}_{how}"
                figures |= {key: rho, f"{key}_low": low, f"{key}_high": high}
                cells.append(f"{rho:+.2f} [{low:+.2f}, {high:+.2f}]")
            found.append({"metric": metric, "labels": kind, "n": int(known.sum())})
            table.add_row(metric, kind, *cells)
    Console(width=120).print(table)
    write_json(
        args.out,
        {"name": "bench_study", **provenance(), "date": datetime.date.today().isoformat(), "seeds": [args.seed],
         "quick": args.quick, "figures": figures, "rows": rows, "metrics": found},
    )  # fmt: skip
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
