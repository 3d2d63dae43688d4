"""Baselines under the protocol: ``python -m benchmarks.baselines [--quick] [--server URL --model-name NAME] [--out FILE]``.

Who plays every game of a split once, at most 30 turns, without being trained here: random admissible commands, the searching
expert, who knows what a player knows, the planner, who sees the whole game, and the bundled model as it is. With ``--server``,
``--model-name`` and ``--prompt`` also a prompted model on an OpenAI-compatible server.

Games are ALFWorld's own where they are installed, and generated ones. The table is written beside the result file, and into
docs/protocol.md between its two marks. Each evaluation is a run of ``agentprm eval`` with a folder of its own below ``--runs``,
so an interrupted series goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentprm_gym.games import DataNotFoundError, find_games
from algorithms.cli.output import PlainConsole, provenance, write_json, write_text
from benchmarks._parts import Parts, side_by_side
from benchmarks._tables import Figures

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "protocol.md"
#: Between these lines of the page the table stands.
MARKS = ("<!-- The table of benchmarks/baselines.py -->", "<!-- Its end -->")
SOURCES, SPLITS = ("alfworld", "generated"), ("valid_seen", "valid_unseen")
MAX_STEPS = 30


@dataclass(frozen=True, slots=True)
class Player:
    """Who plays.

    Attributes:
        name: in figures, and of the folder.
        title: for people.
        args: of ``agentprm eval``.
    """

    name: str
    title: str
    args: tuple[object, ...]


PLAYERS = (
    Player("random", "random admissible commands", ("random",)),
    Player("base_sampled", "the bundled model as it is, sampled", ("tiny", "--temperature", 1)),
    Player("base_greedy", "the bundled model as it is, greedy", ("tiny", "--temperature", 0)),
    Player("expert", "the searching expert", ("expert",)),
    Player("planner", "the planner, which sees the whole game", ("planner",)),
)


def prompted(url: str, name: str, prompt: str) -> Player:
    """A prompted model on a server."""
    args = (f"openai:{url}", "--model-name", name, "--prompt", prompt, "--temperature", 0)
    return Player(f"{name}_{prompt}", f"{name}, prompt {prompt}, greedy", args)


def sources() -> list[str]:
    """Where games come from that are at hand."""
    found = []
    for source in SOURCES:
        try:
            find_games("valid_unseen", source)
        except DataNotFoundError as error:
            print(f"left out: {error}")
        else:
            found.append(source)
    return found


def folder_of(player: Player, source: str, split: str) -> str:
    """Folder of an evaluation."""
    return f"{source}_{split}_{player.name}".replace("/", "_")


def go(study: Parts, players: Sequence[Player], games: Sequence[str], max_games: int | None, jobs: int) -> None:
    """Play all that was not played."""

    def play(task: tuple[Player, str, str]) -> None:
        player, source, split = task
        few = [] if max_games is None else ["--max-games", max_games]
        words = ["--games", source, "--split", split, "--max-steps", MAX_STEPS, "--seed", 0, *few]
        study.run(study.folder / folder_of(player, source, split), "result.json", "eval", *player.args, *words)

    side_by_side(play, [(p, source, split) for source in games for split in SPLITS for p in players], jobs)


def rows_of(study: Parts, players: Sequence[Player], games: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each player, source and split: rates over all games and by task type, with the protocol."""
    rows = []
    for source in games:
        for split in SPLITS:
            for player in players:
                path = study.folder / folder_of(player, source, split) / "result.json"
                result = json.loads(path.read_text(encoding="utf-8"))
                of = {"games": source, "split": split, "player": player.name, "title": player.title}
                by_type = {row["name"]: row["success"] for row in result["rows"][:-1]}
                rows.append({**of, **result["rows"][-1], "by_type": by_type, "protocol": result["protocol"]})
    return rows


def figures_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Success in [0, 1] with Wilson's interval, and mean steps, by ``<player>_<games>_<split>``."""
    figures = {}
    for row in rows:
        name = f"{row['player']}_{row['games']}_{row['split']}"
        figures |= {name: row["success"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
        figures[f"{name}_steps"] = row["mean_steps"]
    return figures


def table(rows: Sequence[Mapping[str, Any]]) -> Figures:
    """The baselines for people: success in percent with Wilson's interval, and mean steps."""
    games = list(dict.fromkeys((row["games"], row["split"]) for row in rows))
    sizes = {(row["games"], row["split"]): row["n"] for row in rows}
    cells: dict[str, dict[tuple[str, str], str]] = {}
    for row in rows:
        low, high = 100 * row["low"], 100 * row["high"]
        text = f"{100 * row['success']:.1f} [{low:.1f}, {high:.1f}], {row['mean_steps']:.1f}"
        cells.setdefault(row["title"], {})[row["games"], row["split"]] = text
    return Figures(
        f"success % with 95 % Wilson intervals, mean steps (failures count {MAX_STEPS})",
        ["player", *(f"{source} {split}, {sizes[source, split]} games" for source, split in games)],
        [[title, *(of.get(one, "") for one in games)] for title, of in cells.items()],
    )


def with_table(page: str, shown: str) -> str:
    """A page with another table between its marks.

    Raises:
        ValueError: the marks are not there.
    """
    first, last = MARKS
    if first not in page or last not in page:
        raise ValueError(f"expected the lines {first!r} and {last!r} on the page, between which the table is written")
    head, _, rest = page.partition(first)
    _, _, tail = rest.partition(last)
    return f"{head}{first}\n\n{shown}\n{last}{tail}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="twelve games of each split: a first look")
    parser.add_argument("--server", metavar="URL", help="base URL of an OpenAI-compatible server, up to /v1")
    parser.add_argument("--model-name", metavar="NAME", help="the model's name there")
    parser.add_argument("--prompt", default="react", help="its prompt template")
    parser.add_argument("--jobs", type=int, default=1, help="evaluations side by side, one core each")
    parser.add_argument("--runs", type=Path, help="where the evaluations are (default: runs/baselines)")
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/baselines.json)")
    args = parser.parse_args()
    if (args.server is None) != (args.model_name is None):
        parser.error("--server and --model-name belong together")
    extra = () if args.server is None else (prompted(args.server, args.model_name, args.prompt),)
    players, games = (*PLAYERS, *extra), sources()
    folder = args.runs or Path("runs") / ("baselines_quick" if args.quick else "baselines")
    out = args.out or (folder if args.quick else RESULTS) / "baselines.json"
    study = Parts(folder, n_workers=args.jobs)
    go(study, players, games, 12 if args.quick else None, args.jobs)
    rows = rows_of(study, players, games)
    shown = table(rows)
    shown.show(PlainConsole(width=None if sys.stdout.isatty() else 190))
    write_json(
        out,
        {"name": "baselines", **provenance(), "date": datetime.date.today().isoformat(), "seeds": [0],
         "quick": args.quick, "figures": figures_of(rows), "rows": rows},
    )  # fmt: skip
    write_text(out.with_suffix(".md"), shown.markdown())
    if out == RESULTS / "baselines.json":
        write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), shown.markdown()))
    print(f"written to {out}")


if __name__ == "__main__":
    main()
