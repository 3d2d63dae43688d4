"""The runs that the table of methods is made of, and their budgets; ``benchmarks/table1.py`` says what it is."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentprm_gym.games import find_games
from algorithms.common.measure.evaluation import draw_games
from benchmarks._parts import Parts, read_row, side_by_side, spent

#: Where the held-out train games stand in the study's own folder of games; ALFWorld's release has this split, too.
HELD_OUT = "valid_train"
#: What is reported, and by what is chosen.
SPLITS = ("valid_seen", "valid_unseen", HELD_OUT)
#: The step limit of every game that is played, in training and in evaluation: the paper's.
MAX_STEPS = 30
#: Draws a turn of best-of-N, the paper's.
BEST_OF = 16


@dataclass(frozen=True, slots=True)
class Budget:
    """How much each part may do; the lists are what ``agentprm train --set`` takes.

    Attributes:
        n_demos: demonstrations that the start is cloned from, and that InversePRM has. Few: from 100 the bundled model is
            nearly as good as from thousands, and nothing would be left to compare.
        epochs: passes over them.
        ceiling_demos: demonstrations of the imitation ceiling; more than the games that there are takes one of each.
        ceiling_epochs: passes over them.
        ceiling: arguments of its SFT.
        agentprm: arguments of AgentPRM.
        inverseprm: arguments of InversePRM.
        grouped: arguments of PPO, GRPO, RLOO and GiGPO, but for ``ppo``.
        ppo: arguments of PPO beside these.
        agentprm_iterations: iterations of AgentPRM.
        agentprm_shown: those of them that are played, and chosen among; ``None``: all.
        inverseprm_iterations: iterations of InversePRM.
        n_held_out: train games that nothing is trained on, by which policies are chosen.
        n_envs: episodes that the policy gradient algorithms play side by side.
        max_games: games of an evaluation; ``None``: all of a split.
    """

    n_demos: int = 10
    epochs: int = 8
    ceiling_demos: int = 3000
    ceiling_epochs: int = 3
    ceiling: tuple[str, ...] = ()
    agentprm: tuple[str, ...] = ()
    inverseprm: tuple[str, ...] = ("rollout.n_repeats=10", "rollout.n_other_games=200")
    grouped: tuple[str, ...] = ("learning_rate=1e-3",)
    ppo: tuple[str, ...] = ("learning_rate=1e-3", "n_games=256")
    agentprm_iterations: int = 6
    agentprm_shown: tuple[int, ...] | None = (2, 4, 6)
    inverseprm_iterations: int = 2
    n_held_out: int = 100
    n_envs: int = 128
    max_games: int | None = None


#: ``small`` is an hour on two cores for three seeds. ``full`` has the default budgets of the algorithms.
BUDGETS = {
    "small": Budget(),
    "full": Budget(
        n_demos=100,
        ceiling_epochs=6,
        ceiling=("dagger_games=500",),
        inverseprm=("rollout.n_other_games=200",),
        n_held_out=200,
    ),
}
#: A trial of minutes that says nothing.
QUICK = Budget(
    n_demos=20,
    epochs=2,
    ceiling_demos=40,
    ceiling_epochs=1,
    agentprm=(
        *("rollout.n_games=8", "rollout.n_repeats=2", "rollout.n_trunks=12", "rollout.n_branch_states=6"),
        *("improve.n_updates=3", "improve.batch_size=4", "prm.n_epochs=1", "n_validation_games=8"),
    ),
    inverseprm=(
        *("rollout.n_games=8", "rollout.n_repeats=1", "improve.n_updates=3", "improve.batch_size=4", "prm.n_epochs=1"),
    ),
    grouped=("learning_rate=1e-3", "n_games=4", "group_size=4", "batch_size=16"),
    ppo=("learning_rate=1e-3", "n_games=16", "batch_size=16"),
    agentprm_iterations=1,
    agentprm_shown=None,
    inverseprm_iterations=1,
    n_held_out=12,
    n_envs=16,
    max_games=6,
)

#: The start, whose draws the last iteration's PRM judges. Its policy was never improved.
JUDGED = "sft_judged"
#: Algorithms on outcomes, which have as many environment steps as AgentPRM.
ON_OUTCOMES = ("ppo", "grpo", "rloo", "gigpo")
TITLES = {
    "base": "the bundled model as it is",
    "sft": "SFT, where the others start",
    JUDGED: "SFT, judged by AgentPRM's last PRM",
    "ppo": "PPO",
    "grpo": "GRPO",
    "rloo": "RLOO",
    "gigpo": "GiGPO",
    "ceiling": "SFT on many demonstrations",
}
_ITERATED = {"agentprm": "AgentPRM", "inverseprm": "InversePRM"}
#: Ways to play: ``agentprm eval``'s temperature. Best-of-N samples at 1.
MODES = {"sampled": 1, "greedy": 0}
BEST_OF_MODE = f"best_of_{BEST_OF}"


@dataclass(frozen=True, slots=True)
class Condition:
    """A policy, a way to play, and the games.

    Attributes:
        policy: name of a policy.
        mode: a key of :data:`MODES`, or :data:`BEST_OF_MODE`.
        split: one of :data:`SPLITS`.
    """

    policy: str
    mode: str
    split: str

    @property
    def name(self) -> str:
        """Folder of the evaluation, and part of the figures' names."""
        return f"{self.policy}_{self.mode}_{self.split}"


