"""Targets of related work, side by side: ``python -m benchmarks.related_study [--quick] [--seeds 0 1 2] [--out FILE]``.

The policy, cloned from 100 demonstrations, plays train games. A process reward model is fitted to every kind of target, always
on the same trunks, with as many steps of the environment in all, and with as many episodes read in all passes together. What
differs is how the steps behind the trunks are spent: on more episodes from the start of games, on branches that try the
commands of one state, or on peeks, which try each command for one step and ask a value model about the rest. It is measured on
panel states of ``valid_seen`` with ``fair`` labels, which no fit saw: pairs in the right order, the regret of the favourite,
and of the favourite among 8 and 32 draws of the policy. The line to beat is the policy's log-probability.

The value model's own fit is not counted in steps, since it takes none; the seconds of each cell hold it.

``summary`` has one row a cell: means over seeds, and differences to the policy's log-probability and to AgentPRM's default
targets (``monte_carlo_pairs``), seed by seed, with 95 % intervals. A chart of these lies beside the result file. Cells are kept
in ``--work``, so an interrupted study goes on; and those of the result file count as done.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.bench.metrics import PanelMetrics
from agentprm_gym.bench.panel import read_panel
from agentprm_gym.bench.ranker import score_panel
from agentprm_gym.bench.states import BenchState
from algorithms import SFT, AgentPRM
from algorithms.agent_prm.peeks import play_from_states
from algorithms.agent_prm.rollout import Experience, RolloutStage
from algorithms.agent_prm.targets import label_episodes
from algorithms.bench.saves import PolicyRanker, PRMRanker
from algorithms.cli.output import provenance, write_json
from algorithms.common.acting.policy import POLICY, LLMPolicy
from algorithms.common.acting.rollouts import Rollout, RolloutTask, collect
from algorithms.common.measure.comparison import mean_interval
from algorithms.common.measure.evaluation import make_eval_env
from algorithms.common.prm.play import Streams
from benchmarks._parts import take_over
from benchmarks.bench_panel import POLICIES
from benchmarks.prm_curve import measure, show, softmax

RESULTS = Path(__file__).parent / "results"
MAX_STEPS = 30
#: Episodes that a fit reads in all its passes together: three times what AgentPRM's default reads an iteration.
PASSES = 600
#: What the others are compared with: AgentPRM's default targets.
DEFAULT = "monte_carlo_pairs"


@dataclass(frozen=True)
class Cell:
    """One fit.

    Attributes:
        name: in figures.
        spend: on what the steps behind the trunks are spent, in this order: ``"others"``, ``"branches"``,
            ``"entropy_branches"``, ``"peeks"``.
        prm: options of :class:`~algorithms.agent_prm.options.FitOptions`.
    """

    name: str
    spend: tuple[str, ...]
    prm: dict[str, Any] = field(default_factory=dict)


CELLS = [
    Cell("monte_carlo_pairs", ("others",)),
    Cell("monte_carlo", ("others",), {"rank_loss": "list"}),
    Cell("branches_pairs", ("branches",)),
    Cell("branches", ("branches",), {"rank_loss": "list"}),
    Cell("entropy_branches", ("entropy_branches",), {"rank_loss": "list"}),
    Cell("siblings", ("entropy_branches",), {"rank_loss": "list", "centre": "siblings"}),
    Cell("td_peeks", ("peeks", "others"), {"rank_loss": "list", "target": "td"}),
    Cell("td_peeks_siblings", ("peeks", "others"), {"rank_loss": "list", "target": "td", "centre": "siblings"}),
    Cell("td_peeks_progress", ("peeks", "others"), {"rank_loss": "list", "target": "td", "progress_coef": 0.5}),
    Cell("gae_branches", ("branches",), {"rank_loss": "list", "target": "gae"}),
    Cell("entropic_2", ("branches",), {"rank_loss": "list", "target": "entropic", "eta": 2.0}),
    Cell("entropic_minus_1", ("branches",), {"rank_loss": "list", "target": "entropic", "eta": -1.0}),
    Cell("shaped", ("branches",), {"rank_loss": "list", "shaping_coef": 0.5}),
]
#: What is measured, and whether more of it is better.
MEASURES = {"pair_accuracy": 1, "regret": -1, "best_of_8_regret": -1}
#: What is played: 300 trunks, and as many steps again by each of the ways to spend them. A command of a branch is tried twice,
#: since entropic targets differ from the mean only where there are several returns.
FULL: dict[str, Any] = {
    "n_games": 1200,
    "n_trunks": 300,
    "n_branch_states": 250,
    "n_branch_rollouts": 2,
    "n_peek_states": 1500,
}
QUICK: dict[str, Any] = {
    "n_games": 24,
    "n_trunks": 12,
    "n_branch_states": 4,
    "n_branch_rollouts": 2,
    "n_peek_states": 20,
}


class Plays:
    """Plays tasks with a fixed policy; what :class:`~algorithms.common.prm.play.Play` is to an algorithm."""

    def __init__(self, policy: LLMPolicy, venv: VecEnv) -> None:
        """Take a policy and environments."""
        self.policy, self.venv = policy, venv

    def __call__(
        self,
        tasks: Sequence[RolloutTask],
        stage: str,
        *,
        snapshots: bool = False,
        n_candidates: int = 1,
        record: bool = True,
        actor: Any = None,
    ) -> list[Rollout]:
        """Play every task once; arguments as for :class:`~algorithms.common.prm.play.Play`."""
        print(f"{stage}: {len(tasks)} tasks")
        chosen = actor or self.policy.actor(self.venv.num_envs, temperature=1.0, n_candidates=n_candidates)
        rollouts = collect(chosen, self.venv, tasks, policy_name="sft", snapshots=snapshots, progress_bar=True)
        assert rollouts is not None
        return rollouts


def play(policy: LLMPolicy, sizes: dict[str, Any], seed: int, folder: Path) -> tuple[Experience, Experience]:
    """Play, or read what was played.

    Args:
        policy: the policy.
        sizes: options of stage 1.
        seed: of games and episodes.
        folder: where it is kept.

    Returns:
        The experience, and one that holds nothing but branches from states where the policy is unsure.
    """
    folders = folder / "experience", folder / "entropy"
    if not (folder / "played.json").exists():
        venv = make_eval_env(n_envs=64, split="train", games="generated", max_episode_steps=MAX_STEPS)
        games = range(venv.get_attr("n_games", indices=[0])[0])
        stage = RolloutStage(n_repeats=1, n_branch_candidates=4, temperature=1.0, **sizes)
        plays: Any = Plays(policy, venv)
        first = stage(plays, list(games), Streams(seed, 0), MAX_STEPS)
        unsure = replace(stage, branch_states="entropy", n_peek_states=0)
        branches, _ = play_from_states(unsure, plays, first.trunks, Streams(seed, 1), MAX_STEPS)
        venv.close()
        for path, experience in zip(folders, (first, Experience([], branches=branches)), strict=True):
            Experience.write(path, experience)
        write_json(folder / "played.json", {"seed": seed, **sizes})
    return Experience.read(folders[0]), Experience.read(folders[1])


def n_steps(rollouts: Sequence[Rollout]) -> int:
    """Steps of the environment that rollouts cost; a peek costs one."""
    return sum(len(r.rewards) for r in rollouts)


def spent(cell: Cell, experience: Experience, unsure: Experience) -> Experience:
    """The trunks, and what the steps behind them are spent on: as many as the cheapest of the three ways has.

    Args:
        cell: says on what.
        experience: what was played.
        unsure: with branches where the policy is unsure.
    """
    ways = {
        "others": experience.others,
        "branches": experience.branches,
        "entropy_branches": unsure.branches,
        "peeks": experience.peeks,
    }
    budget = min(n_steps(ways[name]) for name in ("others", "branches", "entropy_branches"))
    parts: dict[str, list[Rollout]] = {"others": [], "branches": [], "peeks": []}
    for name in cell.spend:
        for rollout in ways[name]:
            cost = n_steps([rollout])
            if cost > budget:
                break
            budget -= cost
            parts["branches" if name == "entropy_branches" else name].append(rollout)
    return Experience(experience.trunks, **parts)


def fit(cell: Cell, experience: Experience, save: Path, seed: int, quick: bool) -> AgentPRM:
    """Fit a PRM that starts as the policy.

    Args:
        cell: what to fit.
        experience: what to fit to.
        save: the policy.
        seed: of the order of episodes.
        quick: few passes.
    """
    torch.manual_seed(seed)
    passes = 24 if quick else PASSES
    n_epochs = max(1, passes // len(experience.trunks))
    venv = make_eval_env(n_envs=1, split="train", games="generated", max_episode_steps=MAX_STEPS)
    model = AgentPRM(str(save), venv, prm={"n_epochs": n_epochs, **cell.prm}, seed=seed, micro_batch_size=8)
    model.labels.prepare(experience)
    data = label_episodes(experience.episodes, model.fit.targets(experience, model.gamma))
    model.begin_prm()
    model.fit(model.prm, data, micro_batch_size=8, rng=np.random.default_rng([seed, 23]))
    venv.close()
    return model


def run(cell: Cell, states: Sequence[BenchState], metrics: PanelMetrics, args: Any, seed: int) -> dict[str, Any]:
    """One cell's numbers, made or read.

    Args:
        cell: the cell.
        states: the panel's states.
        metrics: what is measured on them.
        args: of the command line.
        seed: of everything.
    """
    work = args.work / ("quick" if args.quick else f"seed_{seed}")
    work.mkdir(parents=True, exist_ok=True)
    path: Path = work / f"{cell.name}.json"
    if not path.exists():
        policy = SFT.load(args.policy, env=None).policy
        experience, unsure = play(policy, QUICK if args.quick else FULL, seed, work)
        chosen, start = spent(cell, experience, unsure), time.perf_counter()
        model = fit(cell, chosen, args.policy, seed, args.quick)
        seconds = time.perf_counter() - start
        scores = score_panel(PRMRanker(model.prm), states)
        parts = {name: n_steps(getattr(chosen, name)) for name in ("trunks", "others", "branches", "peeks")}
        row = {"cell": cell.name, "seed": seed, "seconds": seconds, "steps": parts, **measure(scores, metrics)}
        write_json(path, row)
    row = json.loads(path.read_text(encoding="utf-8"))
    return dict(row)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a cell: means over seeds, and differences in points to the policy and to the default targets.

    Args:
        rows: the first is the policy's.

    Returns:
        Of each measure ``<measure>``, ``<measure>_over_policy`` and ``<measure>_over_default``, each with ``_half``, half of
        its 95 % interval over seeds; all in points. Regrets are turned round in differences: above 0 is better.
    """
    line, cells = rows[0], rows[1:]
    of: dict[str, dict[int, dict[str, Any]]] = {}
    for row in cells:
        of.setdefault(row["cell"], {})[row["seed"]] = row
    out: list[dict[str, Any]] = [{"cell": "policy", **{name: 100 * line[name] for name in MEASURES}}]
    for cell, seeds in of.items():
        found: dict[str, Any] = {"cell": cell, "seeds": sorted(seeds)}
        for name, sign in MEASURES.items():
            values = 100 * np.array([seeds[seed][name] for seed in sorted(seeds)])
            columns = {name: values, f"{name}_over_policy": sign * (values - 100 * line[name])}
            default = of.get(DEFAULT, {})
            if cell != DEFAULT and set(seeds) <= set(default):
                base = 100 * np.array([default[seed][name] for seed in sorted(seeds)])
                columns[f"{name}_over_default"] = sign * (values - base)
            for key, column in columns.items():
                mean, half = mean_interval(column)
                found[key] = float(mean)
                if len(column) > 1:
                    found[f"{key}_half"] = float(half)
        out.append(found)
    return out


