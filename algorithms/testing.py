"""Contract tests for algorithms of your own: Stable-Baselines3's surface on text, saves without pickle, one seed one result.

Each check raises an ``AssertionError`` that says what was expected and what was got; where a step of it fails by itself,
the algorithm's own error comes through. :func:`check_algorithm` runs them all; under pytest, parametrise over
:data:`ALGORITHM_CHECKS`, so that a failing one has a name, with one :class:`Subject`, which trains and saves once.
"""

from __future__ import annotations

import csv
import hashlib
import inspect
import io
import json
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.spaces import UnicodeText
from agentprm_gym.testing import expect

MakeModel = Callable[[Any], Any]


class Subject:
    """An algorithm that is checked; what several checks need is made once.

    Args:
        make_model: Makes a fresh model on an environment, always with the same seed, and so that an iteration takes a
            second: ``lambda env: SFT("tiny", env, demonstrations=demos, batch_size=8, seed=0)``.
        env: A vectorised environment of a registered id.
        load_kwargs: What :meth:`load` needs to go on learning because saves do not hold it, such as demonstrations.
    """

    def __init__(self, make_model: MakeModel, env: VecEnv, load_kwargs: Mapping[str, Any] | None = None) -> None:
        self.make_model, self.env, self.load_kwargs = make_model, env, dict(load_kwargs or {})

    def make(self) -> Any:
        """Make a fresh model."""
        return self.make_model(self.env)

    @cached_property
    def trained(self) -> Any:
        """A model that has learned for one iteration; to be left as it is."""
        return self.make().learn(1)

    @cached_property
    def algorithm(self) -> Any:
        """The algorithm's class."""
        return type(self.trained)

    @cached_property
    def saved(self) -> bytes:
        """The trained model's zip."""
        buffer = io.BytesIO()
        self.trained.save(buffer)
        return buffer.getvalue()

    def load(self, env: Any = None, **kwargs: Any) -> Any:
        """Load the zip."""
        return self.algorithm.load(io.BytesIO(self.saved), env=env, **{**self.load_kwargs, **kwargs})

    @cached_property
    def spec(self) -> gym.envs.registration.EnvSpec:
        """What one environment is made from."""
        # The innermost environment's: SB3's Monitor, which cannot be made again, is left out.
        return self.env.get_attr("unwrapped", indices=[0])[0].spec

    def vec_env(self, n_envs: int) -> VecEnv:
        """Make more of the environment, as Stable-Baselines3 makes them."""
        return make_vec_env(lambda: gym.make(self.spec), n_envs=n_envs, seed=0)

    @cached_property
    def observations(self) -> dict[str, np.ndarray]:
        """First observations, a batch of two."""
        observations: Any = self.vec_env(2).reset()
        return dict(observations)


class _OtherSpace(gym.ObservationWrapper[Any, Any, Any]):
    """An environment whose task is longer by a character."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        assert isinstance(env.observation_space, gym.spaces.Dict)
        texts = dict(env.observation_space.spaces)
        assert isinstance(texts["task"], UnicodeText)
        self.observation_space = gym.spaces.Dict({**texts, "task": UnicodeText(texts["task"].max_length + 1)})

    def observation(self, observation: Any) -> Any:
        return observation


class _Events(BaseCallback):
    """Writes down what it is told, and ends training after some steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.stop_after = stop_after
        self.names: list[str] = []
        self.n_at_start = -1

    def _on_training_start(self) -> None:
        self.names.append("training_start")
        self.n_at_start = self.model.num_timesteps

    def _on_rollout_start(self) -> None:
        self.names.append("rollout_start")

    def _on_step(self) -> bool:
        self.names.append("step")
        return self.stop_after is None or self.n_calls < self.stop_after

    def _on_rollout_end(self) -> None:
        self.names.append("rollout_end")

    def _on_training_end(self) -> None:
        self.names.append("training_end")


def _refused(what: str, kind: type[Exception], call: Callable[[], Any], *words: str) -> None:
    """Check that a call raises an error whose message holds some words."""
    try:
        call()
    except kind as error:
        missing = [word for word in words if word not in str(error)]
        expect(not missing, f"the error of {what} to say {missing}", str(error))
    except Exception as error:
        raise AssertionError(f"expected a {kind.__name__} from {what}, got {type(error).__name__}: {error}") from error
    else:
        raise AssertionError(f"expected a {kind.__name__} from {what}, got no error")


