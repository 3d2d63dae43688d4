"""The PRM study's settings, and the runs it is made of; ``benchmarks/prm_study.py`` says what it is.

Over 400 lines: settings and runs of one study belong together.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from algorithms.cli.output import provenance, write_json
from benchmarks._parts import Parts, read_row, spent


# ---------------------------------------------------------------------- settings
@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the algorithms from one start; the lists are what ``agentprm train --set`` takes.

    Attributes:
        epochs: passes of SFT over the demonstrations.
        sft: arguments of SFT.
        agentprm: arguments of AgentPRM.
        grpo: arguments of GRPO.
        rft: arguments of RFT: as many episodes an iteration as AgentPRM has, which imitates as many of those it won.
        inverseprm: arguments of InversePRM.
        agentprm_iterations: iterations of AgentPRM.
        inverseprm_iterations: iterations of InversePRM.
        wide_iterations: iterations of InversePRM that also plays games of which there are no demonstrations.
        gail_iterations: iterations with a one-step discriminator in its place.
        implicit: whether GRPO on the implicit reward is run; it has as many steps as the one-step discriminator.
        n_envs: episodes that GRPO plays side by side: all of an iteration.
    """

    epochs: int = 8
    sft: tuple[str, ...] = ()
    agentprm: tuple[str, ...] = ()
    # The step size that the other algorithms have.
    grpo: tuple[str, ...] = ("learning_rate=1e-3",)
    # An iteration as large as AgentPRM's.
    rft: tuple[str, ...] = (
        *("learning_rate=1e-3", "n_games=70", "group_size=3", "n_per_game=2", "policy_kwargs.temperature=0.6"),
    )
    inverseprm: tuple[str, ...] = ()
    agentprm_iterations: int = 6
    inverseprm_iterations: int = 2
    wide_iterations: int = 2
    gail_iterations: int = 1
    implicit: bool = True
    n_envs: int = 192


#: Number of demonstrations of a start, and what is done with it and from it; AgentPRM and InversePRM have their defaults.
STARTS: dict[int, Settings] = {
    # The bundled model as it is: InversePRM has nothing to learn from.
    0: Settings(inverseprm_iterations=0, wide_iterations=0, gail_iterations=0, implicit=False),
    # InversePRM has a few hundred episodes to learn from, though there are but ten games of demonstrations.
    10: Settings(
        inverseprm=("rollout.n_repeats=10", "rollout.n_other_games=200"),
        wide_iterations=0,
        gail_iterations=0,
        implicit=False,
    ),
    100: Settings(wide_iterations=0, gail_iterations=0, implicit=False),
}
#: What makes a one-step discriminator of InversePRM's Q, beside its other arguments.
GAIL = ("gamma=0",)
#: What makes InversePRM play as many episodes, but a third of them in the demonstrations' games.
WIDE = ("rollout.n_repeats=1", "rollout.n_other_games=200")
#: Of every other number.
OTHERS = Settings()
#: A trial: the same parts, as small as they can be.
QUICK = Settings(
    epochs=2,
    agentprm=(
        *("rollout.n_games=8", "rollout.n_repeats=2", "rollout.n_trunks=12", "rollout.n_branch_states=6"),
        *("improve.n_updates=3", "improve.batch_size=4", "prm.n_epochs=1", "n_validation_games=8"),
    ),
    grpo=("learning_rate=1e-3", "n_games=4", "group_size=4", "batch_size=16"),
    rft=("learning_rate=1e-3", "n_games=8", "group_size=2"),
    inverseprm=(
        *("rollout.n_games=8", "rollout.n_repeats=1", "improve.n_updates=3", "improve.batch_size=4", "prm.n_epochs=1"),
    ),
    agentprm_iterations=2,
    wide_iterations=0,
    n_envs=16,
)
QUICK_START, QUICK_GAMES = 20, 12

