"""Searches at equal model calls: ``python -m benchmarks.related_search [--quick] [--seeds 0 1 2] [--budget 100]``.

One policy, the bundled model as it is, plays generated ``valid_seen`` games with each search of the toolkit: it wins a third of
them, so there is something to gain. For each seed a process reward model is fitted to the policy's rollouts on train games, and
a model of the world to the transitions of other ones.

Each search gets the largest setting that is expected to stay within ``--budget`` model calls a turn: a call is one drawn
response or one distribution over commands, the score of one command, or one imagined outcome. A turn has about 30 admissible
commands, so whatever scores all of them costs that much. What was really called is measured and stands in the table, beside the
steps in the true game, which are privileged and cost no call. ``backtrack`` and everything with ``world`` = engine is planning
with a simulator, and is to be compared with other such rows only. ``look-ahead`` cannot be made that small: its row says so.

The rows ``best episode`` play each game many times from its beginning, and take the episode that the process reward model likes
best. They say what one number for an episode is worth: the last, the mean, the smallest, the product, the sum or the largest of
its turns' scores, or the sum of what a credit makes of them (``clip``, ``min-form``). ``best episode, any`` is one that was
won, where there is one: the limit of these rows.

What is finished stays in ``--work``, so an interrupted study goes on; and rows of the result file count as done. It writes
``results/related_search.json`` and a table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from agentprm_gym.files import read_json_object, write_whole
from agentprm_gym.prm import load_prm
from algorithms.cli.environments import drawn_games
from algorithms.cli.main import main as agentprm
from algorithms.cli.output import PlainConsole, provenance, write_json
from algorithms.common.acting.planning.situations import MODELS, model_calls
from algorithms.common.acting.planning.world_model import WorldModel, transitions
from algorithms.common.acting.rollouts import RolloutTask, collect
from algorithms.common.measure.evaluation import evaluate, make_eval_env, wilson
from algorithms.common.shell.load import load_actor, load_policy
from benchmarks._parts import take_over
from benchmarks._searches import EPISODE_VALUES, EPISODES, Setting, settings

RESULTS = Path(__file__).parent / "results"
POLICY = "tiny"
_FIT = ("rollout.n_games=400", "rollout.n_trunks=300", "rollout.n_branch_states=300", "improve.n_updates=1")
_QUICK_FIT = ("rollout.n_games=30", "rollout.n_repeats=1", "rollout.n_branch_states=10", "improve.n_updates=1")


def calls_of(actor: Any, setting: Setting, n_turns: int) -> dict[str, int]:
    """How often each kind of model was called.

    Args:
        actor: after it has played.
        setting: what it played.
        n_turns: turns that it played.
    """
    if hasattr(actor, "calls"):
        return {name: int(actor.calls.get(name, 0)) for name in (*MODELS, "steps")}
    draws = {"none": 1, "vote": setting.n, "best-of-n": setting.n}.get(setting.search, 0)
    rows = getattr(actor, "prm_rows", None)
    return {"policy": draws * n_turns, "prm": 0 if rows is None else rows.n_scored, "world": 0, "steps": 0}


class Study:
    """Folders and parts of the study."""

    def __init__(self, work: Path, *, quick: bool, budget: int, n_games: int) -> None:
        self.work, self.quick, self.budget, self.n_games = work, quick, budget, n_games

    def prm(self, seed: int, form: str = "") -> Path:
        """The process reward model of a seed, of the default form or another.

        Raises:
            RuntimeError: its training failed.
        """
        out = self.work / (f"prm_{form}_{seed}" if form else f"prm_{seed}")
        if not (out / "model.zip").exists():
            fit = [*(_QUICK_FIT if self.quick else _FIT), *([f"prm.form={form}"] if form else [])]
            words = ["train", "--algo", "agentprm", "--policy", POLICY, "--iterations", 1, "--games", "generated"]
            words += ["--seed", seed, "--threads", 1, "--out", out, "--set", *fit]
            if agentprm([str(word) for word in words]):
                raise RuntimeError(f"the process reward model of seed {seed} could not be made; see the message above")
        return out / "model.zip"

    def world(self, seed: int) -> Path:
        """The model of the world of a seed, and its losses beside it."""
        path = self.work / f"world_{seed}.zip"
        if not path.exists():
            venv = make_eval_env(n_envs=32, games="generated", split="train", max_episode_steps=30)
            policy: Any = load_policy(POLICY, venv)
            rng = np.random.default_rng([seed, 77])
            n = 8 if self.quick else 200
            games = rng.permutation(int(venv.get_attr("n_games", indices=[0])[0]))[:n]
            tasks = [RolloutTask({"game": int(g)}, (seed, 77, i)) for i, g in enumerate(games)]
            played = collect(policy.actor(venv.num_envs), venv, tasks) or []
            venv.close()
            data = transitions([rollout.episode for rollout in played])
            model = WorldModel(policy.lm, {"r": 16, "lora_alpha": 32})
            losses = model.fit(data[: 40 if self.quick else None], n_epochs=1 if self.quick else 2, rng=rng)
            model.save(path)
            write_whole(path.with_suffix(".json"), json.dumps({"n_transitions": len(data), "losses": losses}))
        return path

    def path(self, setting: Setting, seed: int) -> Path:
        """Where a finished row is kept; other settings are another row."""
        slug = "".join(c if c.isalnum() else "_" for c in setting.name)
        return self.work / f"{slug}_{zlib.crc32(repr(setting).encode()):08x}_{self.n_games}_{seed}.json"

    def path_of(self, row: Mapping[str, Any]) -> Path | None:
        """Where a row of a result file belongs; ``None`` for one that was played with other settings."""
        for one in settings(self.budget):
            if (one.name, one.n, one.depth, one.options) == tuple(row[k] for k in ("name", "n", "depth", "options")):
                return self.path(one, row["seed"])
        return None

    def held_out(self, n_envs: int) -> tuple[Any, Sequence[int]]:
        """Environments of the held-out games, and the games that every search plays."""
        venv = make_eval_env(n_envs=n_envs, games="generated", split="valid_seen", max_episode_steps=30)
        return venv, drawn_games(venv, self.n_games, 0)

    def play(self, setting: Setting, seed: int) -> dict[str, Any]:
        """Play the games with one search; what was played before is read."""
        path = self.path(setting, seed)
        if path.exists():
            return read_json_object(path)
        if setting.search == EPISODES:
            row = self.best_episodes(setting, seed)
            write_whole(path, json.dumps(row))
            return row
        options = dict(setting.options)
        form = options.pop("prm", "")
        if options.get("world") == "fitted":
            options["world"] = str(self.world(seed))
        needs = setting.search not in ("none", "vote", "vote-similar") and options.get("leaf") != "rollout"
        venv, games = self.held_out(n_envs=16)
        actor: Any = load_actor(
            POLICY,
            venv,
            search=setting.search,
            n=setting.n,
            depth=setting.depth,
            prm=str(self.prm(seed, form)) if needs else None,
            search_options=options or None,
        )
        begun = time.perf_counter()
        episodes = evaluate(actor, venv, games=games, seed=seed)
        venv.close()
        n_turns = sum(len(e.turns) for e in episodes)
        row = {
            **about(setting, seed),
            "n_games": len(episodes),
            "won": sum(e.success for e in episodes),
            "n_turns": n_turns,
            "calls": calls_of(actor, setting, n_turns),
            "seconds": time.perf_counter() - begun,
        }
        write_whole(path, json.dumps(row))
        return row

    def scored_episodes(self, n: int, seed: int) -> dict[str, Any]:
        """Many episodes of each game with the scores of their turns, and the seconds that they took; kept in a file.

        Args:
            n: episodes of each game.
            seed: of the process reward model, and of the policy's draws.
        """
        path = self.work / f"episodes_{self.n_games}_{n}_{seed}.json"
        if not path.exists():
            venv, drawn = self.held_out(n_envs=64)
            policy: Any = load_policy(POLICY, venv)
            prm = load_prm(self.prm(seed), policy.lm)
            games = [game for game in drawn for _ in range(n)]
            tasks = [RolloutTask({"game": int(game)}, (seed, 78, i)) for i, game in enumerate(games)]
            begun = time.perf_counter()
            played = collect(policy.actor(venv.num_envs), venv, tasks) or []
            venv.close()
            found: list[list[dict[str, Any]]] = [[] for _ in range(self.n_games)]
            for i, episode in enumerate(rollout.episode for rollout in played):
                scores = prm.score_turns(episode.task, episode.turns).tolist()
                found[i // n].append({"won": episode.success, "scores": scores})
            write_whole(path, json.dumps({"seconds": time.perf_counter() - begun, "games": found}))
        return read_json_object(path)

    def best_episodes(self, setting: Setting, seed: int) -> dict[str, Any]:
        """The row of the best of many whole episodes of each game, by one number for each."""
        played, by = self.scored_episodes(setting.n, seed), setting.options["by"]
        value = EPISODE_VALUES.get(by)
        chosen = [
            max(game, key=lambda e: e["won"] if value is None else value(e["scores"])) for game in played["games"]
        ]
        n_played = sum(len(e["scores"]) for game in played["games"] for e in game)
        return {
            **about(setting, seed),
            "n_games": len(chosen),
            "won": sum(e["won"] for e in chosen),
            "n_turns": sum(len(e["scores"]) for e in chosen),
            "calls": {"policy": n_played, "prm": 0 if value is None else n_played, "world": 0, "steps": n_played},
            "seconds": played["seconds"],
        }


def about(setting: Setting, seed: int) -> dict[str, Any]:
    """What a row says of itself."""
    return {
        "name": setting.name,
        "seed": seed,
        "privileged": setting.privileged,
        "n": setting.n,
        "depth": setting.depth,
        "options": setting.options,
    }


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a search, over its seeds: success with a Wilson interval over all games played, and calls a turn."""
    out = []
    for name in dict.fromkeys(row["name"] for row in rows):
        some = [row for row in rows if row["name"] == name]
        won, played = (sum(row[key] for row in some) for key in ("won", "n_games"))
        turns = sum(row["n_turns"] for row in some)
        low, high = wilson(won, played)
        out.append(
            {
                "name": name,
                "privileged": some[0]["privileged"],
                "success": won / played,
                "low": low,
                "high": high,
                "by_seed": [row["won"] / row["n_games"] for row in some],
                "mean_turns": turns / played,
                "calls_a_turn": sum(model_calls(row["calls"]) for row in some) / turns,
                "steps_a_turn": sum(row["calls"]["steps"] for row in some) / turns,
                "seconds": sum(row["seconds"] for row in some),
            }
        )
    return out