def _expect_same(expected: Mapping[str, Any], got: Mapping[str, Any], what: str) -> None:
    """Check that two results of get_parameters are equal, bit for bit."""
    groups = {name: sorted(state) for name, state in expected.items()}
    expect(groups == {name: sorted(state) for name, state in got.items()}, f"{what}: the tensors {groups}", "others")
    wrong = [f"{g}.{k}" for g, state in expected.items() for k in state if not torch.equal(state[k], got[g][k])]
    expect(not wrong, f"{what}: the same parameters", f"others in {wrong[:3]}")


def _quietly(call: Callable[[], Any]) -> str:
    """Call and return what was printed; progress bars warn of being new."""
    printed = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(printed), redirect_stderr(printed):
        warnings.simplefilter("ignore")
        call()
    return printed.getvalue()


# Learning ------------------------------------------------------------------------------------------------------------------


def check_signatures(subject: Subject) -> None:
    """It is an SB3 algorithm, and its methods take SB3's arguments in SB3's order."""
    expect(issubclass(subject.algorithm, BaseAlgorithm), "a subclass of SB3's BaseAlgorithm", subject.algorithm)
    for name in ("learn", "predict", "save", "load", "set_env", "get_parameters", "set_parameters", "set_random_seed"):
        theirs = list(inspect.signature(getattr(BaseAlgorithm, name)).parameters)
        ours = list(inspect.signature(getattr(subject.algorithm, name)).parameters)
        expect(ours[: len(theirs)] == theirs, f"{name}() to take {theirs}", ours)


def check_learn_returns_self(subject: Subject) -> None:
    """``learn`` returns the model and counts at least the turns that were asked for."""
    model = subject.make()
    result = model.learn(3)
    expect(result is model, "learn() to return the model itself", result)
    expect(model.num_timesteps >= 3, "num_timesteps of 3 or more after learn(3)", model.num_timesteps)


def check_counting(subject: Subject) -> None:
    """``reset_num_timesteps=False`` goes on counting, in that call's own number of turns; the default starts from 0."""
    model, events = subject.load(subject.env), _Events()
    before = model.num_timesteps
    model.learn(1, callback=events, reset_num_timesteps=False)
    expect(events.n_at_start == before, f"reset_num_timesteps=False to go on at {before}", events.n_at_start)
    expect(model.num_timesteps > before, f"more than {before} timesteps after going on", model.num_timesteps)
    model = subject.load(subject.env)
    model.learn(1, callback=events)
    expect(events.n_at_start == 0, "learn() to count from 0", events.n_at_start)


def check_events(subject: Subject) -> None:
    """Callbacks hear of start and end of training, of each rollout, and of steps; a function is a callback too."""
    events, told = _Events(), []

    def function(names: dict[str, Any], _: dict[str, Any]) -> bool:
        told.append(names)
        return True

    subject.make().learn(1, callback=events)
    names = events.names
    expect(names[:1] == ["training_start"], "on_training_start first", names[:3])
    expect(names[-1:] == ["training_end"], "on_training_end last", names[-3:])
    expect("step" in names, "on_step at least once", "never")
    starts, ends = names.count("rollout_start"), names.count("rollout_end")
    expect(starts == ends > 0, "as many on_rollout_end as on_rollout_start, and some", f"{ends} and {starts}")
    subject.make().learn(1, callback=function)
    expect(bool(told), "a function as callback to be called", "no call")
    for name in ("infos", "dones", "rewards"):
        expect(name in told[0], f"callbacks to find {name!r} in locals", f"only {sorted(told[0])}")


def check_early_stop(subject: Subject) -> None:
    """A callback that returns False ends training at once, and training's end is told."""
    model, events = subject.make(), _Events(stop_after=1)
    result = model.learn(10**6, callback=events)
    expect(result is model, "learn() to return the model also when it is stopped", result)
    expect(events.names.count("step") == 1, "no further step after on_step returned False", events.names)
    expect(events.names[-1] == "training_end", "on_training_end after an early stop", events.names)


def check_same_seed(subject: Subject) -> None:
    """The same seed gives the same parameters, bit for bit."""
    _expect_same(subject.trained.get_parameters(), subject.make().learn(1).get_parameters(), "with the same seed")


