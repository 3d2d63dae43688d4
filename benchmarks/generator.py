"""Generated games against real ones: ``python -m benchmarks.generator [--quick] [--splits S ...] [--out FILE]``.

Takes games of both sources, split by split, and measures how far apart they are: their scenes, rooms, tasks and things, how
many there are, where they lie, and how many steps experts need. Features that are kinds are compared by total variation (0: the
same shares, 1: nothing in common). Features that are numbers are compared by the Wasserstein-1 distance (how far the values
have to be moved on average, in their own unit). Beside each distance stands a reference: how far two random halves of the real
games are apart. Real games have some task types more often than others, and in generated games the task types take turns, so
each distance is also given with the real games weighted by the generated games' task types. ALFWorld's valid_unseen has four
floor plans, and the generated valid_unseen has all twelve that ALFRED keeps out of train, so these two are far apart by design.
Without the real games nothing is compared, and the exit status is 2.
"""

from __future__ import annotations

import argparse
import datetime
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from agentprm_gym.experts import Planner, demonstrate
from agentprm_gym.games import GENERATED_SPLITS, DataNotFoundError, Game, find_games
from agentprm_gym.games.generation.generate import GENERATOR_VERSION
from agentprm_gym.games.generation.scenes import room_kind

RESULTS = Path(__file__).parent / "results"
#: The features that are kinds; all others are numbers.
KINDS = ("scene", "room", "task type", "goal", "receptacle types", "object types", "what lies where")
_N_HALVINGS = 10

#: The values of each feature of one game. Some features have one value for each game, some have many.
Features = Mapping[str, Sequence[Any]]


class Comparison(NamedTuple):
    """How far generated games are from real ones in one feature.

    Attributes:
        feature: The name of the feature.
        measure: ``"total variation"`` or ``"Wasserstein-1"``.
        real: Mean of the real values; ``None`` for kinds.
        generated: Mean of the generated values; ``None`` for kinds.
        distance: The distance between real and generated games.
        same_mix: The same, with the real games weighted by the generated games' task types.
        halves: The reference: the distance between two random halves of the real games, the mean over some halvings.
    """

    feature: str
    measure: str
    real: float | None
    generated: float | None
    distance: float
    same_mix: float
    halves: float


# Measuring ----------------------------------------------------------------------------------------


def features(game: Game) -> dict[str, list[Any]]:
    """Return the features of one game."""
    scene = int(game.game_id.split("/")[0].rsplit("-", 1)[1])
    # An object may be in several receptacles; it is one object.
    home = {thing: receptacle for receptacle, things in game.contents.items() for thing in things}
    found: dict[str, list[Any]] = {
        "scene": [scene],
        "room": [room_kind(scene)],
        "task type": [game.task_type],
        "goal": [game.game_id.split("/")[0].rsplit("-", 1)[0]],
        "receptacle types": list(game.receptacle_types.values()),
        "object types": [_kind(thing) for thing in home],
        "what lies where": [f"{_kind(t)} {game.receptacle_types[r]}" for r, ts in game.contents.items() for t in ts],
        "receptacles": [len(game.receptacles)],
        "receptacles with doors": [len(game.properties["openable"])],
        "places to stand": [len(set(game.receptacles.values()))],
        "objects": [len(home)],
        "objects out of reach": [len(game.locations) - len(home)],
        "targets": [sum(game.object_types.get(thing) == game.goal.object_type for thing in home)],
        "walkthrough": [len(game.walkthrough)],
        "search expert": [len(demonstrate(game, max_steps=50).turns)],
        "shortest plan": [len(Planner(game).plan())],
    }
    for receptacle, kind in game.receptacle_types.items():
        found.setdefault(f"in a {kind.lower()}", []).append(len(game.contents.get(receptacle, ())))
    return found


def _kind(name: str) -> str:
    return name.rsplit(" ", 1)[0]


def distance(
    feature: str, one: Sequence[Features], other: Sequence[Features], weights: Mapping[str, float] | None = None
) -> float:
    """Return how far two sets of games are apart in a feature.

    Args:
        feature: The name of the feature; it counts as 0 in a set of games that does not have it.
        one: Some games.
        other: Other games.
        weights: Weights of the games in ``one``, by their task type; all are equal by default.
    """
    p, q = _shares(feature, one, weights), _shares(feature, other, None)
    if feature in KINDS:
        return sum(abs(p.get(value, 0.0) - q.get(value, 0.0)) for value in p.keys() | q.keys()) / 2
    p, q = p or {0: 1.0}, q or {0: 1.0}
    values, gap, total = sorted(p.keys() | q.keys()), 0.0, 0.0
    for value, following in pairwise(values):
        gap += p.get(value, 0.0) - q.get(value, 0.0)
        total += abs(gap) * (following - value)
    return total


def _shares(feature: str, games: Sequence[Features], weights: Mapping[str, float] | None) -> dict[Any, float]:
    shares: dict[Any, float] = defaultdict(float)
    for game in games:
        weight = 1.0 if weights is None else weights.get(game["task type"][0], 0.0)
        for value in game.get(feature, ()):
            shares[value] += weight
    total = sum(shares.values())
    return {value: share / total for value, share in shares.items()} if total else {}


