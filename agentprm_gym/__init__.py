"""Text environments on ALFWorld and TextWorld with process rewards.

Importing this package registers ``ALFWorld-v0``, ``ALFWorldPRM-v0``, ``TextWorld-v0``,
``TextWorldPRM-v0`` and ``TextIdentity-v0`` with Gymnasium. It loads neither torch nor transformers
nor textworld: whoever only plays waits for none of them.
"""

from agentprm_gym.envs.registration import register_envs
from agentprm_gym.episodes import Episode, Turn, read_episodes, write_episodes
from agentprm_gym.spaces import UnicodeText

__version__ = "0.1.0"

__all__ = [
    "Episode",
    "Turn",
    "UnicodeText",
    "__version__",
    "read_episodes",
    "register_envs",
    "write_episodes",
]

register_envs()