def check_unknown_policy(subject: Subject) -> None:
    """An unknown policy is refused, and the aliases are listed."""
    aliases = list(subject.algorithm.policy_aliases)
    expect(bool(aliases), "policy_aliases to name a policy", aliases)
    make = lambda: subject.algorithm("no-such-policy", subject.env)  # noqa: E731
    _refused("a policy 'no-such-policy'", ValueError, make, "no-such-policy", *aliases)


def check_learning_without_env(subject: Subject) -> None:
    """Learning without an environment says what to do."""
    _refused("learn() without an environment", ValueError, lambda: subject.load().learn(1), "set_env")


# Acting --------------------------------------------------------------------------------------------------------------------


def check_predict(subject: Subject) -> None:
    """One observation gives a text, a batch an array of them, and both the same; deterministic is deterministic."""
    batch = subject.observations
    actions, _ = subject.trained.predict(batch, deterministic=True)
    expect(np.shape(actions) == (2,), "actions of shape (2,) for two observations", np.shape(actions))
    for i in range(2):
        single = {key: column[i] for key, column in batch.items()}
        action, _ = subject.trained.predict(single, deterministic=True)
        expect(isinstance(action, str), "a str as the action for one observation", type(action).__name__)
        expect(action == actions[i], f"alone the action that it has in a batch, {actions[i]!r}", action)
        expect(action in subject.env.action_space, "an action in the action space", action)
    again, _ = subject.trained.predict(batch, deterministic=True)
    expect(list(again) == list(actions), f"the same deterministic actions again, {list(actions)}", list(again))


def check_predict_state(subject: Subject) -> None:
    """``state`` carries what came before until ``episode_start`` says that an episode begins."""
    batch, model = subject.observations, subject.trained
    fresh, _ = model.predict(batch, deterministic=True)
    _, state = model.predict(batch)
    begins = np.array([True, True])
    actions, state = model.predict(batch, state=state, episode_start=begins, deterministic=True)
    expect(
        list(actions) == list(fresh), f"with episode_start the actions of a fresh start, {list(fresh)}", list(actions)
    )
    _, state = model.predict(batch, state=state, episode_start=~begins, deterministic=True)
    actions, state = model.predict(batch, state=state, episode_start=np.array([False, True]), deterministic=True)
    expect(actions[1] == fresh[1], f"the action of a fresh start, {fresh[1]!r}, where one begins", actions[1])
    lengths = [len(transcript) for transcript in state]
    expect(lengths == [3, 1], "transcripts of 3 turns, and of 1 where an episode began", lengths)


def check_predict_refuses(subject: Subject) -> None:
    """What Gymnasium's ``reset`` returns is refused as an observation, with an explanation."""
    call = lambda: subject.trained.predict((subject.observations, {}))  # noqa: E731
    _refused("predict((observation, info))", ValueError, call, "tuple")


# Saving --------------------------------------------------------------------------------------------------------------------


def check_save_paths(subject: Subject) -> None:
    """A save is one file, named as SB3 names it, in folders that need not be there, or goes to a file object."""
    with tempfile.TemporaryDirectory() as folder:
        for name, expected in (("model", "model.zip"), ("model.zip", "model.zip"), ("best_0.5", "best_0.5")):
            place = Path(folder, name, "new")
            with warnings.catch_warnings():  # SB3 warns of folders that it makes
                warnings.simplefilter("ignore")
                subject.trained.save(place / name)
            files = sorted(path.name for path in place.iterdir())
            expect(files == [expected], f"save({name!r}) to write the file {expected!r} alone", files)
            _expect_loads(subject, place / name)
            _expect_loads(subject, str(place / name))
        with open(Path(folder, "open"), "w+b") as file:
            subject.trained.save(file)
            file.seek(0)
            _expect_loads(subject, file)
    _expect_loads(subject, io.BytesIO(subject.saved))


def _expect_loads(subject: Subject, path: Any) -> None:
    model, what = subject.algorithm.load(path), f"load({path if isinstance(path, (str, Path)) else 'a file object'})"
    _expect_same(subject.trained.get_parameters(), model.get_parameters(), what)


