"""Games: finding, reading, generating and listing them, and experts that solve them."""

from agentprm_gym.games.demos import demonstrate, demonstrations
from agentprm_gym.games.game import (
    SPLITS,
    TASK_TYPES,
    BadGameError,
    Game,
    UnsupportedGameError,
    parse_game,
)
from agentprm_gym.games.listing import DataNotFoundError, GameList, find_games

__all__ = [
    "SPLITS",
    "TASK_TYPES",
    "BadGameError",
    "DataNotFoundError",
    "Game",
    "GameList",
    "UnsupportedGameError",
    "demonstrate",
    "demonstrations",
    "find_games",
    "parse_game",
]
