"""SkyRL's gym: the household games as a ``skyrl_gym`` environment, whose every turn pays.

``skyrl_gym`` knows an environment by a name in its registry, and SkyRL's trainer makes one for each row of a data set:
:func:`register_skyrl` in the trainer's entry point, :func:`skyrl_rows` for the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentprm_gym.integrations.household import make_env
from agentprm_gym.wrappers import TextObservationWrapper

try:
    from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput
    from skyrl_gym.envs.registration import register, registry
except ImportError as error:
    raise ImportError(f"this needs skyrl-gym: pip install 'agentprm-gym[skyrl]' ({error})") from error

#: The name under which the environment is registered.
SKYRL_ID = "agentprm"
_SYSTEM = "You play a text game about a household. Answer with one command at a time."


class SkyRLHousehold(BaseTextEnv):  # type: ignore[misc,unused-ignore]
    """An episode of ``ALFWorldPRM-v0`` as SkyRL plays it: messages in, a response out, a reward for each turn."""

    def __init__(
        self,
        env_config: Mapping[str, Any] | None = None,
        extras: Mapping[str, Any] | None = None,
        *,
        template: str = "full",
        **env_kwargs: Any,
    ) -> None:
        """Make the environment.

        Args:
            env_config: what the trainer's configuration has for this environment: arguments that count more than
                ``env_kwargs``.
            extras: the columns of the data set's row; ``game`` is the index or the id of the game.
            template: prompt template of the texts, see :class:`agentprm_gym.wrappers.TextObservationWrapper`.
            **env_kwargs: of ``ALFWorldPRM-v0``; by default without a process reward.

        Raises:
            ValueError: the row names no game, or the environment refuses its arguments.
            FileNotFoundError: games, a reward's file or a template's were not found.
        """
        super().__init__()
        self.game = (extras or {}).get("game")
        if self.game is None:
            raise ValueError(
                "the data set's row has no column 'game', since the rollouts of a group must play the same game: take the rows "
                "of skyrl_rows()"
            )
        kwargs = {"template": template, **env_kwargs, **dict(env_config or {})}
        template = str(kwargs.pop("template"))
        self._env = TextObservationWrapper(make_env(**kwargs), template)
        self.max_turns = kwargs.get("max_episode_steps") or getattr(self._env.spec, "max_episode_steps", None) or 30
        self._won = False
        self._total = 0.0

    def init(self, prompt: Sequence[Mapping[str, str]]) -> tuple[list[dict[str, str]], dict[str, Any]]:
        """Begin the row's game.

        Args:
            prompt: the row's messages; the first observation follows them.

        Raises:
            ValueError: the game is unknown.
        """
        text, info = self._env.reset(options={"game": self.game})
        self.turns, self._won, self._total = 0, False, 0.0
        return [*map(dict, prompt), {"role": "user", "content": text}], {"game_id": info["game_id"]}

    def step(self, action: str) -> Any:
        """Play a response.

        Args:
            action: what the model said: a bare command, or a reason and a command.

        Returns:
            ``observations`` (one message, none where the episode is over), ``reward`` of this turn, ``done`` and ``metadata``
            with the reward's two parts.
        """
        text, reward, terminated, truncated, info = self._env.step(action)
        self.turns += 1
        self._won, self._total = bool(info["won"]), self._total + float(reward)
        done = bool(terminated or truncated)
        told = {key: info[key] for key in ("is_admissible", "command", "reward/env", "reward/prm")}
        return BaseTextEnvStepOutput(
            observations=[] if done else [{"role": "user", "content": text}],
            reward=float(reward),
            done=done,
            metadata={**told, "won": self._won},
        )

    def get_metrics(self) -> dict[str, Any]:
        """Whether the game was won, its turns, and the sum of its rewards; SkyRL logs their means."""
        return {"won": self._won, "turns": self.turns, "return": self._total}

    def close(self) -> None:
        """Release the environment."""
        self._env.close()


def register_skyrl(name: str = SKYRL_ID, **env_kwargs: Any) -> None:
    """Register the environment with ``skyrl_gym``; call it where the trainer's own entry point runs, also in its workers.

    Args:
        name: what the rows call it (``env_class``).
        **env_kwargs: of :class:`SkyRLHousehold`: ``template``, ``reward``, ``split``, ``max_episode_steps``, ...
    """
    registry.pop(name, None)  # again is fine
    register(id=name, entry_point="agentprm_gym.integrations.skyrl:SkyRLHousehold", kwargs=env_kwargs)


def skyrl_rows(n: int, first: int = 0, name: str = SKYRL_ID) -> list[dict[str, Any]]:
    """Make rows of a data set for SkyRL's trainer.

    Args:
        n: how many games.
        first: the first one.
        name: as in :func:`register_skyrl`.
    """
    prompt = [{"role": "system", "content": _SYSTEM}]
    return [{"prompt": prompt, "env_class": name, "game": first + i} for i in range(n)]