def check_load_without_env(subject: Subject) -> None:
    """Loaded without an environment, a model predicts what it predicted, and remembers how long it has learned."""
    model = subject.algorithm.load(io.BytesIO(subject.saved))
    expected = list(subject.trained.predict(subject.observations, deterministic=True)[0])
    got = list(model.predict(subject.observations, deterministic=True)[0])
    expect(got == expected, f"a loaded model to predict {expected}", got)
    n = subject.trained.num_timesteps
    expect(model.num_timesteps == n, f"a loaded model to have num_timesteps {n}", model.num_timesteps)
    expect(model.get_env() is None, "no environment where none was given", model.get_env())


def check_load_with_env(subject: Subject) -> None:
    """Loaded with an environment, a model goes on learning; one with other spaces is refused."""
    model = subject.load(subject.env)
    expect(model.get_env() is not None, "the environment that load() was given", "none")
    expect(model.learn(1).num_timesteps > 0, "a loaded model to learn", "no timestep")
    other = _OtherSpace(gym.make(subject.spec))
    _refused("load() with an environment of other spaces", ValueError, lambda: subject.load(other), "spaces")


def check_load_overrides(subject: Subject) -> None:
    """Arguments of ``load`` replace saved ones; other ``policy_kwargs`` are refused, but as ``custom_objects``."""
    rate = subject.trained.learning_rate / 2
    for how in ({"learning_rate": rate}, {"custom_objects": {"learning_rate": rate}}):
        got = subject.load(**how).learning_rate
        expect(got == rate, f"load({how}) to set learning_rate", got)
    kwargs = {**subject.trained.policy_kwargs, "temperature": 0.123}
    _refused("load() with other policy_kwargs", ValueError, lambda: subject.load(policy_kwargs=kwargs), "policy_kwargs")
    model = subject.load(custom_objects={"policy_kwargs": kwargs})
    expect(model.policy_kwargs == kwargs, f"custom_objects to set policy_kwargs {kwargs}", model.policy_kwargs)


def check_load_refuses(subject: Subject) -> None:
    """A missing file is named with its suffix, and what is no save is refused."""
    load = subject.algorithm.load
    with tempfile.TemporaryDirectory() as folder:
        _refused("load() of a missing file", FileNotFoundError, lambda: load(Path(folder, "gone")), "gone.zip")
        Path(folder, "text.zip").write_text("hello")
        _refused("load() of a text", ValueError, lambda: load(Path(folder, "text.zip")), "text.zip")


