"""The runs that the paper's analyses are made of; ``benchmarks/analyses.py`` says what they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from agentprm_gym.episodes import write_episodes
from agentprm_gym.experts.demos import demonstrations
from agentprm_gym.games import find_games
from agentprm_gym.llm.model import LanguageModel
from algorithms import AgentPRM
from benchmarks._parts import Parts, read_row, side_by_side, spent

#: The step limit of every game: the paper's.
MAX_STEPS = 30
#: What a nat of the policy's log-probability counts in best-of-N, ``agentprm eval``'s default.
WEIGHT = 0.05
_STEPPED = "benchmarks.analyses_parts:SteppedAgentPRM"
#: What runs begin at.
STARTS = ("sft", "sft_reasons")
#: How the bundled model is told that it gives reasons.
_TERSE = Path(__file__).parent / "templates" / "terse.jinja"


class SteppedAgentPRM(AgentPRM):
    """AgentPRM that saves the policy in the middle of its improvement, after each of :data:`STEPS` shares of the updates."""

    #: Shares of the updates of an iteration after which ``steps/<updates>.zip`` is written.
    STEPS = (0.025, 0.0625, 0.125, 0.25, 0.5, 1.0)

    def on_progress(self, stage: str, share: float) -> None:
        """Save where a share of the improvement is done; then as in the base class."""
        n = self.improve.n_updates
        done = round(share * n)
        if stage == "improve policy" and self.checkpoint_dir is not None and done in step_counts(n):
            self.save(self.checkpoint_dir / "steps" / f"{done}.zip")
        super().on_progress(stage, share)


def step_counts(n_updates: int) -> list[int]:
    """After how many updates :class:`SteppedAgentPRM` saves."""
    return sorted({max(1, round(share * n_updates)) for share in SteppedAgentPRM.STEPS})


def known_words(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The words of a text that a vocabulary has whole: "I need a mug and have not searched shelf 1 yet" is "mug shelf 1".

    Args:
        text: any text.
        tokenizer: one that falls back to bytes, such as the bundled model's.
    """
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
    return " ".join(token for token in tokens if not token.startswith("<0x"))


# ---------------------------------------------------------------------- settings
@dataclass(frozen=True, slots=True)
class Variant:
    """A run of AgentPRM from the start.

    Attributes:
        settings: what ``agentprm train --set`` takes, beside those of the scale.
        stepped: whether the policy is saved in the middle of its improvement.
        start: the part that it begins at.
    """

    settings: tuple[str, ...] = ()
    stepped: bool = False
    start: str = "sft"


#: The paper's stage 3, in which the PRM alone teaches: no measured returns beside its scores, and nothing is imitated. Every
#: episode is fitted to, and games by which an iteration would be chosen are not played.
_PRM_ALONE = (
    *("improve.prior_visits=null", "improve.imitation_coef=0", "improve.margin=0", "improve.n_samples=2"),
    *("improve.beta=0.03", "improve.temperature=0.7", "improve.n_updates={updates}"),
    *("rollout.n_trunks=null", "n_validation_games=0"),
)
#: A policy that writes a reason before each command, and a PRM that may read it.
_REASONS = ("policy_kwargs.reason=true", "prm.form=scalar")
#: Runs of one iteration, by name. ``default`` has AgentPRM's default settings.
VARIANTS: dict[str, Variant] = {
    "default": Variant(),
    "absolute": Variant(("prm.rank_coef=0",)),
    # The cross-entropy, which cannot be left out, counts a hundredth.
    "relative": Variant(("prm.rank_coef=100",)),
    "scalar": Variant(("prm.form=scalar",)),
    "scalar_absolute": Variant(("prm.form=scalar", "prm.rank_coef=0")),
    "scalar_relative": Variant(("prm.form=scalar", "prm.rank_coef=100")),
    "from_start": Variant(("prm.discount=from_start",)),
    "no_discount": Variant(("prm.discount=none",)),
    "visits": Variant(("rollout.n_branch_states=0", "rollout.n_games={more_games}")),
    "td": Variant(("rollout.n_branch_states=0", "rollout.n_peek_states={peeks}", "prm.target=td")),
    "reads": Variant((*_REASONS, "prm.read_reasons=true"), start="sft_reasons"),
    "reads_not": Variant((*_REASONS, "prm.read_reasons=false"), start="sft_reasons"),
    "few": Variant(("rollout.n_games={few}", *_PRM_ALONE), True),
    "many": Variant(("rollout.n_games={many}", *_PRM_ALONE), True),
    "few_scalar": Variant(("prm.form=scalar", "rollout.n_games={few}", *_PRM_ALONE), True),
    "many_scalar": Variant(("prm.form=scalar", "rollout.n_games={many}", *_PRM_ALONE), True),
}


