"""Write generated games to disk in the official layout, so that the stock stack can also play them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agentprm_gym.files import write_whole
from agentprm_gym.games.generation.generate import GENERATOR_VERSION, generate_game
from agentprm_gym.games.generation.knobs import GeneratorKwargs

_OFFICIAL_KEYS = ("pddl_domain", "grammar", "pddl_problem", "solvable", "walkthrough")


def write_games(
    folder: str | os.PathLike[str],
    n: int,
    split: str = "train",
    generator: GeneratorKwargs = GeneratorKwargs(),  # noqa: B008 - a tuple of constants
    *,
    overwrite: bool = False,
    on_game: Callable[[str], None] | None = None,
) -> int:
    """Write ``<folder>/json_2.1.1/<split>/<task>/<trial>/game.tw-pddl``, and a ``traj_data.json`` beside each.

    Games that exist already are not changed, so that an interrupted run can be repeated, and series with other seeds or knobs
    can be added.

    Args:
        folder: The folder that ``ALFWORLD_DATA`` or ``games=`` may then name.
        n: The number of games: those with the indices 0 to n - 1.
        split: The split.
        generator: Knobs and seed; its ``n_games`` is ignored.
        overwrite: Whether to replace files with other content.
        on_game: Called with each game's id.

    Returns:
        The number of games that are new or were replaced.

    Raises:
        FileExistsError: A file exists and has other content, or the folder holds games that were not generated.
        ValueError: See :func:`agentprm_gym.games.generation.generate.generate_game`.
    """
    root = Path(folder) / "json_2.1.1" / split
    foreign = next((path for path in root.glob("*/*/") if not path.name.startswith("trial_G")), None)
    if foreign is not None:
        raise FileExistsError(
            f"{foreign} is not a generated game: choose another folder, so that generated and official games stay apart"
        )
    n_new = 0
    for index in range(n):
        data = generate_game(split, index, generator.seed, generator.knobs)
        files = {
            "traj_data.json": json.dumps(_traj_data(data, index, generator)),
            # The game comes last: where it exists, both files are complete.
            "game.tw-pddl": json.dumps({key: data[key] for key in _OFFICIAL_KEYS}),
        }
        trial = root / data["game_id"]
        n_new += any([_write(trial / name, text, overwrite) for name, text in files.items()])
        if on_game is not None:
            on_game(data["game_id"])
    return n_new


def _write(path: Path, text: str, overwrite: bool) -> bool:
    """Write a file whole or not at all; returns whether it was not there, or not like this."""
    try:
        old = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    else:
        if old == text:
            return False
        if not overwrite:
            raise FileExistsError(
                f"{path} exists and differs from what would be written; perhaps another version of the generator wrote it: "
                "choose another folder, or overwrite it (--force)"
            )
    write_whole(path, text, sync=False)  # thousands of files, which can be made again
    return True


def _traj_data(data: dict[str, Any], index: int, generator: GeneratorKwargs) -> dict[str, Any]:
    """Return what ALFWorld reads in ALFRED's file, for its lists of games and its expert; and how the game was made."""
    task, trial = data["game_id"].split("/")
    _, target, _, receptacle, number = task.split("-")
    is_lamp = data["task_type"] == "look_at_obj_in_light"
    knobs = {name: value for name, value in asdict(generator.knobs).items() if value is not None}
    return {
        "task_id": trial,
        "task_type": data["task_type"],
        "pddl_params": {
            "mrecep_target": "",
            "object_sliced": False,
            "object_target": target,
            "parent_target": "" if is_lamp else receptacle,
            "toggle_target": receptacle if is_lamp else "",
        },
        "scene": {"floor_plan": f"FloorPlan{number}", "scene_num": int(number)},
        "generator": {"version": GENERATOR_VERSION, "index": index, "seed": generator.seed, **knobs},
    }
