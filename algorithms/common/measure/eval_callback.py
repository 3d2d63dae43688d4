"""A callback that plays the same held-out games again and again while an algorithm learns, and keeps the best policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.checks import check_float, check_int
from agentprm_gym.files import write_whole
from algorithms.common.acting.ranks import ranks
from algorithms.common.measure.evaluation import evaluate, rate
from algorithms.common.shell.folders import BEST, EVALUATIONS


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One evaluation.

    Attributes:
        timesteps: turns of training before it.
        n: games played.
        won: games won.
        success: share won, in [0, 1].
        low: lower end of its 95 % Wilson interval.
        high: upper end.
        mean_reward: mean return of the task's own reward.
        mean_steps: mean turns of an episode.
    """

    timesteps: int
    n: int
    won: int
    success: float
    low: float
    high: float
    mean_reward: float
    mean_steps: float


class GamesEvalCallback(BaseCallback):
    """Play a list of games, each once, between iterations.

    Stable-Baselines3's ``EvalCallback`` works here, too. It plays whichever games its environment comes upon, and in the
    middle of an iteration, where the policy is the one of its beginning. This one plays the same games each time, with the
    same random stream for each game, so that the points of a curve can be compared game by game; and it goes on with its list
    of evaluations where a run is resumed. Training is not changed by it: it draws from streams of its own.

    The games have to be others than those that are trained on, and others than those on which the result is reported: the
    best of many evaluations looks better than it is.

    It logs ``eval/success_rate``, ``eval/mean_reward`` and ``eval/mean_ep_length``. The first evaluation is the start's.

    Attributes:
        evaluations: all so far, in order.
        best: the one with the most games won, the earliest of equals; ``None`` before the first.
    """

    def __init__(
        self,
        env: VecEnv,
        *,
        games: Sequence[int],
        every: int,
        folder: str | Path | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Make the callback; nothing is played yet.

        Args:
            env: environments with the games, of :func:`~algorithms.make_eval_env`; the callback does not close them.
            games: indices of the games to play, at least one.
            every: turns of training between two evaluations at the least, 1 or more. An iteration is not cut for one.
            folder: where ``best.zip`` and ``evaluations.json`` are written; ``None``: nowhere.
            temperature: of the policy, 0 or more; 0 takes its favourite commands.
            seed: of the episodes' random streams, 0 or more.

        Raises:
            ValueError: no games, or a number is out of range.
        """
        super().__init__()
        if not games:
            raise ValueError("GamesEvalCallback: expected at least one game, got none")
        self.eval_env, self.games = env, [int(game) for game in games]
        self.every, self.seed = check_int("every", every, 1), check_int("seed", seed, 0)
        self.temperature = check_float("temperature", temperature, 0)
        self.folder = None if folder is None else Path(folder)
        self.evaluations: list[Evaluated] = []

    @property
    def best(self) -> Evaluated | None:
        """See the class."""
        return max(self.evaluations, key=lambda one: one.won, default=None)

    def _on_training_start(self) -> None:
        begun = int(self.model.num_timesteps)
        path = None if self.folder is None else self.folder / EVALUATIONS
        if begun and not self.evaluations and path is not None and path.is_file():
            self.evaluations = _read(path)
        # A killed run may have evaluated after its last checkpoint: it comes there again.
        self.evaluations = [one for one in self.evaluations if begun and one.timesteps <= begun]

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self._since() is None or self._since() >= self.every:
            self.measure()

    def _on_training_end(self) -> None:
        if self._since() != 0:
            self.measure()

    def _since(self) -> Any:
        """Turns since the last evaluation; ``None`` where there was none."""
        return int(self.model.num_timesteps) - self.evaluations[-1].timesteps if self.evaluations else None

    def measure(self) -> Evaluated | None:
        """Play the games now; ``None`` where several processes train together and this is not the first of them."""
        if not ranks().is_main:
            return None
        policy: Any = self.model.policy
        actor = policy.actor(self.eval_env.num_envs, temperature=self.temperature)
        episodes = evaluate(actor, self.eval_env, games=self.games, seed=self.seed)
        all_of_them = rate("all", episodes)
        found = Evaluated(
            int(self.model.num_timesteps),
            all_of_them.n,
            all_of_them.successes,
            all_of_them.rate,
            all_of_them.low,
            all_of_them.high,
            sum(turn.reward for episode in episodes for turn in episode.turns) / len(episodes),
            all_of_them.mean_steps,
        )
        self.evaluations.append(found)
        self.logger.record("eval/success_rate", found.success)
        self.logger.record("eval/mean_reward", found.mean_reward)
        self.logger.record("eval/mean_ep_length", found.mean_steps)
        self.logger.dump(found.timesteps)
        if self.folder is not None:
            if self.best is found:
                self.model.save(self.folder / BEST)
            write_whole(
                self.folder / EVALUATIONS, json.dumps([asdict(one) for one in self.evaluations], indent=1) + "\n"
            )
        return found


def _read(path: Path) -> list[Evaluated]:
    """Evaluations of an earlier sitting.

    Raises:
        ValueError: the file is not one of evaluations.
    """
    try:
        return [Evaluated(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected the evaluations of a run, got something else ({error}): remove it"
        ) from error