@dataclass(frozen=True, slots=True)
class Scale:
    """How large everything is.

    Attributes:
        n_demos: demonstrations that the start is cloned from.
        n_reasoned: those with reasons, which have to be learned first.
        epochs: passes over them.
        small: what each run of AgentPRM is given before its own settings; ``agentprm train --set``.
        numbers: what stands in the braces of :data:`VARIANTS`.
        iterations: of AgentPRM, where several are analysed.
        best_of: N of test-time scaling; 1 is acting without a search.
        temperatures: at which policies play; 0 is greedy.
        max_games: games of an evaluation; ``None``: all of a split.
        max_states: states of a panel; ``None``: all.
        grpo: settings of GRPO.
        n_envs: episodes that GRPO plays side by side.
    """

    n_demos: int = 10
    n_reasoned: int = 400
    epochs: int = 8
    small: tuple[str, ...] = ()
    # What branches cost, spent otherwise: on more games from their start, or on single steps with a value model behind.
    # Measured from the start, seed 0: 4,493 steps with branches, 48 for each game's episodes, 1 for each single step.
    numbers: dict[str, int] = field(
        default_factory=lambda: {"more_games": 93, "peeks": 1100, "few": 20, "many": 200, "updates": 400}
    )
    iterations: int = 3
    best_of: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    temperatures: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
    max_games: int | None = None
    max_states: int | None = None
    grpo: tuple[str, ...] = ("learning_rate=1e-3", "n_games=16", "group_size=8")
    n_envs: int = 128


FULL = Scale()
#: A trial of minutes that says nothing.
QUICK = replace(
    FULL,
    n_reasoned=10,
    epochs=1,
    small=(
        *("rollout.n_games=4", "rollout.n_repeats=2", "rollout.n_trunks=4", "rollout.n_branch_states=2"),
        *("improve.n_updates=2", "improve.batch_size=4", "n_validation_games=2"),
    ),
    numbers={"more_games": 5, "peeks": 6, "few": 2, "many": 4, "updates": 4},
    iterations=1,
    best_of=(1, 4),
    temperatures=(0.0, 1.0),
    max_games=6,
    max_states=20,
    grpo=("learning_rate=1e-3", "n_games=2", "group_size=4", "batch_size=8"),
    n_envs=8,
)


@dataclass(frozen=True, slots=True)
class Play:
    """An evaluation.

    Attributes:
        model: the policy's save, below the seed's folder.
        split: games.
        temperature: of sampling; 0 is greedy.
        best_of: draws a turn; 1: without a search.
        prm: the save with the PRM that chooses; only with ``best_of`` above 1.
        weight: what a nat of the policy's log-probability counts there.
    """

    model: str
    split: str = "valid_seen"
    temperature: float = 1.0
    best_of: int = 1
    prm: str | None = None
    weight: float = WEIGHT

    @property
    def name(self) -> str:
        """Folder of the evaluation."""
        where = "_".join(Path(self.model).with_suffix("").parts)
        judge = "" if self.prm is None else f"_by_{'_'.join(Path(self.prm).with_suffix('').parts)}_w{self.weight:g}"
        return f"{where}{judge}_{self.split}_t{self.temperature:g}_n{self.best_of}"


