"""Who plays on from a state of the benchmark: a policy, for the ``on_policy`` labels."""

from __future__ import annotations

from collections.abc import Sequence

from agentprm_gym.bench.labels import Continuation
from algorithms.common.acting.policy import LLMPolicy
from algorithms.common.acting.rollouts import RolloutTask, collect
from algorithms.common.measure.evaluation import make_eval_env


class PolicyPlaysOn:
    """Plays continuations with a policy; the ``play_on`` of :func:`agentprm_gym.bench.labels.on_policy_labels`."""

    def __init__(
        self,
        policy: LLMPolicy,
        games: str = "auto",
        *,
        max_steps: int = 30,
        temperature: float = 1.0,
        n_envs: int = 128,
    ) -> None:
        """Make a player.

        Args:
            policy: the policy.
            games: where the games of its continuations come from, as the environment's option.
            max_steps: turns of an episode, those before the state included; 1 or more.
            temperature: at which the policy acts, 0 or more.
            n_envs: how many continuations run side by side, 1 or more.
        """
        self.policy, self.games = policy, games
        self.max_steps, self.temperature, self.n_envs = max_steps, temperature, n_envs

    def __call__(self, continuations: Sequence[Continuation]) -> list[int | None]:
        """Play continuations to their ends.

        Args:
            continuations: games of any splits.

        Returns:
            For each the number of commands behind the given one until the game was won; ``None`` where it was not.
        """
        out: list[int | None] = [None] * len(continuations)
        for split in sorted({c.game.split for c in continuations}):
            here = [i for i, c in enumerate(continuations) if c.game.split == split]
            for i, steps in zip(here, self._of_split(split, [continuations[i] for i in here]), strict=True):
                out[i] = steps
        return out

    def _of_split(self, split: str, continuations: Sequence[Continuation]) -> list[int | None]:
        venv = make_eval_env(n_envs=self.n_envs, split=split, games=self.games, max_episode_steps=self.max_steps)
        snapshots: dict[tuple[str, ...], object] = {}
        tasks = []
        for c in continuations:
            key = (c.game.game_id, *(turn.command for turn in c.history))
            if key not in snapshots:
                # The environment's own snapshot also holds what the player has seen last.
                venv.env_method("reset", indices=[0], options={"game": c.game.game_id})
                for turn in c.history:
                    venv.env_method("step", turn.command, indices=[0])
                (snapshots[key],) = venv.env_method("snapshot", indices=[0])
            options = {"snapshot": snapshots[key]}
            tasks.append(
                RolloutTask(options, c.seed, list(c.history), first_command=c.command, max_turns=self.max_steps)
            )
        rollouts = collect(self.policy.actor(self.n_envs, temperature=self.temperature), venv, tasks)
        venv.close()
        assert rollouts is not None
        return [len(r.episode.turns) - 1 - r.n_history if r.episode.success else None for r in rollouts]
