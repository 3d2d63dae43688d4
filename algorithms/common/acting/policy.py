"""The policy that every algorithm trains: a language model with an adapter that chooses admissible commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule

from agentprm_gym.checks import check_float, check_int
from agentprm_gym.episodes import Turn
from agentprm_gym.llm.model import DEFAULT_LORA, AdapterMismatchError, LanguageModel
from agentprm_gym.llm.saving import SavedModel, check_base
from agentprm_gym.llm.scoring import Responder
from agentprm_gym.observations import split_commands
from agentprm_gym.readers import ParseFunction, make_reader
from algorithms.common.acting.actors import Actor, PolicyActor, Request
from algorithms.common.acting.exploration import Exploration

#: Name of the policy's adapter.
POLICY = "policy"
#: The keys of an observation.
KEYS = ("task", "feedback", "admissible_commands")

#: One running episode as ``predict`` carries it: the turns so far.
Transcript = list[Turn]


class ActingPolicy(Protocol):
    """What :func:`predict_commands` needs of a policy.

    Attributes:
        rng: where its dice come from.
    """

    rng: np.random.Generator

    def actor(self, n_rows: int, *, temperature: float | None = None, n_candidates: int = 1) -> Actor:
        """An actor for ``n_rows`` running episodes."""


def predict_commands(
    policy: ActingPolicy,
    observation: Mapping[str, Any],
    state: Sequence[Transcript] | None = None,
    episode_start: np.ndarray | None = None,
    deterministic: bool = False,
) -> tuple[Any, list[Transcript]]:
    """``predict`` for whatever has actors; see :meth:`LLMPolicy.predict`."""
    if isinstance(observation, tuple):
        raise ValueError(
            "predict() got a tuple: Gymnasium's reset() returns (observation, info), pass only the observation; "
            "an SB3 VecEnv returns just the observations"
        )
    if not isinstance(observation, Mapping) or not set(KEYS) <= set(observation):
        raise ValueError(f"predict() expects a mapping with the keys {list(KEYS)}, got {type(observation).__name__}")
    single = np.ndim(observation["task"]) == 0
    columns = [[str(observation[k])] if single else [str(x) for x in observation[k]] for k in KEYS]
    n = len(columns[0])
    starts = [state is None] * n if episode_start is None else [bool(x) for x in np.atleast_1d(episode_start)]
    old: Sequence[Transcript] = [[] for _ in range(n)] if state is None else state
    if not len(old) == len(starts) == n:
        raise ValueError(f"predict() got {n} observations, {len(old)} states and {len(starts)} episode starts")
    actor = policy.actor(n, temperature=0.0 if deterministic else None)
    requests, histories = [], []
    for i, (task, feedback, commands) in enumerate(zip(*columns, strict=True)):
        history = [] if starts[i] else list(old[i])
        actor.start(i, task, history)
        histories.append(history)
        requests.append(Request(i, task, feedback, split_commands(commands), policy.rng))
    new_state: list[Transcript] = []
    commands_out = np.full(n, "", dtype=object)
    for i, (request, answer) in enumerate(zip(requests, actor.answer(requests), strict=True)):
        commands_out[i] = answer.command
        new_state.append([*histories[i], answer.turn(request)])
    return (commands_out[0] if single else commands_out), new_state


class LLMPolicy(BasePolicy):
    """Reads a transcript, answers with a command, perhaps with a reason before it.

    There are three ways to act, ``action_mode`` (see :mod:`agentprm_gym.llm.scoring`): ``"constrained"`` samples the command
    token by token among the admissible ones, ``"score"`` by the log-probabilities of whole commands, and ``"generate"``
    writes freely. ``state_dict`` holds the adapter only; the base model is rebuilt from its name.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule | None = None,
        model: str = "tiny",
        lora: Mapping[str, Any] | None = DEFAULT_LORA,
        template: str | None = None,
        dtype: str = "auto",
        attn_implementation: str = "sdpa",
        trust_remote_code: bool = False,
        quantization: str | None = None,
        max_context: int | None = None,
        action_mode: str = "constrained",
        reason: bool = False,
        max_new_tokens: int = 64,
        score_normalization: str = "sum",
        cache_tokens: int | None = None,
        temperature: float = 1.0,
        device: str | torch.device = "cpu",
        base: LanguageModel | None = None,
        parse: str | ParseFunction | None = None,
        explore: Exploration | Mapping[str, Any] | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Load the base model and put a fresh adapter on it.

        Args:
            observation_space: ``Dict`` with the keys task, feedback and admissible_commands.
            action_space: a text space.
            lr_schedule: unused; SB3 passes it.
            model: bundled alias, path or hub id of the base model.
            lora: keyword arguments of ``peft.LoraConfig``; ``None``: full fine-tuning, all weights of the base are trained.
            template: prompt template: ``"compact"``, ``"full"``, ``"react"``, or a ``.jinja`` file; by default what suits the
                model.
            dtype: of the base's weights.
            attn_implementation: ``"sdpa"`` or ``"eager"``.
            trust_remote_code: run code from the model's repository.
            quantization: ``"4bit"`` loads the base in 4 bits.
            max_context: use no more than so many tokens of context; longer transcripts are shortened.
            action_mode: ``"constrained"``, ``"generate"`` or ``"score"``.
            reason: write a reason before the command, and keep reasons in the transcript.
            max_new_tokens: longest free text: a reason, or a whole response with ``"generate"``.
            score_normalization: with ``"score"``: ``"sum"``, or per ``"token"`` or ``"word"``.
            cache_tokens: budget of the key-value cache while acting, in tokens over all episodes.
            temperature: at which commands are sampled; ``deterministic=True`` takes the most likely one.
            device: torch device.
            base: a loaded model to share in place of loading one.
            parse: how responses are read that were written freely as a whole (``"generate"``), see
                :func:`agentprm_gym.readers.make_reader`; ``None``: as the template says. A save holds a name or a regular
                expression; give a function a name with :func:`agentprm_gym.register_reader`.
            explore: how training episodes are explored, options of
                :class:`~algorithms.common.acting.exploration.Exploration`; ``None``: they are not.
            gradient_checkpointing: keep the inputs of layers only while training: slower, in a fraction of the memory.

        Raises:
            ValueError: if the observation space lacks a key, the temperature is negative or not finite, ``parse`` is
                unknown, or an option of ``explore`` does not fit.
        """
        super().__init__(observation_space, action_space)
        have = list(observation_space.spaces) if isinstance(observation_space, spaces.Dict) else []
        if not set(KEYS) <= set(have):
            raise ValueError(
                f"an LLM policy needs a Dict observation with the keys {list(KEYS)}, got {observation_space}; "
                "wrap your environment so that it gives them (see TextIdentity-v0 for the smallest example)"
            )
        self.temperature = check_float("temperature", temperature, 0.0)  # 0 is greedy
        self.explore = Exploration.of(explore)
        # A save names its reader, and loading somebody else's save must not run code.
        self.reader = None if parse is None else make_reader(parse, may_import=False)
        self.lm = base or LanguageModel.load(
            model,
            device=device,
            dtype=dtype,
            attn_implementation=attn_implementation,
            template=template,
            reasons=reason,
            max_context=max_context,
            quantization=quantization,
            trust_remote_code=trust_remote_code,
            gradient_checkpointing=gradient_checkpointing,
        )
        self.responder = Responder(self.lm, action_mode, score_normalization, max_new_tokens)
        self.cache_tokens = None if cache_tokens is None else check_int("cache_tokens", cache_tokens, 0)
        self.lm.add_adapter(POLICY, lora)
        self.rng = np.random.default_rng(0)

    @property
    def device(self) -> torch.device:
        """Where the base model is."""
        return self.lm.device

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The adapter's tensors, under ``adapters.<name>.``."""
        return {f"adapters.{POLICY}.{k}": v for k, v in self.lm.adapter_state(POLICY).items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Set the adapter's tensors.

        Raises:
            AdapterMismatchError: if they belong to a model of another shape.
        """
        mark = f"adapters.{POLICY}."
        wrong = [k for k in state_dict if not k.startswith(mark)]
        if wrong and strict:
            raise AdapterMismatchError(f"unexpected tensors in the policy's state: {wrong[:3]}")
        self.lm.load_adapter_state(POLICY, {k[len(mark) :]: v for k, v in state_dict.items() if k.startswith(mark)})

    def load_saved(self, saved: SavedModel, what: str) -> None:
        """Take the adapter out of a save.

        Raises:
            AdapterMismatchError: if the save was made on another base model.
        """
        check_base(saved, self.lm.name, self.lm.fingerprint, what)
        self.lm.load_adapter_state(POLICY, saved.adapters[POLICY])

    def actor(self, n_rows: int, *, temperature: float | None = None, n_candidates: int = 1) -> PolicyActor:
        """An actor with caches for ``n_rows`` running episodes."""
        chosen = self.temperature if temperature is None else temperature
        return PolicyActor(
            self.responder,
            POLICY,
            n_rows,
            temperature=chosen,
            n_candidates=n_candidates,
            cache_tokens=self.cache_tokens,
            reader=self.reader,
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Not used: acting goes through :meth:`predict` and actors, training through ``episode_log_probs``."""
        raise TypeError(
            "LLMPolicy has no tensor forward; call predict(), or algorithms.common.acting.rollouts.collect()"
        )

    def _predict(self, observation: Any, deterministic: bool = False) -> torch.Tensor:
        raise TypeError("LLMPolicy answers with text; call predict()")

    def predict(  # type: ignore[override]  # observations are text, and the state holds transcripts
        self,
        observation: Mapping[str, Any],
        state: Sequence[Transcript] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[Any, list[Transcript]]:
        """Choose a command for one observation or a batch.

        Args:
            observation: ``{"task", "feedback", "admissible_commands"}``, each a string or an array of n strings.
            state: what the previous call returned; it holds the transcripts.
            episode_start: (n,) bool, true where an episode begins and its transcript is dropped.
            deterministic: take the most likely command.

        Returns:
            The command (a ``str``), or an object array of n of them, and the new state.

        Raises:
            ValueError: for a Gymnasium ``(observation, info)`` tuple, missing keys or lengths that differ.
        """
        return predict_commands(self, observation, state, episode_start, deterministic)