def table(rows: Sequence[dict[str, Any]], budget: int) -> Table:
    """The summary to read."""
    shown = Table(title=f"searches at about {budget} model calls a turn")
    for column in ("search", "success", "95 %", "turns", "calls/turn", "steps/turn", "true game"):
        shown.add_column(column, no_wrap=column == "search")
    for row in rows:
        interval = f"{100 * row['low']:.0f} to {100 * row['high']:.0f}"
        numbers = (f"{100 * row['success']:.1f} %", interval, f"{row['mean_turns']:.1f}", f"{row['calls_a_turn']:.1f}")
        shown.add_row(row["name"], *numbers, f"{row['steps_a_turn']:.1f}", "yes" if row["privileged"] else "")
    return shown


def draw(rows: Sequence[dict[str, Any]], budget: int, path: Path) -> None:
    """Success of each search with its interval; searches that look at the true game in another colour."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot as plt

    chart, panel = plt.subplots(figsize=(8, 0.3 * len(rows) + 1), layout="constrained", dpi=130)
    for privileged, label in ((False, "models alone"), (True, "looks at the true game")):
        some = [row for row in rows if row["privileged"] == privileged]
        heights = np.array([100 * row["success"] for row in some])
        ends = np.array(
            [[100 * row["success"] - 100 * row["low"], 100 * row["high"] - 100 * row["success"]] for row in some]
        )
        names = [f"{row['name']} ({row['calls_a_turn']:.0f} calls)" for row in some]
        panel.barh(names, heights, xerr=ends.T if some else None, capsize=3, label=label, color=f"C{int(privileged)}")
    panel.invert_yaxis()
    panel.set_xlabel(f"success % on valid_seen, about {budget} model calls a turn")
    panel.grid(axis="x", alpha=0.25)
    panel.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path)
    plt.close(chart)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few games and a small fit: to see that it runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=int, default=100, help="model calls a turn (default: 100)")
    parser.add_argument(
        "--games", type=int, default=None, help="held-out games a search and seed (default: 50; 3 with --quick)"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/related_search"), help="where finished parts stay")
    parser.add_argument("--out", type=Path, default=RESULTS / "related_search.json")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only searches whose names begin so")
    args = parser.parse_args(argv)
    n_games = args.games or (3 if args.quick else 50)
    work = args.work / ("quick" if args.quick else "full")
    work.mkdir(parents=True, exist_ok=True)
    study = Study(work, quick=args.quick, budget=args.budget, n_games=n_games)
    chosen = [s for s in settings(args.budget) if not args.only or s.name.startswith(tuple(args.only))]
    console, rows = PlainConsole(), []
    torch.set_num_threads(1)
    whole = {"budget": args.budget, "n_games": n_games, "policy": POLICY}
    if not args.quick:
        take_over(args.out, whole, study.path_of)
    for seed in args.seeds[:1] if args.quick else args.seeds:
        for setting in chosen:
            rows.append(study.play(setting, seed))
            console.print(f"seed {seed}, {setting.name}: {rows[-1]['won']} of {rows[-1]['n_games']} games won")
    found = summary(rows)
    console.print(table(found, args.budget))
    if not args.quick:
        date = datetime.date.today().isoformat()
        made_by = provenance()  # before a file changes
        draw(found, args.budget, args.out.with_suffix(".png"))
        figures = {
            f"{row['name']}_{key}": row[key] for row in found for key in ("success", "low", "high", "calls_a_turn")
        }
        write_json(
            args.out,
            {
                "name": "related_search",
                **made_by,
                "date": date,
                **whole,
                "seeds": args.seeds,
                "figures": figures,
                "summary": found,
                "rows": rows,
            },
        )


if __name__ == "__main__":
    main()
