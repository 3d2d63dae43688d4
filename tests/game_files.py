"""Generated games written to disk in the official layout, for tests that need files."""

import json
from pathlib import Path

from agentprm_gym.games.listing import find_games


def write_games(root: Path, indices) -> list[Path]:
    games = find_games("train", "generated")
    paths = []
    for index in indices:
        game = games[index]
        path = root / "json_2.1.1" / "train" / game.game_id / "game.tw-pddl"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(game.data()))
        paths.append(path)
    return sorted(paths)


def smallest(n: int, among: int = 30) -> list[int]:
    """Return the indices of the smallest games: the stock engine loads these fastest."""
    games = find_games("train", "generated")
    sizes = [len(games[i].data()["pddl_problem"]) for i in range(among)]
    return sorted(range(among), key=sizes.__getitem__)[:n]