def method_of(policy: str) -> str:
    """The method that a policy belongs to: ``"agentprm_2"`` to ``"agentprm"``."""
    name, _, number = policy.rpartition("_")
    return name if number.isdigit() else policy


def title_of(policy: str) -> str:
    """A policy's name for people."""
    name, _, number = policy.rpartition("_")
    return (
        f"{_ITERATED[name]}, iteration {number}"
        if name in _ITERATED
        else TITLES.get(policy, _ITERATED.get(policy, policy))
    )


class Study(Parts):
    """Folders and commands of the table; each seed has a folder of its own."""

    def __init__(self, folder: Path, budget: Budget, games: str, n_workers: int | None = None) -> None:
        """Take the folder.

        Args:
            folder: where the runs are.
            budget: how much each part may do.
            games: ``"alfworld"``, or ``"generated"`` for a trial without ALFWorld's games.
            n_workers: see :class:`~benchmarks._parts.Parts`.
        """
        super().__init__(folder, n_workers=n_workers)
        self.budget, self.games = budget, games

    # ------------------------------------------------------------------ what there is
    def policies(self) -> list[str]:
        """Names of the policies, in the order of the table."""
        budget = self.budget
        agent = [f"agentprm_{k}" for k in budget.agentprm_shown or range(1, budget.agentprm_iterations + 1)]
        inverse = [f"inverseprm_{k + 1}" for k in range(budget.inverseprm_iterations)]
        return ["base", "sft", JUDGED, *agent, *inverse, *ON_OUTCOMES, "ceiling"]

    def judge(self, policy: str) -> str | None:
        """The policy whose save has the PRM that chooses among a policy's draws; ``None`` where there is none.

        As in the paper's table, an improved policy is judged by the PRM that it was improved against, and the start by the
        one that was fitted to its own rollouts. :data:`JUDGED` has the PRM that saw the rollouts of all iterations.
        """
        if policy == JUDGED:
            return f"agentprm_{self.budget.agentprm_iterations}"
        if policy == "sft":
            return "agentprm_1"
        return policy if method_of(policy) in _ITERATED else None

    def conditions(self) -> list[Condition]:
        """All that is measured of a seed."""
        by_themselves = [policy for policy in self.policies() if policy != JUDGED]
        out = [Condition(p, mode, split) for p in by_themselves for mode in MODES for split in SPLITS]
        judged = [policy for policy in self.policies() if self.judge(policy)]
        return out + [Condition(policy, BEST_OF_MODE, split) for policy in judged for split in SPLITS]

    # ------------------------------------------------------------------ folders
    def part(self, seed: int, name: str) -> Path:
        """Folder of a part."""
        return self.folder / f"seed_{seed}" / name

    def model(self, seed: int, policy: str) -> Path | str:
        """The save of a policy; ``"tiny"`` for the base."""
        if policy == "base":
            return "tiny"
        if policy == JUDGED:
            return self.model(seed, "sft")
        name, _, number = policy.rpartition("_")
        if name in _ITERATED:
            return self.part(seed, name) / "iterations" / f"{number}.zip"
        return self.part(seed, policy) / "model.zip"

    def evaluation(self, seed: int, condition: Condition) -> Path:
        """Folder of an evaluation."""
        return self.part(seed, "eval") / condition.name

    def row(self, seed: int, condition: Condition) -> dict[str, Any]:
        """What an evaluation found.

        Raises:
            FileNotFoundError: it has not been run.
        """
        return read_row(self.evaluation(seed, condition))

    def spent(self, seed: int, part: str) -> tuple[int, float]:
        """Environment steps and minutes of a trained part."""
        return spent(self.part(seed, part))

    @property
    def lists(self) -> Path:
        """The folder of games that the study makes of links: train games to train on, and those held out."""
        return self.folder / "games"

    def split_games(self) -> None:
        """Make that folder: ``train`` without the games that are held out, and these as ``valid_train``.

        The same games for all seeds, as many of each task type as possible. Generated games, which have no files, are written.
        """
        marker = self.lists / f"held_out_{self.budget.n_held_out}"
        if marker.exists():
            return
        if self.games == "generated":
            from agentprm_gym.games.generation.writing import write_games

            write_games(self.lists / "generated", 400)
            source = find_games("train", self.lists / "generated")
        else:
            source = find_games("train", self.games)
        types = [game_id.split("-", 1)[0] for game_id in source.game_ids]
        held_out = set(draw_games(types, self.budget.n_held_out, seed=0))
        for i, game_id in enumerate(source.game_ids):
            link = self.lists / (HELD_OUT if i in held_out else "train") / game_id
            link.parent.mkdir(parents=True, exist_ok=True)
            path = source.path(i)
            assert path is not None
            if not link.exists():
                os.symlink(Path(path).parent.resolve(), link)
        marker.touch()

    # ------------------------------------------------------------------ running
    def train(self, seed: int, part: str) -> None:
        """Train a part: ``"sft"``, ``"ceiling"``, ``"agentprm"``, ``"inverseprm"`` or one of :data:`ON_OUTCOMES`."""
        budget = self.budget
        chosen: Sequence[str] = ()
        args: list[object] = ["--algo", part]
        if part == "sft":
            args += ["--n-demos", budget.n_demos, "--epochs", budget.epochs]
        elif part == "ceiling":
            chosen = budget.ceiling
            args = ["--algo", "sft", "--n-demos", budget.ceiling_demos, "--epochs", budget.ceiling_epochs]
        else:
            args += ["--policy", self.model(seed, "sft")]
            if part == "agentprm":
                chosen = budget.agentprm
                args += ["--iterations", budget.agentprm_iterations]
            elif part == "inverseprm":
                chosen = budget.inverseprm
                args += ["--demos", self.part(seed, "sft") / "demos.jsonl.gz"]
                args += ["--iterations", budget.inverseprm_iterations]
            else:
                chosen = budget.ppo if part == "ppo" else budget.grouped
                steps, _ = self.spent(seed, "agentprm")
                args += ["--timesteps", steps, "--n-envs", budget.n_envs]
        own = ["--set", *chosen] if chosen else []
        games = ["--games", str(self.lists), "--seed", seed]
        self.run(self.part(seed, part), "model.zip", "train", *args, *own, *games)

    def evaluate(self, seed: int, condition: Condition) -> None:
        """Let a policy play every game of a split once."""
        games: list[object] = ["--games", str(self.lists) if condition.split == HELD_OUT else self.games]
        args: list[object] = ["--policy", self.model(seed, condition.policy), "--split", condition.split, *games]
        if condition.mode == BEST_OF_MODE:
            prm = self.model(seed, str(self.judge(condition.policy)))
            args += ["--best-of", BEST_OF, "--prm", prm]
        else:
            args += ["--temperature", MODES[condition.mode]]
        args += ["--max-steps", MAX_STEPS]
        if self.budget.max_games is not None:
            args += ["--max-games", self.budget.max_games]
        self.run(self.evaluation(seed, condition), "result.json", "eval", *args, "--seed", seed)

    def go(self, seeds: Sequence[int], jobs: int) -> None:
        """Do all that is not done, ``jobs`` parts at a time: one after another, since the later need the earlier."""
        self.split_games()
        for parts in (("sft", "ceiling"), ("agentprm", "inverseprm"), ON_OUTCOMES):
            tasks = [(seed, part) for part in parts for seed in seeds]
            side_by_side(self._train_and_tell, tasks, jobs)
        plays = list(itertools.product(seeds, self.conditions()))
        side_by_side(lambda x: self.evaluate(*x), plays, jobs)

    def _train_and_tell(self, task: tuple[int, str]) -> None:
        seed, part = task
        self.train(seed, part)
        steps, minutes = self.spent(seed, part)
        print(f"seed {seed}: {part}, {steps:,} steps, {minutes:.1f} minutes", flush=True)