#: Draws a turn; 1 is acting without a search, which is played anyway.
BEST_OF = (1, 4, 8, 16)
#: What a nat of the policy's log-probability counts where a PRM chooses; tuned on ``valid_seen``.
WEIGHT = 0.05
#: In the place of a save: the searching expert chooses among the draws, see :mod:`benchmarks._expert_choice`.
EXPERT = "expert"
#: Behind the name of a save: its PRM, which counts how often a command was executed before, without what it learnt of that.
UNCOUNTED = "_uncounted"
#: Which policies choose among their draws, with the PRM of which save, and with which weight of the policy. "agentprm_2" with
#: "agentprm_2" is the PRM that the policy was improved against; with "agentprm_6" it would be one fitted to this policy's own
#: rollouts, as "sft" has it.
BEST_OF_LINES: dict[str, tuple[str, str, float]] = {
    "sft_prm_alone": ("sft", "agentprm_1", 0.0),
    "sft": ("sft", "agentprm_1", WEIGHT),
    "iteration_6": ("agentprm_6", "agentprm_6", WEIGHT),
    "iteration_6_uncounted": ("agentprm_6", f"agentprm_6{UNCOUNTED}", WEIGHT),
    "sft_expert": ("sft", EXPERT, 0.0),
}
#: Policies that also play greedily, and on ``valid_unseen``. "agentprm_kept" is the iteration that AgentPRM itself chose.
GREEDY = ("sft", "agentprm_6", "agentprm_kept", "rft", "grpo", "grpo_minutes", "inverseprm_2", "wide_2")
UNSEEN = ("sft", "agentprm_6", "agentprm_kept", "rft", "grpo", "grpo_minutes", "inverseprm_2", "wide_2")

#: What is trained from a start, the later of what the earlier took; those of a stage side by side.
STAGES = (("sft",), ("agentprm", "inverseprm", "wide", "gail"), ("rft", "grpo", "grpo_minutes", "implicit"))
PARTS = tuple(part for stage in STAGES for part in stage)
#: More than any run takes; the minutes end it.
ENDLESS = 10**9

TITLES = {
    "sft": "SFT",
    "agentprm_kept": "AgentPRM, the iteration it chose",
    "rft": "RFT, equal rollouts",
    "grpo": "GRPO, equal rollouts",
    "grpo_minutes": "GRPO, equal minutes",
    "implicit": "GRPO on the implicit process reward",
}
#: Algorithms of which each iteration's save is measured.
ITERATED = {
    "agentprm": "AgentPRM",
    "inverseprm": "InversePRM",
    "wide": "InversePRM, other games too",
    "gail": "One-step discriminator",
}


# ---------------------------------------------------------------------- what is measured
@dataclass(frozen=True, slots=True)
class Condition:
    """A policy and a way in which it plays.

    Attributes:
        name: unique; folder of the evaluation, and part of the figures' names.
        policy: name of a model, see :meth:`Study.model`.
        split: games.
        greedy: whether it takes the likeliest command.
        best_of: draws a turn.
        prm: name of the model whose PRM chooses among them.
        weight: best-of-N only: what a nat of the policy's log-probability counts.
        line: best-of-N only: a key of :data:`BEST_OF_LINES`.
    """

    name: str
    policy: str
    split: str = "valid_seen"
    greedy: bool = False
    best_of: int = 1
    prm: str | None = None
    weight: float | None = None
    line: str | None = None

    @property
    def mode(self) -> str:
        """What distinguishes it from the sampled policy on ``valid_seen``: ``""``, ``"_greedy"`` or ``"_unseen"``."""
        return ("_greedy" if self.greedy else "") + ("_unseen" if self.split == "valid_unseen" else "")


