"""AgentPRM (Choudhury, arXiv 2502.10325, Algorithm 1): roll out, fit a process reward model, improve the policy, iterate.

Differences from the paper and its released code:

1. Targets are the paper's return-to-go ``gamma ** (T - 1 - t)``, failures 0; the released code has ``gamma ** t`` on ±1.
2. Beside whole episodes, some states are branched: candidates the policy weighed there are each tried, and the policy plays
   on (section 4.1, resets). They are what tells commands *of one state* apart; with ``n_branch_states=0`` there are none.
3. A pairwise loss within the state stands beside the soft cross-entropy; ``rank_coef=0`` leaves the paper's loss.
4. The policy is sampled fresh in every update (no one-step-stale sampler), and pairs under a margin are dropped.
5. Stage 3 weighs the measured returns of tried commands in beside the PRM (``prior_visits``) and imitates the iteration's won
   episodes (``imitation_coef``): the paper names online DPO, rejection sampling and PPO as optimisers, and this is the first
   two together. With a few thousand episodes a PRM ranks the commands of one state hardly better than chance, and DPO against
   it alone made the policy worse in every run that was tried.
6. The training and held-out parts of the PRM's data are split by game, not by state.
7. The iteration kept is the best by success on train games that are never rolled out for training.

``rank_coef=0, n_branch_states=0, prior_visits=None, imitation_coef=0, prm_init="base"`` is the paper's recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from agentprm_gym.episodes import Episode
from agentprm_gym.rewards.prm import PRM, ProcessRewardModel
from agentprm_gym.saving import SavedModel
from algorithms.agent_prm.fit import PRMReport, evaluate_prm, fit_prm
from algorithms.agent_prm.online_dpo import DPOStats, Evidence, train_online_dpo
from algorithms.agent_prm.targets import LabelledEpisode, QTable, label_episodes, state_keys
from algorithms.common.base import LLMAlgorithm
from algorithms.common.policy import POLICY
from algorithms.common.rollouts import Rollout, RolloutTask, collect
from algorithms.common.search import BestOfNActor

REFERENCE = "reference"
#: Stage names as ``on_stage`` reports them.
STAGES = ("validate", "roll out", "roll out more", "branch", "fit PRM", "improve policy")
#: So many episodes tell the mean score; those of held-out games come first.
N_COMPARED = 64


class AgentPRM(LLMAlgorithm):
    """Process reward model from the policy's own rollouts, policy improved against it, repeated.

    Example:
        >>> from algorithms import AgentPRM
        >>> model = AgentPRM("sft.zip", "ALFWorld-v0", n_iterations=2)  # doctest: +SKIP
        >>> model.learn(1_000_000).save("agentprm")  # doctest: +SKIP
    """

    def __init__(
        self,
        policy: str | type[BasePolicy] = "tiny",
        env: GymEnv | str | None = None,
        learning_rate: float = 1e-3,
        n_iterations: int | None = None,
        n_games: int = 600,
        n_repeats: int = 3,
        n_trunks: int = 200,
        n_branch_states: int = 250,
        n_branch_candidates: int = 3,
        n_branch_repeats: int = 1,
        branch_horizon: int = 12,
        gamma: float = 0.95,
        temperature: float = 0.6,
        prm_learning_rate: float = 1e-3,
        prm_n_epochs: int = 1,
        prm_batch_size: int = 8,
        prm_init: str = "policy",
        rank_coef: float = 1.0,
        prm_kwargs: dict[str, Any] | None = None,
        n_updates: int = 80,
        batch_size: int = 16,
        turns_per_episode: int = 4,
        n_samples: int = 8,
        beta: float = 0.2,
        margin: float = 0.15,
        prior_visits: float | None = 1.0,
        target_kl: float | None = None,
        imitation_coef: float = 1.0,
        n_imitated_per_game: int = 2,
        max_grad_norm: float = 1.0,
        n_validation_games: int = 100,
        micro_batch_size: int = 16,
        **kwargs: Any,
    ) -> None:
        """Set up.

        Args:
            policy: where to start; usually the zip of an :class:`SFT` model.
            env: training environment.
            learning_rate: of the policy's adapter in stage 3.
            n_iterations: stop after this many; ``None`` leaves it to ``total_timesteps``.
            n_games: training games rolled out an iteration.
            n_repeats: episodes a game, so that states recur.
            n_trunks: how many of these episodes the PRM is fitted on and branches start from; all visits count as evidence.
            n_branch_states: states an iteration at which candidates are tried out.
            n_branch_candidates: distinct commands tried at each of them.
            n_branch_repeats: continuations of each.
            branch_horizon: only states of the first so many turns are branched; late ones leave no time to recover.
            gamma: discount of the targets, in (0, 1].
            temperature: at which the policy is rolled out and sampled.
            prm_learning_rate: of the PRM's adapter and head.
            prm_n_epochs: passes over the labelled episodes.
            prm_batch_size: episodes an update of the PRM.
            prm_init: where each iteration's PRM adapter starts: ``"policy"`` or ``"base"`` (fresh, as in the paper).
            rank_coef: weight of the within-state pairwise loss.
            prm_kwargs: LoRA settings of the PRM's adapter where ``prm_init="base"``.
            n_updates: policy updates an iteration.
            batch_size: episodes whose states an update draws on.
            turns_per_episode: states of each.
            n_samples: commands sampled a state.
            beta: DPO's pull to the previous policy.
            margin: smallest gap of scores within a pair.
            prior_visits: how many Monte-Carlo visits the PRM's score counts for where both exist; pairs are then drawn among
                commands that were tried. ``None`` leaves the ranking to the PRM alone, as in the paper.
            imitation_coef: weight of imitating the iteration's won episodes beside DPO (rejection sampling); 0: DPO alone.
            n_imitated_per_game: at most so many of a game, the shortest.
            target_kl: stop an iteration's policy updates above this KL to the previous policy, in nats a turn.
            max_grad_norm: gradient clipping.
            n_validation_games: train games held out to choose the best iteration by.
            micro_batch_size: episodes a forward pass.
            kwargs: see :class:`LLMAlgorithm`.

        Raises:
            ValueError: for values out of range.
        """
        if prm_init not in ("policy", "base"):
            raise ValueError(f"prm_init must be 'policy' or 'base', got {prm_init!r}")
        for name, value in (("n_games", n_games), ("n_repeats", n_repeats), ("n_samples", n_samples - 1)):
            if value < 1:
                raise ValueError(f"{name} is too small: got {value + (name == 'n_samples')}")
        self.n_iterations = n_iterations
        self.n_games, self.n_repeats = n_games, n_repeats
        self.n_trunks = n_trunks
        self.n_branch_states, self.n_branch_candidates = n_branch_states, n_branch_candidates
        self.n_branch_repeats, self.branch_horizon = n_branch_repeats, branch_horizon
        self.gamma = QTable(gamma).gamma
        self.temperature = temperature
        self.prm_learning_rate, self.prm_n_epochs, self.prm_batch_size = prm_learning_rate, prm_n_epochs, prm_batch_size
        self.prm_init, self.rank_coef, self.prm_kwargs = prm_init, rank_coef, prm_kwargs
        self.n_updates, self.batch_size = n_updates, batch_size
        self.turns_per_episode, self.n_samples = turns_per_episode, n_samples
        self.beta, self.margin, self.max_grad_norm = beta, margin, max_grad_norm
        self.prior_visits, self.target_kl, self.imitation_coef = prior_visits, target_kl, imitation_coef
        self.n_imitated_per_game = n_imitated_per_game
        self.n_validation_games, self.micro_batch_size = n_validation_games, micro_batch_size
        self.on_stage: Callable[[str, float], None] | None = None
        self.prm: ProcessRewardModel
        self.best_success = -1.0
        self.best_iteration = 0
        self._best: dict[str, Any] | None = None
        super().__init__(policy, env, learning_rate, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.policy.temperature = self.temperature
        self.prm = ProcessRewardModel(self.lm, PRM, self.prm_kwargs or self.policy_kwargs.get("lora"))
        self.lm.copy_adapter(POLICY, REFERENCE)

    # ------------------------------------------------------------------ the loop
    def _may_continue(self) -> bool:
        return self.n_iterations is None or self.iteration < self.n_iterations

    def _iterate(self, callback: BaseCallback) -> bool:
        train, validation = self._split_games()
        if self.iteration == 0:
            self._validate(validation)
        callback.on_rollout_start()
        rollouts = self._roll_out(train, callback)
        branched = None if rollouts is None else self._branch(rollouts[0], callback)
        if rollouts is None or branched is None:
            return False
        callback.on_rollout_end()
        trunks, others = rollouts
        everything = [*trunks, *others, *branched]
        table = QTable(self.gamma)
        table.add([r.episode for r in everything], [r.n_history for r in everything])
        self.logger.record(
            "rollout/branch_success_rate", float(np.mean([r.episode.success for r in branched] or [False]))
        )
        episodes = [r.episode for r in trunks]
        self._fit_prm(*self._label(episodes, table))
        if self._best is not None and self.iteration == 0:
            # The starting policy was validated before it had a PRM; should it stay the best, this is the one fitted to it.
            self._best |= {"prm": self.lm.adapter_state(PRM), "head": self.prm.head_state()}
        self._improve(episodes, table, self._to_imitate(everything))
        self._validate(validation)
        return True

    def _finish_learning(self) -> None:
        """Keep the best iteration by success on the validation games."""
        if self._best is not None:
            self.lm.load_adapter_state(POLICY, self._best["policy"])
            self.lm.load_adapter_state(PRM, self._best["prm"])
            self.prm.head.load_state_dict(self._best["head"])

    def _stage(self, name: str, share: float) -> None:
        if self.on_stage is not None:
            self.on_stage(name, share)

    def _split_games(self) -> tuple[list[int], list[int]]:
        """Indices of the games to train on and of those held out to choose by; fixed by their order."""
        n = int(self._venv().get_attr("n_games", indices=[0])[0])
        n_validation = min(self.n_validation_games, n // 4)
        order = np.random.default_rng(7).permutation(n)
        return [int(i) for i in order[n_validation:]], [int(i) for i in order[:n_validation]]

    def _horizon(self) -> int | None:
        spec = self._venv().get_attr("spec", indices=[0])[0]
        return None if spec is None else spec.max_episode_steps

    def _seed_base(self) -> int:
        return 0 if self.seed is None else self.seed

    def _roll_out(self, games: Sequence[int], callback: BaseCallback) -> tuple[list[Rollout], list[Rollout]] | None:
        """Stage 1: play games several times each.

        Returns:
            The trunks, with snapshots and weighed candidates, and the other rollouts; ``None`` if a callback ended it.
        """
        rng = np.random.default_rng([self._seed_base(), self.iteration, 1])
        chosen = rng.choice(games, min(self.n_games, len(games)), replace=False)
        tasks = [
            RolloutTask({"game": int(game)}, (self._seed_base(), self.iteration, 2, i))
            for i, game in enumerate(np.repeat(chosen, self.n_repeats))
        ]
        order = [int(i) for i in rng.permutation(len(tasks))]
        n_trunks = min(self.n_trunks, len(tasks))
        trunks = self._collect([tasks[i] for i in order[:n_trunks]], "roll out", callback, snapshots=True)
        if trunks is None or n_trunks == len(tasks):
            return None if trunks is None else (trunks, [])
        others = self._collect([tasks[i] for i in order[n_trunks:]], "roll out more", callback, snapshots=False)
        return None if others is None else (trunks, others)

    def _branch(self, rollouts: Sequence[Rollout], callback: BaseCallback) -> list[Rollout] | None:
        """Stage 1, resets: try the candidates of some states and let the policy play on."""
        rng = np.random.default_rng([self._seed_base(), self.iteration, 3])
        # The same number from every episode: drawn from all turns alike, most would come from long failures, where the
        # policy runs in circles and no command makes a difference.
        per_episode = -(-self.n_branch_states // len(rollouts))
        states = []
        for r, rollout in enumerate(rollouts):
            turns = rollout.episode.turns
            early = turns[: self.branch_horizon]
            open_turns = [t for t, turn in enumerate(early) if turn.candidates and len(turn.candidates) > 1]
            states += [(r, open_turns[int(i)]) for i in rng.permutation(len(open_turns))[:per_episode]]
        chosen = rng.permutation(len(states))[: self.n_branch_states]
        horizon = self._horizon()
        tasks: list[RolloutTask] = []
        for i in chosen:
            r, t = states[int(i)]
            turns = rollouts[r].episode.turns
            for candidate in (turns[t].candidates or [])[: self.n_branch_candidates]:
                for _ in range(self.n_branch_repeats):
                    tasks.append(
                        RolloutTask(
                            {"snapshot": rollouts[r].snapshots[t]},
                            (self._seed_base(), self.iteration, 4, len(tasks)),
                            history=list(turns[:t]),
                            first_command=str(candidate["command"]),
                            max_turns=horizon,
                        )
                    )
        return self._collect(tasks, "branch", callback, snapshots=False) if tasks else []

    def _collect(
        self, tasks: Sequence[RolloutTask], stage: str, callback: BaseCallback, *, snapshots: bool
    ) -> list[Rollout] | None:
        venv = self._venv()
        done = 0

        def on_step(names: dict[str, Any]) -> bool:
            return self._count_step(callback, names, int(np.sum(names["actions"] != "")))

        def on_episode(episode: Episode) -> None:
            nonlocal done
            done += 1
            self._stage(stage, done / len(tasks))

        actor = self.policy.actor(
            venv.num_envs, temperature=self.temperature, n_candidates=self.n_branch_candidates if snapshots else 1
        )
        with self.lm.merged(POLICY):
            rollouts = collect(
                actor,
                venv,
                tasks,
                policy_name=f"{type(self).__name__}:{self.iteration}",
                snapshots=snapshots,
                on_step=on_step,
                on_episode=on_episode,
            )
        self._record_acting(actor)
        if stage.startswith("roll out"):  # branches begin where somebody chose to
            self._record_episodes([rollout.episode for rollout in rollouts or []])
        return rollouts

    def _label(self, episodes: Sequence[Episode], table: QTable) -> tuple[list[LabelledEpisode], list[LabelledEpisode]]:
        """Label the rollouts; one game in ten is held out to judge the PRM on.

        Branches label the states they started from; their own later states are left out, since every one of them would be
        one more transcript to read for labels that say little about choices.
        """
        labelled = label_episodes(episodes, table)
        games = sorted({e.game_id for e in episodes})
        rng = np.random.default_rng([self._seed_base(), self.iteration, 5])
        held = {games[int(i)] for i in rng.permutation(len(games))[: len(games) // 10]}
        single = sum(v for k, v in table.histogram().items() if k == 1)
        total = sum(table.histogram().values())
        self.logger.record("prm/n_labels", total)
        self.logger.record("prm/single_visit_share", single / total)
        return (
            [e for e in labelled if e.episode.game_id not in held] or labelled,
            [e for e in labelled if e.episode.game_id in held],
        )

    def _to_imitate(self, rollouts: Sequence[Rollout]) -> list[tuple[Episode, int]]:
        """Won episodes with their first own turn: the shortest few of each game, or the easy games would be all there is."""
        by_game: dict[str, list[tuple[Episode, int]]] = {}
        for r in rollouts:
            if r.episode.success:
                by_game.setdefault(r.episode.game_id, []).append((r.episode, r.n_history))
        return [
            item
            for won in by_game.values()
            for item in sorted(won, key=lambda pair: len(pair[0].turns))[: self.n_imitated_per_game]
        ]

    def _fit_prm(self, data: Sequence[LabelledEpisode], held_out: Sequence[LabelledEpisode]) -> PRMReport:
        """Stage 2: a PRM for this iteration's rollouts."""
        if self.prm_init == "policy":
            self.lm.copy_adapter(POLICY, PRM)
        else:
            self.lm.remove_adapter(PRM)
            self.lm.add_adapter(PRM, self.prm_kwargs or self.policy_kwargs.get("lora"))
        self.prm.reset_head()
        loss = fit_prm(
            self.prm,
            data,
            learning_rate=self.prm_learning_rate,
            n_epochs=self.prm_n_epochs,
            batch_size=self.prm_batch_size,
            micro_batch_size=self.micro_batch_size,
            rank_coef=self.rank_coef,
            max_grad_norm=self.max_grad_norm,
            rng=np.random.default_rng([self._seed_base(), self.iteration, 6]),
            on_step=lambda share: self._stage("fit PRM", share),
        )
        report = evaluate_prm(self.prm, held_out, self.micro_batch_size)
        self.logger.record("prm/loss", loss)
        self.logger.record("prm/heldout_bce", report.bce)
        self.logger.record("prm/heldout_pair_accuracy", report.pair_accuracy)
        self.logger.record("prm/heldout_pairs", report.n_pairs)
        self.logger.record("prm/within_state_spread", report.spread)
        self._compare_with_outcomes([e.episode for e in (*held_out, *data)][:N_COMPARED])
        return report

    def _compare_with_outcomes(self, episodes: Sequence[Episode]) -> None:
        """Log how the PRM's scores of what was done compare with how it went; an episode counts as one, however long."""
        means = []
        for start in range(0, len(episodes), self.micro_batch_size):
            part = episodes[start : start + self.micro_batch_size]
            items = [(e.task, e.turns, [(t, [turn.command]) for t, turn in enumerate(e.turns)]) for e in part]
            means += [float(torch.cat(scores).mean()) for scores in self.prm.score(items)]
        score = float(np.mean(means))
        self.logger.record("prm/score_mean", score)
        self.logger.record("prm/gap", score - float(np.mean([e.success for e in episodes])))

    def _improve(
        self, episodes: Sequence[Episode], table: QTable, successes: Sequence[tuple[Episode, int]]
    ) -> DPOStats:
        """Stage 3: online DPO with the previous policy as reference."""
        self.lm.copy_adapter(POLICY, REFERENCE)
        evidence = None
        states: list[tuple[Episode, Sequence[int]]] = [(e, range(len(e.turns))) for e in episodes]
        if self.prior_visits is not None:
            evidence = Evidence(table, self.prior_visits)
            states = []
            for e in episodes:
                keys = state_keys(e.task, e.turns)
                tried = [t for t, key in enumerate(keys) if len(table.visits.get(key, {})) > 1]
                if tried:
                    states.append((e, tried))

        def on_step(share: float, _: DPOStats) -> bool:
            self._stage("improve policy", share)
            return True

        stats = train_online_dpo(
            self.lm,
            POLICY,
            REFERENCE,
            self.prm,
            self.policy.responder,
            states,
            evidence=evidence,
            successes=successes,
            imitation_coef=self.imitation_coef,
            learning_rate=float(self.learning_rate),
            n_updates=self.n_updates,
            batch_size=self.batch_size,
            turns_per_episode=self.turns_per_episode,
            n_samples=self.n_samples,
            beta=self.beta,
            margin=self.margin,
            temperature=1.0,
            target_kl=self.target_kl,
            max_grad_norm=self.max_grad_norm,
            rng=np.random.default_rng([self._seed_base(), self.iteration, 7]),
            on_step=on_step,
        )
        self._n_updates += len(stats.losses)
        last = slice(-20, None)
        for key, values in (
            ("loss", stats.losses),
            ("accuracy", stats.accuracies),
            ("kl", stats.kl),
            ("gap", stats.gaps),
        ):
            self.logger.record(f"train/{key}", float(np.mean(values[last])) if values else float("nan"))
        self.logger.record("train/prm_score", float(np.mean(stats.scores[last])) if stats.scores else float("nan"))
        self.logger.record("train/n_pairs", stats.n_pairs)
        self.logger.record("train/share_same_command", stats.n_same / max(1, stats.n_states))
        self.logger.record("train/share_untried", stats.n_untried / max(1, stats.n_states))
        self.logger.record("train/share_under_margin", stats.n_close / max(1, stats.n_states))
        return stats

    def _validate(self, games: Sequence[int]) -> float:
        """Success on the held-out train games; remembers the best policy."""
        if not games:
            return float("nan")
        venv = self._venv()
        tasks = [RolloutTask({"game": g}, (self._seed_base(), 8, i)) for i, g in enumerate(games)]
        done = 0

        def on_episode(_: Episode) -> None:
            nonlocal done
            done += 1
            self._stage("validate", done / len(tasks))

        actor = self.policy.actor(venv.num_envs, temperature=self.temperature)
        with self.lm.merged(POLICY):
            rollouts = collect(actor, venv, tasks, on_episode=on_episode)
        assert rollouts is not None
        success = float(np.mean([r.episode.success for r in rollouts]))
        self.logger.record("eval/validation_success_rate", success)
        if success > self.best_success:
            self.best_success, self.best_iteration = success, self.iteration + (1 if self._best is not None else 0)
            self._best = {
                "policy": self.lm.adapter_state(POLICY),
                "prm": self.lm.adapter_state(PRM),
                "head": self.prm.head_state(),
            }
        return success

    # ------------------------------------------------------------------ acting and saving
    def best_of_n(self, n_rows: int, n: int, *, temperature: float | None = None) -> BestOfNActor:
        """An actor that draws ``n`` commands and executes the one that the PRM scores highest.

        Args:
            n_rows: how many episodes run at once.
            n: candidates a turn.
            temperature: at which they are drawn; the policy's own where ``None``.
        """
        chosen = self.temperature if temperature is None else temperature
        return BestOfNActor(
            self.policy.actor(n_rows, temperature=chosen), self.prm, n_rows, n, self.policy.cache_tokens
        )

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """``{"policy": ..., "prm": ...}``."""
        prm = {f"adapters.{PRM}.{k}": v for k, v in self.lm.adapter_state(PRM).items()}
        head = {f"head.{k}": v for k, v in self.prm.head_state().items()}
        return {**super().get_parameters(), "prm": {**prm, **head}}

    def _set_parameter_group(self, name: str, state: Mapping[str, torch.Tensor]) -> None:
        if name != "prm":
            super()._set_parameter_group(name, state)
            return
        mark = f"adapters.{PRM}."
        self.lm.load_adapter_state(PRM, {k[len(mark) :]: v for k, v in state.items() if k.startswith(mark)})
        self.prm.head.load_state_dict({k[5:]: v for k, v in state.items() if k.startswith("head.")})

    def _to_save(self) -> SavedModel:
        saved = super()._to_save()
        saved.adapters[PRM] = self.lm.adapter_state(PRM)
        saved.adapter_configs[PRM] = self.lm.adapter_config(PRM)
        saved.heads[PRM] = self.prm.head_state()
        return saved

    def _restore(self, saved: SavedModel) -> None:
        super()._restore(saved)
        self.lm.load_adapter_state(PRM, saved.adapters[PRM])
        self.prm.head.load_state_dict(saved.heads[PRM])