def draw(shown: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel a measure: how far each cell is above the policy's log-probability, with intervals."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot as plt

    chart, panels = plt.subplots(1, len(MEASURES), figsize=(13, 4.4), sharey=True, layout="constrained", dpi=130)
    cells = [row for row in shown if row["cell"] != "policy"]
    for panel, name in zip(panels, MEASURES, strict=True):
        gains = [row[f"{name}_over_policy"] for row in cells]
        halves = [row.get(f"{name}_over_policy_half", 0.0) for row in cells]
        panel.barh([row["cell"] for row in cells], gains, xerr=halves, color="C0", capsize=3)
        panel.axvline(0.0, color="black", linewidth=1)
        panel.set_xlabel(f"{name}, points better than log pi")
        panel.grid(axis="x", alpha=0.25)
    panels[0].invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path)
    plt.close(chart)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few episodes, one seed, all cells: minutes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cells", nargs="+", choices=[c.name for c in CELLS], help="only these")
    parser.add_argument("--panel", default="generated", help="a panel with fair labels")
    parser.add_argument("--policy", type=Path, default=POLICIES / "sft_v1.zip")
    parser.add_argument("--work", type=Path, default=Path("runs/related_study"), help="where work is kept")
    parser.add_argument("--out", type=Path, default=RESULTS / "related_study.json", help="result file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    states = [s for s in read_panel(args.panel).states if s.split == "valid_seen" and s.player in ("sft", "better")]
    states = states[:40] if args.quick else states
    line = SFT.load(args.policy, env=None).policy
    log_probs = score_panel(PolicyRanker(line.responder, POLICY), states)
    metrics = PanelMetrics(states, "fair", policy=[softmax(x).tolist() for x in log_probs])
    about = {"quick": args.quick, "states": len(states), "passes": PASSES, "played": FULL}
    if not args.quick:
        known = {cell.name for cell in CELLS}
        take_over(
            args.out,
            about,
            lambda row: args.work / f"seed_{row['seed']}" / f"{row['cell']}.json" if row["cell"] in known else None,
        )
    rows: list[dict[str, Any]] = [{"cell": "policy", "seed": 0, **measure(log_probs, metrics)}]
    seeds = args.seeds[:1] if args.quick else args.seeds
    for seed in seeds:
        for cell in (c for c in CELLS if not args.cells or c.name in args.cells):
            rows.append(run(cell, states, metrics, args, seed))
            show(rows[:1] + rows[-1:])
    show(rows)
    shown = summary(rows)
    figures = {f"{row['cell']}_{key}": row[key] for row in shown for key in row if key not in ("cell", "seeds")}
    if not args.quick:
        draw(shown, args.out.with_suffix(".png"))
    write_json(
        args.out,
        {"name": "related_study", **provenance(), "date": datetime.date.today().isoformat(), "seeds": seeds,
         **about, "figures": figures, "summary": shown,
         "rows": rows},
    )  # fmt: skip
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