def compare(real: Sequence[Features], generated: Sequence[Features], seed: int = 0) -> list[Comparison]:
    """Compare two sets of games in all features.

    Args:
        real: At least two games.
        generated: At least one game.
        seed: Draws the halves of the real games.
    """
    mix, wanted = (Counter(game["task type"][0] for game in games) for games in (real, generated))
    weights = {kind: wanted[kind] / len(generated) / (n / len(real)) for kind, n in mix.items()}
    rng = random.Random(seed)
    halvings = [_halves(real, rng) for _ in range(_N_HALVINGS)]
    rows = []
    for feature in dict.fromkeys(f for game in (*real, *generated) for f in game):
        is_kind = feature in KINDS
        rows.append(
            Comparison(
                feature,
                "total variation" if is_kind else "Wasserstein-1",
                None if is_kind else _mean(feature, real),
                None if is_kind else _mean(feature, generated),
                distance(feature, real, generated),
                distance(feature, real, generated, weights),
                fmean(distance(feature, *halves) for halves in halvings),
            )
        )
    return rows


def _halves(games: Sequence[Features], rng: random.Random) -> tuple[list[Features], list[Features]]:
    shuffled = rng.sample(list(games), len(games))
    return shuffled[: len(games) // 2], shuffled[len(games) // 2 :]


def _mean(feature: str, games: Sequence[Features]) -> float:
    values = [value for game in games for value in game.get(feature, ())]
    return fmean(values) if values else 0.0


# The measurement ----------------------------------------------------------------------------------


def spread(n: int, wanted: int) -> list[int]:
    """Return ``wanted`` of the indices of ``n`` games, evenly spread."""
    return [i * n // wanted for i in range(wanted)] if wanted < n else list(range(n))


def sample(split: str, source: str, wanted: int, tick: Callable[[Any], None] = lambda _: None) -> list[Features]:
    """Measure some games of a split.

    Raises:
        DataNotFoundError: The split has no games.
    """
    games = find_games(split, source)
    found: list[Features] = []
    for index in spread(len(games), wanted):
        found.append(features(games[index]))
        tick(index)
    return found


def run(splits: Sequence[str], wanted: int, console: Console) -> dict[str, Any]:
    """Compare split by split, and return the results.

    Raises:
        DataNotFoundError: Real games were not found.
    """
    from algorithms.cli.progress import counted, progress, stage

    rows, figures = [], {}
    with progress(console) as bars:
        for split in splits:
            measured = {}
            for source in ("alfworld", "generated"):
                n = min(wanted, len(find_games(split, source)))
                with stage(bars, f"{split}: measure {n} {source} games", n) as done:
                    measured[source] = sample(split, source, wanted, counted(done))
                figures[f"{split}_{source}_games"] = float(n)
            for row in compare(measured["alfworld"], measured["generated"]):
                rows.append({"split": split, **row._asdict()})
                key = f"{split}_{row.feature.replace(' ', '_')}"
                figures |= {f"{key}_{name}": getattr(row, name) for name in ("distance", "same_mix", "halves")}
    return {"figures": figures, "rows": rows}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    from algorithms.cli.arguments import positive
    from algorithms.cli.output import PlainConsole, provenance, write_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=GENERATED_SPLITS,
        default=list(GENERATED_SPLITS),
        help="which splits (default: all)",
    )
    parser.add_argument(
        "--games",
        type=positive,
        default=4000,
        metavar="N",
        help="games of each source and split, at most (default: all)",
    )
    parser.add_argument("--quick", action="store_true", help="300 games of each, for a first look")
    parser.add_argument("--out", type=Path, default=RESULTS / "generator.json", help="result file")
    args = parser.parse_args(argv)
    console = PlainConsole(width=None if sys.stdout.isatty() else 120)
    try:
        results = run(args.splits, min(args.games, 300) if args.quick else args.games, console)
    except DataNotFoundError as error:
        print(f"nothing to compare the generated games with: {error}", file=sys.stderr)
        return 2
    for split in args.splits:
        console.print(_table(split, results))
    made_with = {key: value for key, value in provenance().items() if key in ("commit", "machine", "versions")}
    made_with |= {"date": datetime.date.today().isoformat(), "generator_version": GENERATOR_VERSION}
    write_json(args.out, {"name": "generator", **made_with, "seeds": [0], "quick": args.quick, **results})
    console.print(f"written to {args.out}", highlight=False)
    return 0


def _table(split: str, results: Mapping[str, Any]) -> Table:
    n = {source: int(results["figures"][f"{split}_{source}_games"]) for source in ("alfworld", "generated")}
    table = Table(title=f"{split}: {n['alfworld']} real games, {n['generated']} generated")
    table.add_column("feature", no_wrap=True)
    for column in ("measure", "real mean", "generated mean", "distance", "same task mix", "halves of the real"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    for row in results["rows"]:
        if row["split"] == split:
            means = ["" if row[key] is None else f"{row[key]:.2f}" for key in ("real", "generated")]
            numbers = [f"{row[key]:.3f}" for key in ("distance", "same_mix", "halves")]
            table.add_row(row["feature"], row["measure"], *means, *numbers)
    return table


if __name__ == "__main__":
    raise SystemExit(main())
