"""The stages of :mod:`benchmarks.real_lm_study`, each of which goes on where it was stopped."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback

from agentprm_gym.episodes import Episode, read_episodes, write_episodes
from agentprm_gym.experts import demonstrations
from agentprm_gym.games import find_games
from agentprm_gym.llm.saving import read_save
from algorithms import SFT, AgentPRM, evaluate, load_actor, make_eval_env
from algorithms.cli import main as agentprm
from algorithms.cli.output import write_json, write_text
from algorithms.common.measure.evaluation import draw_games, wilson
from algorithms.common.shell.base import StopLearning
from algorithms.common.shell.checkpoints import state_path

TEMPLATE = Path(__file__).parent / "templates" / "brief.jinja"
#: Turns of an episode at most, and tokens of a reason.
TURNS, REASON = 15, 24
#: Of the demonstrations every so many-th has no reasons, for the policy that acts without.
SILENT = 2
#: How they are cloned. Few episodes an update: a pass over 300 has to hold more than a hundred updates.
SFT_OPTIONS: dict[str, Any] = {"learning_rate": 1e-3, "batch_size": 2, "micro_batch_size": 2, "loss": "tokens"}
#: AgentPRM takes half of that step size, since its adapters begin at the cloned ones, and as few episodes an update: with
#: eight and 3e-4, the PRM had nine updates, and its loss stood still (0.63 in the first, 0.61 in the fifth).
AGENTPRM_OPTIONS: dict[str, Any] = {
    "n_iterations": 1,
    "n_validation_games": 0,
    "micro_batch_size": 2,
    "learning_rate": 5e-4,
}
BEST_OF = (2, 4, 8)
RANKERS = ("uniform", "cloned", "prm")
#: Figures of the exact benchmark: within a state, and over all commands of all states.
RANKING = {
    "pair_accuracy": "pairs in order",
    "top1": "best first",
    "auc": "AUC in a state",
    "pooled_auc": "AUC over all",
}


class TimeIsOverError(Exception):
    """The minutes of this call are over."""


@dataclass
class Size:
    """How much is done.

    Attributes:
        n_demos: demonstrations that are cloned.
        n_parts: parts into which the pass is cut, each of which can be gone on from.
        n_games: held-out games.
        n_answers: games in which answers are written freely, of :attr:`answer_turns` turns.
        answer_turns: see above.
        n_states: states of the benchmark.
        n_envs: episodes side by side.
        agentprm: options of AgentPRM's stages.
    """

    n_demos: int = 300
    n_parts: int = 6
    n_games: int = 100
    n_answers: int = 20
    answer_turns: int = 4
    n_states: int = 100
    n_envs: int = 25
    agentprm: dict[str, Any] = field(
        default_factory=lambda: {
            "rollout": {
                "n_games": 60,
                "n_repeats": 2,
                "n_trunks": None,
                "n_branch_states": 60,
                "n_branch_candidates": 3,
            },
            "prm": {"n_epochs": 2, "batch_size": 2, "learning_rate": 5e-4},
            "improve": {"n_updates": 24, "batch_size": 4},
        }
    )

    @classmethod
    def quick(cls) -> Size:
        """A trial that says nothing."""
        small = {
            "rollout": {"n_games": 2, "n_repeats": 1, "n_trunks": None, "n_branch_states": 2, "n_branch_candidates": 2},
            "prm": {"n_epochs": 1, "learning_rate": 2e-4},
            "improve": {"n_updates": 1, "batch_size": 2},
        }
        return cls(2, 1, 2, 1, 2, 4, 2, small)


class Study:
    """The stages, with what is done of them."""

    def __init__(
        self, work: Path, size: Size, model: str, seed: int, minutes: float | None, turns: int = TURNS
    ) -> None:
        """Begin or go on in a folder; nothing is done yet.

        Raises:
            ValueError: the folder holds work of other settings, or files that nothing is known about.
        """
        self.work, self.size, self.model, self.seed, self.turns = work, size, model, seed, turns
        self.end = float("inf") if minutes is None else time.monotonic() + 60 * minutes
        self.console = Console()
        work.mkdir(parents=True, exist_ok=True)
        self.policy_kwargs: dict[str, Any] = {
            "template": str(TEMPLATE),
            "reason": True,
            "max_new_tokens": REASON,
            "lora": {"r": 16},
        }
        self._keep_settings()

    def _keep_settings(self) -> None:
        """Note what the folder's work is made with, or compare: stages of other settings would be taken as done."""
        policy = {key: value for key, value in self.policy_kwargs.items() if key != "template"}
        own = {"model": self.model, "seed": self.seed, "turns": self.turns, "policy": policy}
        own |= {
            "size": asdict(self.size),
            "sft": SFT_OPTIONS,
            "agentprm": AGENTPRM_OPTIONS,
            "silent": SILENT,
            "template": TEMPLATE.read_text("utf-8"),
        }
        path = self.work / "settings.json"
        if not path.exists():
            if any(self.work.iterdir()):
                raise ValueError(
                    f"{self.work} is not empty and has no settings.json, so nothing says what made its work: choose another "
                    "folder with --work, or delete this one"
                )
            write_json(path, own)
            return
        theirs = json.loads(path.read_text(encoding="utf-8"))
        others = sorted(key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key))
        if others:
            raise ValueError(
                f"{self.work} holds work of other settings ({', '.join(others)}): choose another folder with --work, or "
                "delete this one"
            )

    def env(self, split: str, n: int | None = None, turns: int | None = None) -> Any:
        """Environments of a split."""
        n = self.size.n_envs if n is None else n
        return make_eval_env(n_envs=n, split=split, games="generated", max_episode_steps=turns or self.turns)

    @property
    def held_out(self) -> list[int]:
        """The games that all policies play, spread over the task types."""
        games = find_games("valid_seen", "generated")
        kinds = [game_id.split("-", 1)[0] for game_id in games.game_ids]
        return draw_games(kinds, self.size.n_games, self.seed)

    def in_time(self) -> None:
        """Go on only while there is time.

        Raises:
            TimeIsOverError: there is none left.
        """
        if time.monotonic() >= self.end:
            raise TimeIsOverError

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do a stage, unless it is done; returns what it found, with the seconds that it took in all calls."""
        path = self.work / f"{name}.json"
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found
        self.in_time()
        self.console.print(f"{name} ...")
        with _Clock(self.work / f"{name}.seconds") as clock:
            found = work()
        found["seconds"] = seconds = clock.seconds
        write_json(path, found)
        self.console.print(f"{name}: {seconds:,.0f} s")
        return found

    # ------------------------------------------------------------------ evaluations
    def play(self, name: str, make: Callable[[Any], Any]) -> dict[str, Any]:
        """Let an actor play the held-out games; finished ones are kept, and not played again."""
        path = self.work / f"{name}.jsonl"
        done: list[Episode] = list(read_episodes(path)) if path.exists() else []
        games = find_games("valid_seen", "generated")
        have = {episode.game_id for episode in done}
        left = [g for g in self.held_out if games.game_ids[g] not in have]
        # Some at a time, so that a call can end between them.
        while left:
            self.in_time()
            some, left = left[: self.size.n_envs], left[self.size.n_envs :]
            venv = self.env("valid_seen", len(some))
            done += evaluate(make(venv), venv, games=some, seed=self.seed, policy_name=name)
            venv.close()
            write_episodes(path, done)
        won = sum(episode.success for episode in done)
        low, high = wilson(won, len(done))
        return {"won": won, "n": len(done), "rate": won / len(done), "low": low, "high": high}

    def actor(self, model: str, venv: Any, **how: Any) -> Any:
        """An actor of a model with this study's prompt."""
        return (
            load_actor(model, venv, **self.policy_kwargs, **how)
            if not model.endswith(".zip")
            else load_actor(model, venv, **how)
        )

    def answers(self, name: str, model: str) -> dict[str, Any]:
        """Let a model write freely, and count what it writes."""
        venv = self.env("valid_seen", min(self.size.n_answers, self.size.n_envs), self.size.answer_turns)
        free = {"action_mode": "generate", "max_new_tokens": REASON + 20}
        kwargs = free if model.endswith(".zip") else {**self.policy_kwargs, **free}
        actor: Any = load_actor(model, venv, **kwargs)
        episodes = evaluate(actor, venv, games=self.held_out[: self.size.n_answers], seed=self.seed, policy_name=name)
        venv.close()
        write_episodes(self.work / f"answers_{name}.jsonl", episodes)
        n = actor.counts["responses"]
        shares = {what: actor.counts[what] / n for what in ("malformed", "repaired", "inadmissible", "cut")}
        return {"n": n, **shares}

    # ------------------------------------------------------------------ training
    @property
    def sft_zip(self) -> str:
        """Where the cloned policy is."""
        return str(self.work / "sft.zip")

    @property
    def plain_zip(self) -> str:
        """The same, acting without reasons."""
        return str(self.work / "sft_plain.zip")

    @property
    def agentprm_zip(self) -> str:
        """Where AgentPRM's policy and PRM are."""
        return str(self.work / "agentprm.zip")

    def sft(self) -> dict[str, Any]:
        """Clone the demonstrations, part by part: the learning rate falls over all of them."""
        path = self.work / "demos.jsonl.gz"
        if not path.exists():
            told = demonstrations(find_games("train", "generated"), self.size.n_demos, self.seed)
            write_episodes(path, [e.bare() if (i + 1) % SILENT == 0 else e for i, e in enumerate(told)])
        demos = list(read_episodes(path))
        folder, n_turns = self.work / "sft_run", sum(len(episode.turns) for episode in demos)
        size = -(-len(demos) // self.size.n_parts)
        parts = [demos[i : i + size] for i in range(0, len(demos), size)]
        while True:
            self.in_time()
            venv = self.env("train", 1)
            if state_path(folder).exists():
                model = SFT.resume(folder, venv, demonstrations=demos)
            else:
                taught = {"demonstrations": demos, "policy_kwargs": self.policy_kwargs}
                model = SFT(self.model, venv, seed=self.seed, **taught, **SFT_OPTIONS)
                model.checkpoint_dir = folder
            if model.iteration == len(parts):
                break
            begun = model.iteration > 0
            model.demonstrations = parts[model.iteration]
            # One part is one iteration; the end that the schedule knows is that of all parts.
            model.learn(n_turns - model.num_timesteps, callback=_OnePart(), reset_num_timesteps=not begun)
            venv.close()
        model.save(self.sft_zip)
        kwargs = {**read_save(self.sft_zip).policy_kwargs, "reason": False}
        SFT.load(self.sft_zip, custom_objects={"policy_kwargs": kwargs}).save(self.plain_zip)
        return {"n_demos": len(demos), "n_turns": n_turns, "expert_rate": sum(e.success for e in demos) / len(demos)}

    def agentprm(self) -> dict[str, Any]:
        """One iteration of AgentPRM; without validation games, so the last policy is kept."""
        folder, venv = self.work / "agentprm_run", self.env("train")
        if state_path(folder).exists():
            model = AgentPRM.resume(folder, venv)
        else:
            options = {**AGENTPRM_OPTIONS, **self.size.agentprm}
            silent = {**self.policy_kwargs, "reason": False}
            model = AgentPRM(self.plain_zip, venv, seed=self.seed, policy_kwargs=silent, **options)
            model.checkpoint_dir = folder
        begun = state_path(folder).exists()
        if model.iteration < 1:
            model.learn(reset_num_timesteps=not begun)
        model.save(self.agentprm_zip)
        venv.close()
        return {"timesteps": model.num_timesteps, "tokens": model.total_tokens}

    def ranking(self) -> dict[str, Any]:
        """Ranking on the exact benchmark: all that it measures."""
        out = self.work / "bench"
        rankers = ["uniform", f"cloned=policy:{self.plain_zip}", f"prm=prm:{self.agentprm_zip}"]
        words = f"--panel generated --labels oracle --max-states {self.size.n_states} --overwrite".split()
        status = agentprm(["bench", *rankers, *words, "--seed", str(self.seed), "--out", str(out)])
        if status:
            raise RuntimeError(f"agentprm bench ended with status {status}")
        figures: dict[str, Any] = json.loads((out / "result.json").read_text(encoding="utf-8"))["figures"]
        return figures

    # ------------------------------------------------------------------ all of it
    def run(self) -> dict[str, dict[str, Any]]:
        """Do what is left; returns what all stages found.

        Raises:
            TimeIsOverError: the minutes of this call are over.
        """
        base, told, sft = (partial(self.actor, model) for model in (self.model, self.sft_zip, self.plain_zip))
        found = {"answers_base": self.stage("answers_base", lambda: self.answers("base", self.model))}
        found["sft_training"] = self.stage("sft_training", self.sft)
        found["answers_sft"] = self.stage("answers_sft", lambda: self.answers("sft", self.sft_zip))
        found["sft"] = self.stage("sft", lambda: self.play("sft", sft))
        found["agentprm_training"] = self.stage("agentprm_training", self.agentprm)
        found["ranking"] = self.stage("ranking", self.ranking)
        for n in BEST_OF:
            search = partial(self.actor, self.plain_zip, search="best-of-n", n=n, prm=self.agentprm_zip)
            found[f"best_of_{n}"] = self.stage(f"best_of_{n}", partial(self.play, f"best_of_{n}", search))
        improved = partial(self.actor, self.agentprm_zip)
        found["agentprm"] = self.stage("agentprm", lambda: self.play("agentprm", improved))
        found["sft_reasons"] = self.stage("sft_reasons", lambda: self.play("sft_reasons", told))
        found["prompted"] = self.stage("prompted", lambda: self.play("prompted", base))
        return found


class _Clock:
    """Counts the seconds of a stage in a file, over all calls, those that were killed included."""

    def __init__(self, path: Path, every: float = 5.0) -> None:
        self.path, self.every = path, every
        self._before = float(path.read_text(encoding="utf-8")) if path.exists() else 0.0
        self._start = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)

    @property
    def seconds(self) -> float:
        """Seconds in all calls until now."""
        return self._before + time.monotonic() - self._start

    def _count(self) -> None:
        while not self._over.wait(self.every):
            write_text(self.path, f"{self.seconds}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        write_text(self.path, f"{self.seconds}")


class _OnePart(BaseCallback):
    """Ends learning when one pass over a part is done."""

    _seen = 0

    def _on_rollout_start(self) -> None:
        self._seen += 1
        if self._seen > 1:
            raise StopLearning

    def _on_step(self) -> bool:
        return True