# ---------------------------------------------------------------------- runs
class Study(Parts):
    """Folders and commands of the analyses. They share their runs: each seed has a folder with all of them."""

    def __init__(
        self, folder: Path, scale: Scale, games: str, policy: str = "tiny", n_workers: int | None = None
    ) -> None:
        """Take the folder.

        Args:
            folder: where the runs are.
            scale: how large everything is.
            games: ``"generated"`` or ``"alfworld"``.
            policy: the base model that all begin at; what ``agentprm train --policy`` takes.
            n_workers: see :class:`~benchmarks._parts.Parts`.
        """
        super().__init__(folder, n_workers=n_workers)
        self.scale, self.games, self.policy = scale, games, policy

    def at(self, seed: int, path: str) -> Path:
        """A path below a seed's folder."""
        return self.folder / f"seed_{seed}" / path

    def spent(self, seed: int, part: str) -> tuple[int, float]:
        """Environment steps and minutes of a trained part."""
        return spent(self.at(seed, part))

    # ------------------------------------------------------------------ training
    def train(self, seed: int, part: str) -> None:
        """Train a part.

        Args:
            seed: of everything.
            part: ``"sft"``; ``"sft_reasons"``, which learns the expert's reasons, too; ``"agentprm"``, all iterations;
                ``"grpo"``, with as many steps; or one of :data:`VARIANTS`.
        """
        scale = self.scale
        args: list[object]
        if part in STARTS:
            args = ["--algo", "sft", "--policy", self.policy, "--epochs", scale.epochs]
            args += self._reasoned(seed) if part == "sft_reasons" else ["--n-demos", scale.n_demos]
        elif part == "grpo":
            steps, _ = self.spent(seed, "agentprm")
            args = ["--algo", "grpo", "--policy", self.at(seed, "sft/model.zip"), "--timesteps", steps]
            args += ["--n-envs", scale.n_envs, "--set", *scale.grpo]
        else:
            variant = VARIANTS.get(part, VARIANTS["default"])
            args = ["--algo", _STEPPED if variant.stepped else "agentprm"]
            args += ["--policy", self.at(seed, f"{variant.start}/model.zip")]
            args += ["--iterations", scale.iterations if part == "agentprm" else 1]
            chosen = dict(setting.split("=", 1) for setting in scale.small)
            chosen |= dict(setting.format(**scale.numbers).split("=", 1) for setting in variant.settings)
            args += ["--set", *(f"{key}={value}" for key, value in chosen.items())] if chosen else []
        self.run(self.at(seed, part), "model.zip", "train", *args, "--games", self.games, "--seed", seed)

    def _reasoned(self, seed: int) -> list[object]:
        """What ``agentprm train`` is told about demonstrations with reasons: the bundled model's keep the words it knows."""
        if self.policy != "tiny":
            return ["--n-demos", self.scale.n_reasoned, "--set", "policy_kwargs.reason=true"]
        path = self.at(seed, "terse_demos.jsonl.gz")
        if not path.exists():
            tokenizer = LanguageModel.load("tiny").tokenizer
            demos = demonstrations(find_games("train", self.games), self.scale.n_reasoned, seed)
            for turn in (turn for demo in demos for turn in demo.turns):
                turn.reason = known_words(turn.reason, tokenizer)
            write_episodes(path, demos)
        kwargs = ["policy_kwargs.reason=true", "policy_kwargs.max_new_tokens=12", f"policy_kwargs.template={_TERSE}"]
        return ["--demos", path, "--set", *kwargs]

    def train_all(self, seeds: Sequence[int], parts: Sequence[str], jobs: int) -> None:
        """Train parts that are not trained, ``jobs`` at a time; what they begin at goes first and ``"grpo"`` last."""
        starts = list(dict.fromkeys(VARIANTS.get(part, VARIANTS["default"]).start for part in parts))
        stages = [starts, [part for part in parts if part != "grpo"], [part for part in parts if part == "grpo"]]
        for stage in stages:
            side_by_side(self._train_and_tell, [(seed, part) for part in stage for seed in seeds], jobs)

    def _train_and_tell(self, task: tuple[int, str]) -> None:
        seed, part = task
        self.train(seed, part)
        steps, minutes = self.spent(seed, part)
        print(f"seed {seed}: {part}, {steps:,} steps, {minutes:.1f} minutes", flush=True)

    # ------------------------------------------------------------------ measuring
    def evaluate(self, seed: int, play: Play) -> None:
        """Let a policy play every game of a split once."""
        args: list[object] = [self.at(seed, play.model), "--split", play.split, "--temperature", play.temperature]
        if play.prm is not None:
            args += ["--best-of", play.best_of, "--prm", self.at(seed, play.prm), "--policy-weight", play.weight]
        args += ["--max-steps", MAX_STEPS]
        if self.scale.max_games is not None:
            args += ["--max-games", self.scale.max_games]
        self.run(self.played(seed, play), "result.json", "eval", *args, "--games", self.games, "--seed", seed)

    def evaluate_all(self, seeds: Sequence[int], plays: Sequence[Play], jobs: int) -> None:
        """Play all that was not played, ``jobs`` at a time."""
        side_by_side(lambda task: self.evaluate(*task), [(seed, play) for play in plays for seed in seeds], jobs)

    def played(self, seed: int, play: Play) -> Path:
        """Folder of an evaluation."""
        return self.at(seed, "eval") / play.name

    def success(self, seed: int, play: Play) -> float:
        """Share of games won.

        Raises:
            FileNotFoundError: it has not been played.
        """
        return float(read_row(self.played(seed, play))["success"])

    def rank(self, seed: int, prm: str) -> None:
        """Measure how a PRM orders the commands of panel states, and how the start's policy does, by ``fair`` labels."""
        few = [] if self.scale.max_states is None else ["--max-states", self.scale.max_states]
        words = [f"prm=prm:{self.at(seed, prm)}", f"policy=policy:{self.at(seed, 'sft/model.zip')}"]
        self.run(
            self.ranked(seed, prm), "result.json", "bench", *words, "--panel", "generated", "--labels", "fair", *few
        )

    def rank_all(self, seeds: Sequence[int], prms: Sequence[str], jobs: int) -> None:
        """Rank all that was not ranked, ``jobs`` at a time."""
        side_by_side(lambda task: self.rank(*task), [(seed, prm) for prm in prms for seed in seeds], jobs)

    def ranked(self, seed: int, prm: str) -> Path:
        """Folder of a benchmark."""
        return self.at(seed, "eval") / ("bench_" + "_".join(Path(prm).with_suffix("").parts))

    def metric(self, seed: int, prm: str, ranker: str, name: str) -> float:
        """A metric of the benchmark: of ``"prm"``, or of the start's ``"policy"``."""
        result: dict[str, Any] = json.loads((self.ranked(seed, prm) / "result.json").read_text(encoding="utf-8"))
        return float(result["figures"][f"{ranker}/{name}"])

    def opinion(self, seed: int, model: str, play: Play) -> float:
        """What a save's PRM says of the episodes of an evaluation: the mean score of what was done, in [0, 1].

        It is kept beside the evaluation's result.
        """
        path = self.played(seed, play) / "opinion.json"
        if not path.exists():
            from agentprm_gym.episodes import read_episodes
            from agentprm_gym.prm import load_prm
            from algorithms.cli.output import write_json
            from algorithms.common.prm.guard import opinion
            from algorithms.common.shell.load import load_language_model

            save = str(self.at(seed, model))
            episodes = list(read_episodes(self.played(seed, play) / "episodes.jsonl.gz"))
            score, _ = opinion(load_prm(save, load_language_model(save)), episodes, 16)
            write_json(path, score)
        return float(json.loads(path.read_text(encoding="utf-8")))