def check_save_contents(subject: Subject) -> None:
    """A save holds JSON and safetensors, no pickle and no weights of the base model."""
    with zipfile.ZipFile(io.BytesIO(subject.saved)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    weights = subject.trained.lm.base.state_dict()
    base = {_digest(weight) for key, weight in weights.items() if "lora_" not in key and weight.numel() > 1}
    for name, data in members.items():
        kind = name.rsplit(".", 1)[-1]
        expect(kind in ("json", "safetensors"), "only JSON and safetensors in a save, no pickle", name)
        if kind == "json":
            json.loads(data)
            continue
        for key, tensor in load_safetensors(data).items():
            expect(_digest(tensor) not in base, "no weights of the base model in a save", f"{key} in {name}")


def _digest(tensor: torch.Tensor) -> tuple[tuple[int, ...], bytes]:
    """A tensor's shape and bytes."""
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return tuple(tensor.shape), hashlib.sha256(data).digest()


# Environments and parameters -----------------------------------------------------------------------------------------------


def check_set_env(subject: Subject) -> None:
    """An environment can be exchanged for one with the same spaces."""
    model = subject.load()
    model.set_env(subject.env)
    expect(model.get_env() is subject.env, "get_env() to return what set_env() was given", model.get_env())
    expect(model.learn(1).num_timesteps > 0, "a model to learn in an environment that was set", "no timestep")
    other = _OtherSpace(gym.make(subject.spec))
    _refused("set_env() with other spaces", ValueError, lambda: model.set_env(other), "spaces")


def check_env_kinds(subject: Subject) -> None:
    """A single environment is wrapped, and what ``make_vec_env`` makes is taken."""
    model = subject.make_model(gym.make(subject.spec))
    expect(isinstance(model.get_env(), VecEnv), "a single environment to be wrapped in a VecEnv", model.get_env())
    expect(model.get_env().num_envs == 1, "one environment", model.get_env().num_envs)
    expect(model.learn(1).num_timesteps > 0, "a model to learn in a single environment", "no timestep")
    model = subject.make_model(subject.vec_env(2))
    expect(model.learn(1).num_timesteps > 0, "a model to learn in what make_vec_env made", "no timestep")


def check_parameters(subject: Subject) -> None:
    """Parameters can be read and set; names that are missing or unknown are refused."""
    parameters = subject.trained.get_parameters()
    expect("policy" in parameters, "get_parameters() to have 'policy'", sorted(parameters))
    changed = {group: {key: value + 1 for key, value in state.items()} for group, state in parameters.items()}
    model = subject.load()
    model.set_parameters(changed)
    _expect_same(changed, model.get_parameters(), "after set_parameters()")
    _refused("set_parameters() of no group", ValueError, lambda: model.set_parameters({}), "policy")
    unknown = {**parameters, "no-such-group": {}}
    _refused("set_parameters() of an unknown group", ValueError, lambda: model.set_parameters(unknown), "no-such-group")
    model.set_parameters({"policy": parameters["policy"]}, exact_match=False)
    _expect_same({"policy": parameters["policy"]}, {"policy": model.get_parameters()["policy"]}, "after setting a part")


# Stable-Baselines3's own tools ---------------------------------------------------------------------------------------------


def check_evaluate_policy(subject: Subject) -> None:
    """SB3's ``evaluate_policy`` runs."""
    try:
        rewards, lengths = evaluate_policy(
            subject.trained, subject.vec_env(2), n_eval_episodes=3, return_episode_rewards=True
        )
    except Exception as error:
        raise AssertionError(f"expected evaluate_policy to run, got {type(error).__name__}: {error}") from error
    assert isinstance(rewards, list) and isinstance(lengths, list)
    expect(len(rewards) == len(lengths) == 3, "rewards and lengths of 3 episodes", f"{rewards}, {lengths}")


def check_eval_callback(subject: Subject) -> None:
    """SB3's ``EvalCallback`` saves the best model, and ``StopTrainingOnRewardThreshold`` in it ends training."""
    with tempfile.TemporaryDirectory() as folder:
        stop = StopTrainingOnRewardThreshold(reward_threshold=-1e9)
        callback = EvalCallback(
            subject.vec_env(2),
            callback_on_new_best=stop,
            n_eval_episodes=2,
            eval_freq=1,
            best_model_save_path=folder,
            log_path=folder,
            verbose=0,
        )
        model = subject.make()
        with warnings.catch_warnings():  # of two environments that are not of one type
            warnings.simplefilter("ignore")
            model.learn(10**6, callback=callback)
        expect(callback.n_calls == 1, "training to end at the first evaluation", f"{callback.n_calls} steps")
        files = sorted(path.name for path in Path(folder).iterdir())
        expect(files == ["best_model.zip", "evaluations.npz"], "best_model.zip and evaluations.npz", files)
        subject.algorithm.load(Path(folder, "best_model"))


def check_checkpoint_callback(subject: Subject) -> None:
    """SB3's ``CheckpointCallback`` writes files that load."""
    with tempfile.TemporaryDirectory() as folder:
        subject.make().learn(1, callback=[CheckpointCallback(1, folder, name_prefix="it"), _Events(stop_after=2)])
        files = sorted(Path(folder).glob("it_*_steps.zip"))
        expect(len(files) > 0, "files it_<n>_steps.zip", sorted(path.name for path in Path(folder).iterdir()))
        model = subject.algorithm.load(files[0])
        expect(
            f"it_{model.num_timesteps}_steps.zip" == files[0].name,
            f"num_timesteps of {files[0].name}",
            model.num_timesteps,
        )


def check_max_episodes_callback(subject: Subject) -> None:
    """SB3's ``StopTrainingOnMaxEpisodes`` runs, and ends training where episodes are played."""
    callback = StopTrainingOnMaxEpisodes(max_episodes=1)
    model = subject.make()
    model.learn(1, callback=callback)
    expect(callback.n_calls > 0, "the callback to be asked", "no call")
    if callback.n_episodes:
        n_envs = subject.env.num_envs
        expect(callback.n_episodes <= 2 * n_envs, "training to end after the first episodes", callback.n_episodes)


def check_every_n_timesteps(subject: Subject) -> None:
    """SB3's ``EveryNTimesteps`` triggers."""
    events = _Events()
    subject.make().learn(1, callback=EveryNTimesteps(n_steps=1, callback=events))
    expect("step" in events.names, "EveryNTimesteps(1) to trigger", "nothing")


def check_progress_bar(subject: Subject) -> None:
    """``progress_bar=True`` runs SB3's ``ProgressBarCallback``."""
    model = subject.make()
    _quietly(lambda: model.learn(1, progress_bar=True))
    expect(model.num_timesteps > 0, "a model to learn behind a progress bar", "no timestep")


def check_logger(subject: Subject) -> None:
    """What SB3's ``configure`` makes is kept and written to: the canonical keys in every format."""
    with tempfile.TemporaryDirectory() as folder:
        model = subject.make()

        def learn() -> None:
            logger = configure(folder, ["stdout", "csv", "json", "tensorboard"])
            model.set_logger(logger)
            model.learn(1)
            expect(model.logger is logger, "the logger that set_logger() was given", model.logger)
            logger.close()

        printed = _quietly(learn)
        with open(Path(folder, "progress.csv"), newline="") as file:
            rows = list(csv.DictReader(file))
        lines = [json.loads(line) for line in Path(folder, "progress.json").read_text().splitlines()]
        events = list(Path(folder).glob("events.out.tfevents.*"))
        expect(bool(rows) and bool(lines), "rows in progress.csv and progress.json", f"{len(rows)} and {len(lines)}")
        for key in ("time/iterations", "time/fps", "time/total_timesteps"):
            expect(key in rows[-1], f"{key} in progress.csv", sorted(rows[-1]))
            expect(key in lines[-1], f"{key} in progress.json", sorted(lines[-1]))
        expect(any(key.startswith("train/") for key in lines[-1]), "train/* in the log", sorted(lines[-1]))
        expect(lines[-1]["time/total_timesteps"] == model.num_timesteps, "time/total_timesteps", lines[-1])
        expect("total_timesteps" in printed, "a table on stdout", printed[:200])
        expect(len(events) == 1, "one file for TensorBoard", events)


def check_tensorboard_log(subject: Subject) -> None:
    """``tensorboard_log`` holds a run for each ``learn``, named after the algorithm, or after ``tb_log_name``."""
    with tempfile.TemporaryDirectory() as folder:
        model = subject.make()
        model.tensorboard_log = folder
        model.learn(1)
        model.logger.close()
        model = subject.load(subject.env)
        model.tensorboard_log = folder
        model.learn(1, tb_log_name="other")
        model.logger.close()
        names = sorted(path.name for path in Path(folder).iterdir())
        expected = sorted([f"{subject.algorithm.__name__}_1", "other_1"])
        expect(names == expected, f"the runs {expected}", names)


ALGORITHM_CHECKS: tuple[Callable[[Subject], None], ...] = (
    check_signatures,
    check_learn_returns_self,
    check_counting,
    check_events,
    check_early_stop,
    check_same_seed,
    check_unknown_policy,
    check_learning_without_env,
    check_predict,
    check_predict_state,
    check_predict_refuses,
    check_save_paths,
    check_load_without_env,
    check_load_with_env,
    check_load_overrides,
    check_load_refuses,
    check_save_contents,
    check_set_env,
    check_env_kinds,
    check_parameters,
    check_evaluate_policy,
    check_eval_callback,
    check_checkpoint_callback,
    check_max_episodes_callback,
    check_every_n_timesteps,
    check_progress_bar,
    check_logger,
    check_tensorboard_log,
)


def check_algorithm(
    make_model: MakeModel,
    env: VecEnv,
    load_kwargs: Mapping[str, Any] | None = None,
    checks: Sequence[Callable[[Subject], None]] = ALGORITHM_CHECKS,
) -> None:
    """Check that an algorithm keeps the contract of the algorithms here.

    Args:
        make_model: See :class:`Subject`.
        env: See :class:`Subject`.
        load_kwargs: See :class:`Subject`.
        checks: Which checks to run.

    Raises:
        AssertionError: It does not; the message says what was expected and what was got.
    """
    subject = Subject(make_model, env, load_kwargs)
    for check in checks:
        check(subject)