def policies(settings: Settings) -> list[str]:
    """Names of the policies from a start, in the order of the table."""
    agent = [f"agentprm_{k + 1}" for k in range(settings.agentprm_iterations)]
    inverse = [f"inverseprm_{k + 1}" for k in range(settings.inverseprm_iterations)]
    wide = [f"wide_{k + 1}" for k in range(settings.wide_iterations)]
    gail = [f"gail_{k + 1}" for k in range(settings.gail_iterations)]
    implicit = ["implicit"] if settings.implicit else []
    return ["sft", *agent, "agentprm_kept", "rft", "grpo", "grpo_minutes", *inverse, *wide, *gail, *implicit]


def parts_of(settings: Settings) -> list[str]:
    """Which of :data:`PARTS` are trained from a start."""
    names = policies(settings)
    return [part for part in PARTS if any(name in (part, f"{part}_1") for name in names)]


def conditions(settings: Settings, best_of: Sequence[int] = BEST_OF) -> list[Condition]:
    """All that is measured from a start; what names an iteration that there is not is left out."""
    names = policies(settings)
    out = [Condition(name, name) for name in names]
    out += [Condition(f"{name}_greedy", name, greedy=True) for name in GREEDY if name in names]
    out += [Condition(f"{name}_unseen", name, split="valid_unseen") for name in UNSEEN if name in names]
    searched = [n for n in best_of if n > 1]  # 1 is the policy as it plays anyway
    for line, (policy, prm, weight) in lines(settings).items():
        out += [
            Condition(f"best_of_{n}_{line}", policy, best_of=n, prm=prm, weight=weight, line=line) for n in searched
        ]
    return out


def lines(settings: Settings) -> dict[str, tuple[str, str, float]]:
    """Those of :data:`BEST_OF_LINES` whose models there are."""
    names = {*policies(settings), EXPERT}
    return {line: how for line, how in BEST_OF_LINES.items() if {how[0], how[1].removesuffix(UNCOUNTED)} <= names}


def start_title(start: int) -> str:
    """A start's name for people."""
    return f"SFT on {start} demonstrations" if start else "the bundled model, no demonstrations"


def policy_title(policy: str, start: int) -> str:
    """A policy's name for people."""
    if policy == "sft" and not start:
        return "the bundled model"
    name, _, iteration = policy.rpartition("_")
    return TITLES[policy] if policy in TITLES else f"{ITERATED[name]}, iteration {iteration}"


def pair_title(start: int, policy: str, prm: str, weight: float) -> str:
    """A policy, the PRM that chooses for it, and what the policy's own opinion counts, for people."""
    if prm == EXPERT:
        return f"{policy_title(policy, start)}, the searching expert"
    save = prm.removesuffix(UNCOUNTED)
    which = "its PRM" if policy == save else f"PRM of iteration {save.rpartition('_')[2]}"
    which += " without repeats" if save != prm else ""
    return f"{policy_title(policy, start)}, {which}" + (f" + {weight:g} log pi" if weight else " alone")


