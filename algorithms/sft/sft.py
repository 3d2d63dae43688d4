"""SFT: behaviour cloning of demonstrations, where every other algorithm starts.

The loss is the negative log-probability of the demonstrated command under the *constrained* distribution, the one that the
policy acts with: capacity is not spent on learning which commands exist, since the environment says so. Reasons are learnt
with them where the policy gives reasons (``policy_kwargs={"reason": True}``), token by token. With ``loss="tokens"`` it is the
ordinary next-token loss on the whole response.

A turn whose command was not admissible has no probability in the constrained distribution, and nothing can be learnt from it.
Such turns are counted, warned of and left out (:mod:`algorithms.sft.demonstrations`).

One timestep is one demonstrated turn that was trained on, so ``learn(total_timesteps)`` passes over the demonstrations
``total_timesteps / n_turns`` times. No environment is stepped, except with DAgger (``dagger_games``), whose own play is not
counted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from torch.nn import functional

from agentprm_gym.checks import check_choice, check_float, check_int
from agentprm_gym.episodes import Episode, read_episodes, write_episodes
from agentprm_gym.files import write_whole
from agentprm_gym.llm.packing import TokenTree, pack
from agentprm_gym.llm.scoring import score_turns
from algorithms.common.acting.policy import POLICY
from algorithms.common.acting.ranks import ranks
from algorithms.common.acting.rollouts import RolloutTask, collect
from algorithms.common.learning.batches import minibatches, own_pieces
from algorithms.common.learning.optim import Updater, set_rate
from algorithms.common.shell.base import LLMAlgorithm
from algorithms.common.shell.checkpoints import EPISODES, finish_gathered, gathered_path, new_version
from algorithms.sft.dagger import TEACHERS, teach
from algorithms.sft.demonstrations import Demonstration, Lesson, lessons, warn_of

LOSSES = ("constrained", "tokens")


class SFT(LLMAlgorithm):
    """Behaviour cloning on episodes.

    Attributes:
        demonstrations: what is imitated.
        taught: with DAgger, what the learner played, each with the teacher's commands.
        updater: the optimizer.

    Example:
        >>> from algorithms import SFT
        >>> model = SFT("tiny", "ALFWorld-v0", demonstrations="demos.jsonl.gz")  # doctest: +SKIP
        >>> model.learn(50_000).save("sft")  # doctest: +SKIP
    """

    def __init__(
        self,
        policy: str | type[BasePolicy] = "tiny",
        env: GymEnv | str | None = None,
        learning_rate: float = 2e-3,
        demonstrations: str | os.PathLike[str] | Sequence[Episode] | None = None,
        batch_size: int = 16,
        micro_batch_size: int = 16,
        loss: str = "constrained",
        dagger_games: int = 0,
        teacher: str = "search",
        max_grad_norm: float = 1.0,
        n_envs: int = 64,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        """Build the policy and read the demonstrations.

        Args:
            policy: alias of a bundled model, folder or hub id of a causal language model, or the zip of a trained
                algorithm to start from.
            env: environment, or its id: for the spaces, for DAgger, and for SB3's callbacks that evaluate.
            learning_rate: peak of the step size, above 0; linear decay to zero over ``learn``. The default suits the bundled
                model of 0.9 million parameters; models of 0.5 to 7 billion want about 1e-4.
            demonstrations: episodes, or a file of them; needed to learn, not to predict.
            batch_size: episodes an update, 1 or more.
            micro_batch_size: episodes a forward pass, 1 or more; it changes memory and speed alone.
            loss: ``"constrained"`` or ``"tokens"``.
            dagger_games: games that the learner plays after each pass, 0 or more; its states are added to the
                demonstrations with the teacher's commands (DAgger). 0: plain behaviour cloning.
            teacher: with ``dagger_games``, who says what to do there: ``"search"`` sees what the learner saw, ``"planner"``
                sees everything.
            max_grad_norm: gradients of a larger norm are scaled down to it, above 0.
            n_envs: how many environments to make where ``env`` is an id, 1 or more.
            stats_window_size: episodes over which ``rollout/*`` is averaged, 1 or more.
            tensorboard_log: folder for TensorBoard, or ``None``.
            policy_kwargs: keyword arguments of :class:`~algorithms.common.acting.policy.LLMPolicy`.
            verbose: 0 silent, 1 tables, 2 debug.
            seed: of every random stream, 0 or more; ``None``: runs differ.
            device: torch device; ``"auto"`` takes a GPU where one is found.
            _init_setup_model: build the policy now.

        Raises:
            ValueError: a value is out of range or has no effect with the others, or no demonstration can be learnt from.
        """
        check_choice("teacher", teacher, TEACHERS)
        check_choice("loss", loss, LOSSES)
        self.dagger_games = check_int("dagger_games", dagger_games, 0)
        if dagger_games and loss != "constrained":
            raise ValueError(f"dagger_games needs loss='constrained'; got dagger_games={dagger_games}, loss={loss!r}")
        if teacher != TEACHERS[0] and not dagger_games:
            raise ValueError(f"teacher={teacher!r} has no effect without dagger_games: set dagger_games to 1 or more")
        if isinstance(demonstrations, (str, os.PathLike)):
            demonstrations = list(read_episodes(demonstrations))
        self.demonstrations = demonstrations
        self.batch_size = check_int("batch_size", batch_size, 1)
        self.micro_batch_size = min(check_int("micro_batch_size", micro_batch_size, 1), self.batch_size)
        self.loss, self.teacher = loss, teacher
        self.max_grad_norm = check_float("max_grad_norm", max_grad_norm, above=0)
        # What the learner played, with the teacher's commands.
        self.taught: list[Demonstration] = []
        self._taught_version = 1  # which writing of it the checkpoint holds
        # What can be learnt, and of which demonstrations.
        self._lessons: tuple[Sequence[Episode] | None, list[Lesson]] = (None, [])
        super().__init__(
            policy,
            env,
            learning_rate,
            n_envs=n_envs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )
        self.updater = Updater(lambda: self.lm.adapter_parameters(POLICY), self.learning_rate, self.max_grad_norm)

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.policy.explore is not None:
            raise ValueError("SFT imitates and does not explore: leave explore out of policy_kwargs")
        self._read_demonstrations()

    def _read_demonstrations(self) -> list[Lesson]:
        """What can be learnt from the demonstrations; the rest is warned of once."""
        if self.demonstrations is not None and self._lessons[0] is not self.demonstrations:
            warn_of(self.demonstrations, admissible_only=self._chooses)
            self._lessons = self.demonstrations, self._lessons_of([(episode, None) for episode in self.demonstrations])
        return self._lessons[1]

    @property
    def _chooses(self) -> bool:
        """Whether commands are learnt as choices among the admissible ones."""
        return self.loss == "constrained" and self.policy.responder.mode != "generate"

    def _lessons_of(self, demonstrations: Sequence[Demonstration]) -> list[Lesson]:
        return lessons(demonstrations, admissible_only=self._chooses)

    def loss_sum(self, batch: Sequence[Lesson]) -> torch.Tensor:
        """Summed negative log-probability of what a batch teaches, a scalar; the policy's adapter must be active.

        Args:
            batch: what to learn at which turns of which episodes.
        """
        episodes = [lesson.episode for lesson in batch]
        if self.loss == "constrained":
            picked = []
            scored = score_turns(self.policy.responder, episodes, [lesson.turns for lesson in batch])
            for lesson, scores in zip(batch, scored, strict=True):
                for t, command, score in zip(lesson.turns, lesson.commands, scores, strict=True):
                    if len(score.free):
                        picked.append(score.free.sum())
                    if score.commands is not None:
                        picked.append(score.commands[lesson.episode.turns[t].admissible_commands.index(command)])
            return -torch.stack(picked).sum()
        passages = [p for e in episodes for p in self.policy.responder.encode(e.task, e.turns)]
        packed = pack([TokenTree(p.ids) for p in passages], int(self.lm.tokenizer.pad_token_id), self.lm.device)
        action_mask = torch.zeros_like(packed.ids, dtype=torch.bool)  # (B, L), true at response tokens
        for row, p in enumerate(passages):
            for start, end in zip(p.prompt_end, p.response_end, strict=True):
                action_mask[row, start + 1 : end + 1] = True
        keep = action_mask[:, 1:]
        hidden = self.lm.hidden(packed)[:, :-1][keep]  # (N, H)
        return functional.cross_entropy(self.lm.logits(hidden), packed.ids[:, 1:][keep], reduction="sum")

    def _batches(self) -> Iterator[Sequence[Lesson]]:
        """One pass over all that can be learnt, in random order."""
        everything = [*self._read_demonstrations(), *self._lessons_of(self.taught)]
        return minibatches(everything, self.batch_size, self.policy.rng)

    def _play(self) -> None:
        """DAgger: let the learner play some games, and the teacher say what it would have done."""
        venv, seed = self.venv, self.seed_base
        if self.teacher == "planner" and not venv.has_attr("games"):
            raise ValueError(
                "teacher='planner' reads the true games, and this environment has no list of games (attribute games): use "
                "teacher='search', or demonstrations alone"
            )
        chosen = np.random.default_rng([seed, self.iteration, 1]).permutation(self.count_games())[: self.dagger_games]
        tasks = [RolloutTask({"game": int(g)}, (seed, self.iteration, 2, i)) for i, g in enumerate(chosen)]
        actor = self.policy.actor(venv.num_envs)
        with self.lm.merged(POLICY):
            rollouts = collect(actor, venv, tasks, snapshots=self.teacher == "planner", workers=self.workers) or []
        self.record_episodes([rollout.episode for rollout in rollouts])
        self.record_acting(actor)
        games = venv.get_attr("games", indices=[0])[0] if self.teacher == "planner" else None
        self.taught += teach(rollouts, self.teacher, games)

    def _iterate(self, callback: BaseCallback) -> bool:
        """One iteration is one pass over the demonstrations, and with DAgger some games."""
        if not self.demonstrations and not self.dagger_games:
            raise ValueError(
                "SFT has no demonstrations: pass demonstrations= (episodes or a .jsonl file of them); "
                "`agentprm demos` writes some"
            )
        callback.on_rollout_start()
        # Behaviour cloning comes first, where there is something to clone.
        if self.dagger_games and (self.iteration or not self.demonstrations):
            self._play()
        callback.on_rollout_end()
        losses = []
        for batch in self._batches():
            n_turns = sum(len(lesson.turns) for lesson in batch)
            # A short warm-up; Adam's first steps are the largest relative to its knowledge of the scale.
            warm = min(1.0, (self._n_updates + 1) / 10)
            rate = float(self.learning_rate) * warm * max(self._current_progress_remaining, 0.02)
            set_rate(self.updater.optimizer, rate)
            total = 0.0
            with self.lm.active(POLICY, train=True, dropout=True):
                for piece in own_pieces(batch, self.micro_batch_size):
                    loss = self.loss_sum(piece) / n_turns
                    loss.backward()
                    total += loss.item()
            total = ranks().total(total)
            self.updater.step(batch, total)
            self._n_updates += 1
            losses.append(total)
            names = {"infos": [], "dones": np.zeros(0, dtype=bool), "rewards": np.zeros(0), "batch": batch}
            if not self._count_step(callback, names, n_turns):
                return False
            if self.num_timesteps >= self._total_timesteps:
                break
        self.logger.record("train/loss", float(np.mean(losses)) if losses else float("nan"))
        self.logger.record("train/n_updates", self._n_updates)
        return True

    # ------------------------------------------------------------------ checkpoints
    def write_checkpoint(self, gathered: Collection[Path] = ()) -> None:
        """Write a checkpoint; with DAgger the learner's episodes so far and the teacher's commands belong to it."""
        if self.checkpoint_dir is not None and self.taught:
            self._taught_version = new_version(self.checkpoint_dir, self.iteration)
            folder = gathered_path(self.checkpoint_dir, self.iteration, self._taught_version)
            write_episodes(folder / EPISODES, [episode for episode, _ in self.taught])
            labels = [None if labels is None else list(labels) for _, labels in self.taught]
            write_whole(folder / "labels.json", json.dumps(labels) + "\n")
            finish_gathered(folder)
            gathered = [folder]
        super().write_checkpoint(gathered)

    def _running_state(self) -> dict[str, Any]:
        taught = {"n_taught": len(self.taught), "taught_version": self._taught_version}
        return {**super()._running_state(), "optimizer": self.updater.state(), **taught}

    def _restore_running_state(self, state: Mapping[str, Any]) -> None:
        super()._restore_running_state(state)
        self.updater.load_state(state["optimizer"])
        if state["n_taught"]:
            assert self.checkpoint_dir is not None
            version = state.get("taught_version", 1)  # not in checkpoints up to version 0.2
            folder = gathered_path(self.checkpoint_dir, self.iteration, version)
            labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
            self.taught = list(zip(read_episodes(folder / EPISODES), labels, strict=True))
