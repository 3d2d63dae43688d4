"""What the bundled base knows: ``python -m benchmarks.base_probes [--quick] [--model tiny] [--out FILE]``.

The base stands for a pretrained language model, so it should know words, places and commands, and notice what it has seen,
before anybody trains it for the job. It plays generated games of ``valid_unseen``, whose rooms occur in no corpus: as it is; as
it is where somebody asks for the task in a sentence ("Please: ..."); and after SFT on few and on many demonstrations. Each of
these plays every game once, greedily and sampled. Probes are shares of commands:

* ``other_type``: of all things taken, those of a type that the task does not name;
* ``returns``: of all walks with an empty hand, those to a place that was seen before and held nothing of the wanted type;
* ``repeats``: of all commands, those that repeat the command before.

With it stands the loss of the base over its training (``recipe.json``), as a table and as a plot.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.experts import demonstrations
from agentprm_gym.experts.search import read_task
from agentprm_gym.games import find_games
from agentprm_gym.llm.loading import resolve_model
from algorithms import SFT
from algorithms.cli.output import provenance, write_json
from algorithms.common.acting.actors import Actor, Answer, Request
from algorithms.common.measure.evaluation import evaluate, make_eval_env, wilson

RESULTS = Path(__file__).parent / "results"
#: Passes over the demonstrations; the default of ``agentprm train --algo sft``.
EPOCHS = 8
_CONTENTS = re.compile(r"(?:On the (\w+ \d+)|The (\w+ \d+) is open\. In it), you see ([^.]*)\.")


class Asked:
    """An actor that is asked for the task by somebody, at the first turn."""

    def __init__(self, actor: Actor) -> None:
        self.actor, self.waiting = actor, set[int]()

    def start(self, row: int, task: str, history: Sequence[Turn]) -> None:
        """Begin an episode."""
        self.actor.start(row, task, history)
        self.waiting.add(row)

    def executed(self, row: int, turn: Turn) -> None:
        """Take note of what was executed."""
        self.actor.executed(row, turn)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer, once the task was asked for."""
        for request in requests:
            if request.row in self.waiting:
                request.feedback += f" Please: {request.task}"
        self.waiting -= {request.row for request in requests}
        return list(self.actor.answer(requests))


def probes(episodes: Sequence[Episode]) -> dict[str, float]:
    """Count what a careful player does not do.

    Args:
        episodes: of games whose task sentence is one of ALFWorld's.

    Returns:
        ``other_type``, ``returns`` and ``repeats`` (shares, NaN where there is no such command), and ``takes``, how many
        things were taken.
    """
    takes = others = walks = returns = commands = repeats = 0
    for episode in episodes:
        goal = read_task(episode.task)
        named = {goal.object_type, goal.receptacle_type}
        seen: dict[str, bool] = {}  # place -> whether it held something of the wanted type
        holding, before = False, ""
        for turn in episode.turns:
            for on, inside, listing in _CONTENTS.findall(turn.feedback):
                seen[on or inside] = re.search(rf"\b{goal.object_type} \d", listing) is not None
            verb, _, rest = turn.command.partition(" ")
            commands += 1
            repeats += turn.command == before
            if verb == "take":
                takes += 1
                others += rest.split(" ")[0] not in named
                holding = True
            elif verb in ("move", "put"):
                holding = False
            elif verb == "go" and not holding:
                walks += 1
                returns += seen.get(rest.removeprefix("to ")) is False
            before = turn.command
    return {
        "other_type": others / takes if takes else float("nan"),
        "returns": returns / walks if walks else float("nan"),
        "repeats": repeats / commands if commands else float("nan"),
        "takes": float(takes),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few games, few demonstrations")
    parser.add_argument("--model", default="tiny", help="alias or folder of the base")
    parser.add_argument("--games", type=int, default=200, help="how many games")
    parser.add_argument("--demos", type=int, nargs="*", default=[100, 1000], help="demonstrations for SFT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "base_probes.json", help="result file")
    args = parser.parse_args()
    n_games, sizes = (24, [20]) if args.quick else (args.games, args.demos)
    venv = make_eval_env("ALFWorld-v0", n_envs=32, split="valid_unseen", games="generated")
    figures: dict[str, float] = {}
    rows = []
    table = Table(title=f"{args.model} on {n_games} generated games of valid_unseen")
    for column in ("policy", "acting", "won %", "other type %", "returns %", "repeats %"):
        table.add_column(column)
    for name in ["zero-shot", "asked", *(f"SFT on {n}" for n in sizes)]:
        taught = name.startswith("SFT")
        shown = demonstrations(find_games("train", "generated"), int(name.split()[-1]), args.seed) if taught else None
        model = SFT(args.model, make_eval_env(n_envs=1, games="generated"), demonstrations=shown, seed=args.seed)
        if shown:
            model.learn(EPOCHS * sum(len(episode.turns) for episode in shown))
        for how, temperature in (("greedy", 0.0), ("sampled", 1.0)):
            actor: Actor = model.policy.actor(32, temperature=temperature)
            if name == "asked":
                actor = Asked(actor)
            found = evaluate(actor, venv, games=range(n_games), seed=args.seed, policy_name=name)
            wins = sum(e.success for e in found)
            low, high = wilson(wins, len(found))
            row = {"policy": name, "acting": how, "won": wins / len(found), "low": low, "high": high, **probes(found)}
            rows.append(row)
            key = f"{name.lower().replace(' ', '_').replace('-', '_')}_{how}"
            figures |= {f"{key}_{part}": float(row[part]) for part in ("won", "other_type", "returns", "repeats")}
            percent = [f"{100 * float(row[p]):.1f}" for p in ("won", "other_type", "returns", "repeats")]
            table.add_row(name, how, *percent)
    Console().print(table)
    told = Path(resolve_model(args.model)) / "recipe.json"
    recipe = json.loads(told.read_text(encoding="utf-8")) if told.exists() else {}
    write_json(
        args.out,
        {"name": "base_probes", **provenance(), "date": datetime.date.today().isoformat(), "seeds": [args.seed],
         "quick": args.quick, "figures": figures, "rows": rows, "curve": recipe.get("curve", [])},
    )  # fmt: skip
    if recipe.get("curve"):
        draw_curve(np.array(recipe["curve"]), args.out.with_suffix(".png"))
    print(f"written to {args.out}")


def draw_curve(curve: np.ndarray, path: Path) -> None:
    """Draw the loss of the base over its training.

    Args:
        curve: rows of million tokens, loss of command tokens, loss of all others.
        path: the PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for column, label in ((1, "what players do"), (2, "what the world says")):
        axis.plot(curve[:, 0], curve[:, column], label=label)
    axis.set(xlabel="million tokens", ylabel="loss, nats a token", ylim=(0, 2.5))
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