# ---------------------------------------------------------------------- parts
class Study(Parts):
    """Folders and commands of the study."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[int, Settings],
        *,
        max_games: int | None = None,
        best_of: Sequence[int] = BEST_OF,
    ) -> None:
        super().__init__(folder, ("--games", "generated", "--threads", 1))
        self.settings, self.max_games, self.best_of = dict(settings), max_games, tuple(best_of)

    def part(self, start: int, seed: int, name: str) -> Path:
        """Folder of a part."""
        return self.folder / f"sft{start}" / f"seed_{seed}" / name

    def model(self, start: int, seed: int, policy: str) -> Path:
        """The save of a policy: ``"agentprm_2"`` is what AgentPRM had after iteration 2.

        Raises:
            FileNotFoundError: the part is finished, but without this save.
        """
        if policy.endswith(UNCOUNTED):
            return _uncounted(self.model(start, seed, policy.removesuffix(UNCOUNTED)))
        name, _, which = policy.rpartition("_")
        if name in ITERATED:
            out = self.part(start, seed, name)
            path = out / "model.zip" if which == "kept" else out / "iterations" / f"{which}.zip"
        else:
            out = self.part(start, seed, policy)
            path = out / "model.zip"
        if not path.exists() and (out / "model.zip").exists():
            raise FileNotFoundError(
                f"{out} is finished, but has no {path.relative_to(out)}: the study needs an 'agentprm train' that saves "
                "each iteration; delete the folder to train it again with such a one"
            )
        return path

    def train(self, start: int, seed: int, part: str) -> None:
        """Train a part: one of :data:`PARTS`."""
        settings = self.settings[start]
        if part == "sft" and not start:
            save_base(self.part(start, seed, part), seed)
            return
        if part == "sft":
            chosen = settings.sft
            args: list[object] = ["--algo", "sft", "--n-demos", start, "--epochs", settings.epochs]
        else:
            policy = ["--policy", self.model(start, seed, "sft")]
            if part == "agentprm":
                chosen = settings.agentprm
                args = ["--algo", "agentprm", *policy, "--iterations", settings.agentprm_iterations]
            elif part in ("inverseprm", "wide", "gail"):
                chosen = settings.inverseprm + {"gail": GAIL, "wide": WIDE}.get(part, ())
                demos = self.part(start, seed, "sft") / "demos.jsonl.gz"
                args = ["--algo", "inverseprm", *policy, "--demos", demos]
                args += ["--iterations", getattr(settings, f"{part}_iterations")]
            elif part == "implicit":
                chosen = settings.grpo
                steps, _ = self.spent(start, seed, "gail")
                reward = {"reward": f"implicit:{policy[1]}"}
                alone = {"reward": "outcome", "reward_kwargs": {"weight": 0.0}}
                args = ["--algo", "grpo", *policy, "--timesteps", steps, "--n-envs", settings.n_envs]
                args += ["--reward", "sum", "--reward-kwargs", json.dumps({"parts": [reward, alone]})]
            elif part == "rft":
                chosen = settings.rft
                steps, _ = self.spent(start, seed, "agentprm")
                args = ["--algo", "rft", *policy, "--timesteps", steps, "--n-envs", settings.n_envs]
            else:
                chosen = settings.grpo
                steps, minutes = self.spent(start, seed, "agentprm")
                budget: list[object] = ["--timesteps", steps]
                if part == "grpo_minutes":
                    budget = ["--timesteps", ENDLESS, "--minutes", f"{max(minutes, 0.1):.2f}"]
                args = ["--algo", "grpo", *policy, *budget, "--n-envs", settings.n_envs]
        own = ["--set", *chosen] if chosen else []
        self.run(self.part(start, seed, part), "model.zip", "train", *args, *own, "--seed", seed)

    def evaluate(self, start: int, seed: int, condition: Condition) -> None:
        """Let a policy play every game of a split once."""
        policy, out = self.model(start, seed, condition.policy), self.evaluation(start, seed, condition)
        last: list[object] = [] if self.max_games is None else ["--max-games", self.max_games]
        last += ["--seed", seed]
        if condition.prm == EXPERT:
            words = ["--policy", policy, "--n", condition.best_of]
            self.run(out, "result.json", *words, *last, module="benchmarks._expert_choice")
            return
        args: list[object] = [policy, "--split", condition.split]
        if condition.greedy:
            args += ["--temperature", 0]
        if condition.prm is not None:
            args += ["--best-of", condition.best_of, "--prm", self.model(start, seed, condition.prm)]
            args += ["--policy-weight", condition.weight]
        self.run(out, "result.json", "eval", *args, *last)

    def rank(self, start: int, seed: int) -> None:
        """Measure how the PRM fitted to the start's rollouts orders the commands of a state, and how the start itself does."""
        prm, sft = self.model(start, seed, "agentprm_1"), self.model(start, seed, "sft")
        out = self.part(start, seed, "eval") / "bench"
        few = [] if self.max_games is None else ["--max-states", 10 * self.max_games]
        rankers = [f"prm=prm:{prm}", f"sft=policy:{sft}"]
        self.run(out, "result.json", "bench", *rankers, "--panel", "generated", "--labels", "fair", *few)

    def pair_accuracy(self, start: int, seed: int) -> dict[str, float]:
        """Share of a state's pairs of commands that are in the right order, by ``fair`` labels: of ``"prm"`` and ``"sft"``."""
        path = self.part(start, seed, "eval") / "bench" / "result.json"
        figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
        return {name: float(figures[f"{name}/pair_accuracy"]) for name in ("prm", "sft")}

    def evaluation(self, start: int, seed: int, condition: Condition) -> Path:
        """Folder of an evaluation."""
        return self.part(start, seed, "eval") / condition.name

    def spent(self, start: int, seed: int, part: str) -> tuple[int, float]:
        """What a finished part took: environment steps, and minutes; see :func:`benchmarks._parts.spent`."""
        if part == "sft" and not start:
            return 0, 0.0
        return spent(self.part(start, seed, part))

    def kept(self, start: int, seed: int) -> int:
        """Which iteration AgentPRM chose by success on held-out train games; 0 is the start."""
        from agentprm_gym.llm.saving import read_save

        best = read_save(self.model(start, seed, "agentprm_kept")).adapters["policy"]
        for k in range(1, self.settings[start].agentprm_iterations + 1):
            other = read_save(self.model(start, seed, f"agentprm_{k}")).adapters["policy"]
            if all(bool((best[name] == other[name]).all()) for name in best):
                return k
        return 0

    def go(self, seeds: Sequence[int], jobs: int) -> None:
        """Do all that is not done."""
        pairs = list(itertools.product(self.settings, seeds))
        with ThreadPoolExecutor(jobs) as pool:
            # One after another, since the later need the earlier; what is timed runs beside what is as busy.
            for parts in STAGES:
                tasks = [
                    (start, seed, part)
                    for part in parts
                    for start, seed in pairs
                    if part in parts_of(self.settings[start])
                ]
                for (start, seed, part), _ in zip(tasks, pool.map(lambda x: self.train(*x), tasks), strict=True):
                    steps, minutes = self.spent(start, seed, part)
                    print(f"sft{start}, seed {seed}: {part}, {steps:,} steps, {minutes:.1f} minutes", flush=True)
            for (start, seed), _ in zip(pairs, pool.map(lambda x: self.rank(*x), pairs), strict=True):
                print(f"sft{start}, seed {seed}: pairs in order {self.pair_accuracy(start, seed)}", flush=True)
            plays = [(*pair, c) for pair in pairs for c in conditions(self.settings[pair[0]], self.best_of)]
            for (start, seed, c), _ in zip(plays, pool.map(lambda x: self.evaluate(*x), plays), strict=True):
                row = read_row(self.evaluation(start, seed, c))
                print(f"sft{start}, seed {seed}: {c.name} {100 * row['success']:.1f} %", flush=True)


def _uncounted(save: Path) -> Path:
    """A copy of a save whose PRM adds nothing for commands that were executed before."""
    from agentprm_gym.llm.saving import read_save, write_save

    path = save.with_name(f"{save.stem}{UNCOUNTED}.zip")
    if not path.exists():
        saved = read_save(save)
        saved.heads["prm"]["repeats"].zero_()
        write_save(path, saved)
    return path


def save_base(out: Path, seed: int) -> None:
    """Save the bundled model as it is as a policy, with the files of a run that the study reads."""
    from algorithms import SFT
    from algorithms.common.measure.evaluation import make_eval_env

    if not (out / "model.zip").exists():
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "settings.json", {"commit": provenance()["commit"]})
        venv = make_eval_env(n_envs=1, games="generated", split="train")
        SFT("tiny", venv, seed=seed).save(out / "model.zip")
