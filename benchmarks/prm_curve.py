"""How many episodes until a PRM ranks: ``python -m benchmarks.prm_curve [--quick] [--seeds 0 1 2] [--out FILE]``.

A process reward model is worth having where it chooses better than the policy's own favourite. What it needs for that is asked
here with labels of known quality. The policy, cloned from 100 demonstrations, plays N train games. At four turns of each
episode its six likeliest commands (and the one that it executed) are labelled:

* ``oracle``: by the planner, which knows the whole game;
* ``fair``: for a player who knows what the transcript showed (:mod:`agentprm_gym.bench.label_fair`);
* ``mc``: by four rollouts of the policy behind each command, which is what AgentPRM can have.

To these a PRM is fitted, of each form and with each relative loss, always with as many episodes in all passes together. It is
measured with ``fair`` labels on panel states of ``valid_seen``, which no fit saw: pairs in the right order, and the regret of
its favourite among all commands, and among 8 and 32 draws of the policy. The line to beat is the policy's log-probability.

Cells are kept in ``--work``, so an interrupted study goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from agentprm_gym.bench.labels import fair_labels, on_policy_labels, oracle_labels
from agentprm_gym.bench.metrics import PanelMetrics
from agentprm_gym.bench.metrics_table import Floats
from agentprm_gym.bench.panel import read_panel
from agentprm_gym.bench.ranker import score_panel
from agentprm_gym.bench.states import BenchState, Labels
from agentprm_gym.episodes import Episode
from agentprm_gym.games import find_games
from agentprm_gym.llm.scoring import episode_log_probs
from agentprm_gym.prm.model import PRM, ProcessRewardModel
from algorithms import SFT
from algorithms.agent_prm.fit import FitStage
from algorithms.agent_prm.targets import LabelledEpisode, Target
from algorithms.bench.on_policy import PolicyPlaysOn
from algorithms.bench.saves import PolicyRanker, PRMRanker
from algorithms.cli.output import provenance, write_json
from algorithms.common.acting.policy import POLICY, LLMPolicy
from algorithms.common.acting.rollouts import RolloutTask, collect
from algorithms.common.measure.evaluation import make_eval_env
from benchmarks.bench_panel import POLICIES, states_of

RESULTS = Path(__file__).parent / "results"
#: Turns of an episode, and commands at each, that are labelled.
N_TURNS, N_COMMANDS = 4, 6
#: Rollouts behind a command, for ``mc``.
N_ROLLOUTS = 4
#: Episodes that a fit reads in all its passes together.
PASSES = 3200
MAX_STEPS = 30


@dataclass(frozen=True)
class Cell:
    """One fit.

    Attributes:
        labels: ``"oracle"``, ``"fair"`` or ``"mc"``.
        form: of the PRM.
        rank_loss: relative loss, ``"list"`` or ``"pairs"``, or ``"none"``.
        n: episodes.
    """

    labels: str
    form: str
    rank_loss: str
    n: int

    @property
    def name(self) -> str:
        """Name of the cell in figures."""
        return f"{self.labels}_{self.form}_{self.rank_loss}_{self.n}"


def cells(quick: bool) -> list[Cell]:
    """The fits of the study, the cheapest questions first."""
    if quick:
        return [Cell("oracle", "scalar", "list", 24), Cell("mc", "log_prob", "list", 24)]
    sizes = (100, 400, 1600)
    out = [Cell("fair", form, "list", n) for n in sizes for form in ("scalar", "log_prob")]
    out += [Cell("mc", form, "list", n) for n in (100, 400) for form in ("scalar", "log_prob")]
    out += [Cell("oracle", form, "list", n) for n in (400, 1600) for form in ("scalar", "log_prob")]
    out += [Cell(labels, "scalar", loss, 400) for labels in ("fair", "mc") for loss in ("pairs", "none")]
    return out


@dataclass
class Played:
    """What the policy played.

    Attributes:
        episodes: the episodes.
        asked: for each episode the states and, for each, the commands to label.
        known: labels by kind, for each of all states in order the value of each command to label.
    """

    episodes: list[Episode]
    asked: list[list[tuple[BenchState, list[str]]]]
    known: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def states(self, n: int) -> Iterator[tuple[BenchState, list[str]]]:
        """The states of the first ``n`` episodes."""
        for some in self.asked[:n]:
            yield from some


def play(policy: LLMPolicy, n: int, seed: int) -> Played:
    """Play ``n`` train games, and choose what to label.

    Args:
        policy: the policy.
        n: how many games.
        seed: of games, episodes and choices.
    """
    rng = np.random.default_rng([seed, 21])
    venv = make_eval_env(n_envs=64, split="train", games="generated", max_episode_steps=MAX_STEPS)
    games = rng.permutation(venv.get_attr("n_games", indices=[0])[0])[:n]
    tasks = [RolloutTask({"game": int(g)}, (seed, 21, i)) for i, g in enumerate(games)]
    rollouts = collect(policy.actor(64, temperature=1.0), venv, tasks, policy_name="sft", progress_bar=True)
    venv.close()
    assert rollouts is not None
    episodes, asked = [r.episode for r in rollouts], []
    for episode in track(episodes, "likely commands"):
        states = list(states_of(episode))
        chosen = [states[int(i)] for i in sorted(rng.permutation(len(states))[:N_TURNS])]
        with torch.no_grad(), policy.lm.active(POLICY):
            (rows,) = episode_log_probs(policy.responder, [episode], [[state.turn for state in chosen]])
        here = []
        for state, row in zip(chosen, rows, strict=True):
            likely = [state.commands[i] for i in torch.argsort(row, descending=True)[:N_COMMANDS].tolist()]
            here.append((state, list(dict.fromkeys([*likely, episode.turns[state.turn].command]))))
        asked.append(here)
    return Played(episodes, asked)


def label(played: Played, kind: str, n: int, policy: LLMPolicy, path: Path) -> None:
    """Label the states of the first ``n`` episodes; what is done is kept in a file.

    Args:
        played: gets the labels.
        kind: which labels.
        n: how many episodes.
        policy: plays on, for ``"mc"``.
        path: the file.
    """
    known = played.known.setdefault(kind, {})
    if path.exists() and not known:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        known |= {row["state_id"]: row["values"] for row in map(json.loads, lines)}
    games = {game.game_id: game for game in find_games("train", "generated")}
    todo = [(state, wanted) for state, wanted in played.states(n) if state.state_id not in known]
    play_on = PolicyPlaysOn(policy, "generated", max_steps=MAX_STEPS)
    with path.open("a", encoding="utf-8") as file:
        for start in track(range(0, len(todo), 32), f"labels {kind}", disable=not todo):
            batch = todo[start : start + 32]
            if kind == "mc":
                pairs = [(games[state.game_id], state) for state, _ in batch]
                found = on_policy_labels(pairs, play_on, N_ROLLOUTS, commands=[wanted for _, wanted in batch])
                rows = [list(labels.values) for labels in found]
            else:
                rows = [_pick(kind, games, state, wanted) for state, wanted in batch]
            for (state, _), values in zip(batch, rows, strict=True):
                known[state.state_id] = values
                file.write(json.dumps({"state_id": state.state_id, "values": values}) + "\n")
            file.flush()


def _pick(kind: str, games: dict[str, Any], state: BenchState, wanted: Sequence[str]) -> list[float]:
    game = games[state.game_id]
    labels: Labels = oracle_labels(game, state) if kind == "oracle" else fair_labels(game, state, 16)
    return [labels.values[state.commands.index(command)] for command in wanted]


def fit(cell: Cell, played: Played, save: Path, seed: int) -> ProcessRewardModel:
    """Fit a PRM that starts as the policy.

    Args:
        cell: what to fit.
        played: with its labels.
        save: the policy.
        seed: of the order of episodes.
    """
    torch.manual_seed(seed)
    policy = SFT.load(save, env=None).policy
    prm = ProcessRewardModel(policy.lm, form=cell.form, lora=policy.lm.adapter_config(POLICY))
    policy.lm.copy_adapter(POLICY, PRM)
    known = played.known[cell.labels]
    data = []
    for i, (episode, asked) in enumerate(zip(played.episodes[: cell.n], played.asked, strict=False)):
        rows = [
            Target(i, state.turn, b"", command, value, 1, float("nan"))
            for state, wanted in asked
            for command, value in zip(wanted, known[state.state_id], strict=True)
        ]
        if rows:
            data.append(LabelledEpisode(episode, rows))
    ranks: dict[str, Any] = {"rank_coef": 0.0} if cell.rank_loss == "none" else {"rank_loss": cell.rank_loss}
    stage = FitStage(form=cell.form, n_epochs=max(1, PASSES // len(data)), **ranks)
    stage(prm, data, micro_batch_size=8, rng=np.random.default_rng([seed, 22]))
    return prm


def softmax(x: Floats) -> Floats:
    """Probabilities out of log-probabilities, (A,)."""
    p: Floats = np.exp(x - x.max())
    p /= p.sum()
    return p


def measure(scores: Sequence[Floats], metrics: PanelMetrics) -> dict[str, float]:
    """The study's metrics of one ranker, with the ends of their intervals."""
    report = metrics.measure([row.tolist() for row in scores])
    found = {name: report[name].overall for name in ("pair_accuracy", "top1", "regret", "best_of_32_regret")}
    found["best_of_8_regret"] = report.curve[7]
    out = {name: e.value for name, e in found.items()}
    return out | {f"{name}_{end}": getattr(e, end) for name, e in found.items() for end in ("low", "high")}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small cells")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--panel", default="generated", help="a panel with fair labels")
    parser.add_argument("--policy", type=Path, default=POLICIES / "sft_v1.zip")
    parser.add_argument("--work", type=Path, default=Path("runs/prm_curve"), help="where work is kept")
    parser.add_argument("--out", type=Path, default=RESULTS / "prm_curve.json", help="result file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    states = [s for s in read_panel(args.panel).states if s.split == "valid_seen" and s.player in ("sft", "better")]
    states = states[:60] if args.quick else states
    policy = SFT.load(args.policy, env=None).policy
    line = PolicyRanker(policy.responder, POLICY)
    log_probs = score_panel(line, states)
    metrics = PanelMetrics(states, "fair", policy=[softmax(x).tolist() for x in log_probs])
    rows: list[dict[str, Any]] = [{"cell": "policy", "seed": 0, **measure(log_probs, metrics)}]
    wanted = cells(args.quick)
    for seed in args.seeds[:1] if args.quick else args.seeds:
        work = args.work / f"seed_{seed}"
        work.mkdir(parents=True, exist_ok=True)
        played: Played | None = None
        for cell in wanted:
            path = work / f"{cell.name}.json"
            if not path.exists():
                played = played or play(policy, max(c.n for c in wanted), seed)
                label(played, cell.labels, cell.n, policy, work / f"labels_{cell.labels}.jsonl")
                scores = score_panel(PRMRanker(fit(cell, played, args.policy, seed)), states)
                write_json(path, {"cell": cell.name, "seed": seed, **measure(scores, metrics)})
            rows.append(json.loads(path.read_text(encoding="utf-8")))
            show(rows[:1] + rows[-1:])
    show(rows)
    figures = {
        f"{row['cell']}_{row['seed']}_{k}": row[k] for row in rows for k in ("pair_accuracy", "best_of_8_regret")
    }
    write_json(
        args.out,
        {"name": "prm_curve", **provenance(), "date": datetime.date.today().isoformat(), "seeds": args.seeds,
         "quick": args.quick, "states": len(states), "figures": figures, "rows": rows},
    )  # fmt: skip
    draw(rows, args.out.with_suffix(".png"))
    print(f"written to {args.out} and .png")


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Two panels over the number of episodes: pairs in the right order, and the regret of best-of-8; the policy as a line."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot as plt

    chart, panels = plt.subplots(1, 2, figsize=(12.5, 4.6), layout="constrained", dpi=130)
    policy, by_name = rows[0], {cell.name: cell for cell in cells(quick=False) + cells(quick=True)}
    titles = {"pair_accuracy": "pairs of commands in the right order", "best_of_8_regret": "regret of best-of-8"}
    for panel, (metric, title) in zip(panels, titles.items(), strict=True):
        lines: dict[tuple[str, str], dict[int, list[float]]] = {}
        for row in rows[1:]:
            cell = by_name[row["cell"]]
            if cell.rank_loss == "list":
                lines.setdefault((cell.labels, cell.form), {}).setdefault(cell.n, []).append(row[metric])
        for (labels, form), values in lines.items():
            how = {
                "color": f"C{('fair', 'oracle', 'mc').index(labels)}",
                "linestyle": "-" if form == "log_prob" else ":",
            }
            sizes = sorted(values)
            means = [float(np.mean(values[n])) for n in sizes]
            panel.plot(sizes, means, marker="o", label=f"{labels}, {form}", **how)
        panel.axhline(policy[metric], color="black", linewidth=1, label="the policy's log-probability")
        panel.axhspan(policy[f"{metric}_low"], policy[f"{metric}_high"], color="black", alpha=0.08)
        panel.set_xscale("log")
        ticks = sorted({cell.n for cell in cells(quick=False)})
        panel.set_xticks(ticks, list(map(str, ticks)))
        panel.minorticks_off()
        panel.set_xlabel("episodes with labelled states")
        panel.set_title(f"{title}, fair labels, held-out states", fontsize="medium")
        panel.grid(alpha=0.25)
    panels[0].legend(fontsize="small")
    chart.savefig(path)
    plt.close(chart)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print cells as a table."""
    table = Table()
    names = ("pair_accuracy", "top1", "regret", "best_of_8_regret", "best_of_32_regret")
    for column in ("cell", "seed", *names):
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(row["cell"], str(row["seed"]), *(f"{row[name]:.3f}" for name in names))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
