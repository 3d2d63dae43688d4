"""Saves and checkpoints of an algorithm: what they hold, and how a model comes back from them."""

from __future__ import annotations

import inspect
import os
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, TypeVar

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv

import agentprm_gym
from agentprm_gym.llm.model import LanguageModel, lora_settings
from agentprm_gym.llm.prompts import TEMPLATES
from agentprm_gym.llm.saving import SavedModel, base_name, check_base, read_save, write_save
from algorithms.common.acting.policy import POLICY, LLMPolicy
from algorithms.common.shell.checkpoints import (
    check_environment,
    describe_environment,
    read_checkpoint,
    state_path,
    tidy,
    write_checkpoint,
)
from algorithms.common.shell.settings import plain_settings, portable, space_from_json, space_to_json

SelfSaved = TypeVar("SelfSaved", bound="SavedAlgorithm")

#: Attributes of every algorithm that a save carries beside the constructor's arguments.
_COUNTERS = ("num_timesteps", "_total_timesteps", "_episode_num", "_n_updates", "_num_timesteps_at_start")


class SavedAlgorithm(BaseAlgorithm):
    """The saving half of :class:`~algorithms.common.shell.base.LLMAlgorithm`.

    Attributes:
        checkpoint_dir: folder into which ``learn`` writes a checkpoint after every stage or iteration, for :meth:`resume` to
            go on from; set it before the first ``learn``. ``None``: none is written.
    """

    policy: LLMPolicy
    #: Constructor arguments whose values are attributes of another name.
    setting_attributes: ClassVar[dict[str, str]] = {
        "n_envs": "n_envs_wanted",
        "stats_window_size": "_stats_window_size",
    }
    iteration: int
    total_tokens: int
    checkpoint_dir: Path | None
    # The state that a resumed run takes over when it learns, until then.
    _resumed: dict[str, Any] | None

    @property
    def lm(self) -> LanguageModel:
        """The language model under the policy."""
        return self.policy.lm

    @classmethod
    def constructor_names(cls) -> list[str]:
        """Names of the constructor's arguments, those included that go on to base classes as keywords."""
        names: list[str] = []
        for base in cls.__mro__[: cls.__mro__.index(SavedAlgorithm)]:
            if "__init__" in vars(base):
                parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
                kinds = [p.kind for p in parameters]
                names += [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
                if inspect.Parameter.VAR_KEYWORD not in kinds:
                    break  # it hands nothing on that it does not name
        return [name for name in dict.fromkeys(names) if name != "self"]

    def _own_settings(self) -> dict[str, Any]:
        """The constructor's arguments, read back from the attributes of the same names."""
        skip = {"policy", "env", "device", "_init_setup_model", "demonstrations", "policy_kwargs"}
        attributes = {
            name: self.setting_attributes.get(name, name) for name in self.constructor_names() if name not in skip
        }
        for name, attribute in attributes.items():
            if not hasattr(self, attribute):
                raise TypeError(
                    f"{type(self).__name__} takes {name}= but does not keep it: set self.{attribute} before super().__init__, "
                    "so that a save can hold it"
                )
        return {name: getattr(self, attribute) for name, attribute in attributes.items()}

    def _constructor_data(self) -> dict[str, Any]:
        """The constructor's arguments as JSON types, as a save holds them."""
        data = {name: plain_settings(value, name) for name, value in self._own_settings().items()}
        # A template file may be gone when the save is loaded, or say something else.
        kwargs = dict(self.policy_kwargs)
        if kwargs.get("template") not in (None, *TEMPLATES):
            kwargs["template"] = self.lm.prompt.source
        return {**data, "policy_kwargs": portable(kwargs)}

    def _to_save(self) -> SavedModel:
        """Everything a save holds; algorithms with more adapters or heads add theirs."""
        lm = self.lm
        manifest = {
            "class": type(self).__name__,
            "agentprm_gym": agentprm_gym.__version__,
            "base": lm.identity,
            "data": self._constructor_data(),
            "counters": {name: getattr(self, name) for name in (*_COUNTERS, "iteration", "total_tokens")},
            "spaces": {
                "observation": space_to_json(self.observation_space),
                "action": space_to_json(self.action_space),
            },
        }
        return SavedModel(manifest, {POLICY: lm.adapter_state(POLICY)}, {POLICY: lm.adapter_config(POLICY)})

    def _restore(self, saved: SavedModel) -> None:
        """Take over what :meth:`_to_save` wrote."""
        self.lm.load_adapter_state(POLICY, saved.adapters[POLICY])

    def save(
        self,
        path: str | os.PathLike[str] | BinaryIO,  # type: ignore[override]
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save to one zip.

        Args:
            path: a path (``.zip`` is added where it has no suffix) or an open binary file.
            exclude: accepted as SB3 has it, and ignored: a save holds a fixed set of things.
            include: accepted and ignored, too.
        """
        write_save(path, self._to_save())

    @classmethod
    def load(  # type: ignore[override]
        cls: type[SelfSaved],
        path: str | os.PathLike[str] | BinaryIO,
        env: GymEnv | str | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfSaved:
        """Load a save; without ``env`` the model can only predict.

        Args:
            path: what :meth:`save` wrote.
            env: environment (or its id) to go on training in; its spaces must equal the saved ones.
            device: torch device.
            custom_objects: values that replace saved ones, as ``kwargs`` do.
            print_system_info: print versions, those of the save included.
            force_reset: reset the environment before the next ``learn``.
            kwargs: constructor arguments to override; and ``base``, folder or hub id of the base model, where it is not where
                it was (its weights must be the same).

        Raises:
            FileNotFoundError: if there is no such file, or its base model cannot be loaded.
            ValueError: if it was saved by another class, or on another base model, or the spaces differ.
        """
        saved, base = read_save(path), kwargs.pop("base", None)
        manifest = saved.manifest
        if manifest["class"] != cls.__name__:
            raise ValueError(
                f"{path} was saved by {manifest['class']}, not by {cls.__name__}: use "
                f"algorithms.{manifest['class']}.load(), or pass the path as policy= to start a new {cls.__name__} "
                "from its policy"
            )
        if print_system_info:
            print(f"saved with agentprm_gym {manifest['agentprm_gym']}, base {manifest['base']}")
        settings = cls._current_settings(manifest["data"], str(path))
        data = {**settings, "policy_kwargs": saved.policy_kwargs, **(custom_objects or {}), **kwargs}
        if "policy_kwargs" in kwargs and portable(kwargs["policy_kwargs"]) != saved.policy_kwargs:
            raise ValueError(
                f"the specified policy_kwargs {kwargs['policy_kwargs']} do not equal the saved ones "
                f"{saved.policy_kwargs}; change them with custom_objects={{'policy_kwargs': ...}}"
            )
        if base is not None:
            data["policy_kwargs"] = {**data["policy_kwargs"], "model": os.fspath(base)}
        elif data["policy_kwargs"].get("model") in (None, manifest["base"]["name"]):
            base_name(saved, str(path))
        model = cls("LLMPolicy", env, device=device, _init_setup_model=False, **data)  # type: ignore[call-arg]
        observation_space = space_from_json(manifest["spaces"]["observation"])
        action_space = space_from_json(manifest["spaces"]["action"])
        if env is None:
            model.observation_space, model.action_space, model.n_envs = observation_space, action_space, 1
        elif model.observation_space != observation_space:
            raise ValueError(f"Observation spaces do not match: {observation_space} != {model.observation_space}")
        elif model.action_space != action_space:
            raise ValueError(f"Action spaces do not match: {action_space} != {model.action_space}")
        try:
            model._setup_model()
        except OSError as error:
            name = data["policy_kwargs"].get("model", manifest["base"]["name"])
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise FileNotFoundError(
                f"{path} was made on the base model {name!r}, which cannot be loaded here ({reason}): pass base= with the "
                "folder or hub id where it is now"
            ) from error
        check_base(saved, model.lm.name, model.lm.fingerprint, str(path))
        for name, value in manifest["counters"].items():
            setattr(model, name, value)
        model._restore(saved)
        return model

    @classmethod
    def _current_settings(cls, settings: Mapping[str, Any], path: str) -> dict[str, Any]:
        """Constructor arguments of a save, in the names of this version.

        Raises:
            ValueError: the save was made with something that this version does not have; the message says what to do.
        """
        return dict(settings)

    # ------------------------------------------------------------------ checkpoints
    def write_checkpoint(self, gathered: Collection[Path] = ()) -> None:
        """Write a checkpoint, where one is wanted.

        Args:
            gathered: folders of played episodes that belong to it; others are removed.
        """
        if self.checkpoint_dir is None:
            return
        saved, lm = self._to_save(), self.lm
        for name in set(lm.adapters) - set(saved.adapters):
            saved.adapters[name], saved.adapter_configs[name] = lm.adapter_state(name), lm.adapter_config(name)
        write_checkpoint(self.checkpoint_dir, saved, self._running_state(), gathered)

    def _running_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside a save: tensors and plain values, nested; algorithms with more add theirs."""
        logger = self.logger
        # Recorded since the last dump. Texts and histograms are for looking at and may be missing once.
        records = {k: v for k, v in logger.name_to_value.items() if isinstance(v, (bool, int, float, np.number))}
        return {
            "episodes": [dict(e) for e in self.ep_info_buffer or []],
            "successes": [bool(s) for s in self.ep_success_buffer or []],
            "records": {k: (v, logger.name_to_excluded.get(k)) for k, v in records.items()},
            "seconds": (time.time_ns() - self.start_time) / 1e9,
            "timesteps_at_start": self._num_timesteps_at_start,
            "policy_rng": self.policy.rng.bit_generator.state,
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "environment": describe_environment(self.env) if self.env is not None else {},
        }

    def _restore_running_state(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`_running_state` told; ``checkpoint_dir`` is set."""
        size = max(self._stats_window_size, len(state["episodes"]))
        self.ep_info_buffer = deque(state["episodes"], maxlen=size)
        self.ep_success_buffer = deque(state["successes"], maxlen=size)
        self.policy.rng.bit_generator.state = state["policy_rng"]
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] and torch.cuda.device_count() == len(state["cuda_rng"]):
            torch.cuda.set_rng_state_all(state["cuda_rng"])

    def _go_on(self, state: Mapping[str, Any]) -> None:
        """Put clock, logger and schedule where they were, which ``_setup_learn`` has begun again."""
        self.start_time -= int(state["seconds"] * 1e9)
        self._num_timesteps_at_start = state["timesteps_at_start"]
        for key, (value, exclude) in state["records"].items():
            self.logger.record(key, value, exclude=exclude)
        self._update_current_progress_remaining(self.num_timesteps, max(1, self._total_timesteps))

    @classmethod
    def resume(
        cls: type[SelfSaved],
        folder: str | os.PathLike[str],
        env: GymEnv | str,
        device: torch.device | str = "auto",
        *,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> SelfSaved:
        """Take up a run that ended in the middle, for :meth:`learn` to go on with ``reset_num_timesteps=False``.

        On a CPU the result is that of a run that was never broken, bit for bit, optimizers included; what is lost says
        :mod:`algorithms.common.shell.checkpoints`.

        Args:
            folder: the ``checkpoint_dir`` of the run.
            env: an environment like the one it was begun with.
            device: torch device.
            trust_remote_code: run code from the base model's repository, as the policy's argument of the same name; a
                checkpoint does not say.
            kwargs: constructor arguments to override, and those that no save holds: ``demonstrations``, and
                ``tensorboard_log``, which is the folder ``tb`` beside the checkpoint where there is one.

        Raises:
            FileNotFoundError: if the folder holds no checkpoint.
            ValueError: as :meth:`load`; or the games, the step limit or the process reward of ``env`` are not those of the
                run.

        Example:
            >>> model = AgentPRM.resume("runs/agentprm", "ALFWorld-v0")  # doctest: +SKIP
            >>> model.learn(1_000_000, reset_num_timesteps=False).save("agentprm")  # doctest: +SKIP
        """
        saved, state = read_checkpoint(folder)
        # A save does not say where files are written; beside it, a run that logs has its curves.
        if (curves := Path(folder) / "tb").is_dir():
            kwargs.setdefault("tensorboard_log", str(curves))
        trusted = {"policy_kwargs": {**saved.policy_kwargs, "trust_remote_code": True}} if trust_remote_code else None
        model = cls.load(state_path(folder), env, device, trusted, **kwargs)
        if model.env is not None:
            check_environment(state.get("environment", {}), model.env, folder)
        model.checkpoint_dir = Path(folder)
        for name, tensors in saved.adapters.items():
            if name not in model.lm.adapters:
                model.lm.add_adapter(name, lora_settings(saved.adapter_configs[name]))
            model.lm.load_adapter_state(name, tensors)
        model._restore_running_state(state)
        model._resumed = state
        tidy(folder, state)
        return model

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """The trainable tensors: ``{"policy": ...}``."""
        return {"policy": self.policy.state_dict()}

    def set_parameters(  # type: ignore[override]
        self,
        load_path_or_dict: str | Mapping[str, Mapping[str, torch.Tensor]],
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Set tensors from :meth:`get_parameters` or from a save.

        Raises:
            ValueError: if names are missing or left over and ``exact_match`` is set, or a name is unknown.
        """
        if isinstance(load_path_or_dict, (str, os.PathLike)):
            saved = read_save(load_path_or_dict)
            check_base(saved, self.lm.name, self.lm.fingerprint, str(load_path_or_dict))
            self._restore(saved)
            return
        have, got = set(self.get_parameters()), set(load_path_or_dict)
        if got - have or (exact_match and got != have):
            raise ValueError(
                f"Names of parameters do not match agents' parameters: expected {sorted(have)}, got {sorted(got)}"
            )
        for name, state in load_path_or_dict.items():
            self._set_parameter_group(name, state)

    def _set_parameter_group(self, name: str, state: Mapping[str, torch.Tensor]) -> None:
        self.policy.load_state_dict(state)
