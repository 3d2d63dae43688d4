"""Every algorithm keeps the contract of `algorithms.testing`, and every check of a contract can fail."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import algorithms
from algorithms import SFT
from algorithms.registry import BUILT_IN, find_algorithm
from algorithms.testing import ALGORITHM_CHECKS, Subject, check_algorithm
from tests.algorithm_helpers import ALGORITHMS, SMALL_SFT, make_model, make_toy, not_saved
from tests.foreign_env import DoorEnv, make_doors

Check = Callable[[Subject], None]


#: They learn and are saved by the same code as GRPO.
LIKE_GRPO = ("RLOO", "REINFORCE", "GiGPO")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) if name in LIKE_GRPO else name for name in ALGORITHMS],
)
def subject(request: pytest.FixtureRequest, learner: str) -> Subject:
    algorithm, _ = ALGORITHMS[request.param]
    return Subject(lambda env: make_model(algorithm, learner, env), make_toy(4), not_saved(algorithm))


@pytest.mark.parametrize("check", ALGORITHM_CHECKS, ids=lambda check: check.__name__)
def test_algorithm(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.ci
@pytest.mark.parametrize("env", ["TextIdentity-v0", DoorEnv], ids=["id", "a stranger's"])
def test_environments_are_made_from_an_id_or_a_function(learner: str, env: Any) -> None:
    check_algorithm(lambda made: make_model(algorithms.GRPO, learner, made), env)


def test_other_environments_are_refused(learner: str) -> None:
    with pytest.raises(TypeError, match="registered id"):
        Subject(lambda env: make_model(SFT, learner, env), 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="pass a function"):
        Subject(lambda env: make_model(SFT, learner, env), make_doors())


def test_no_algorithm_is_left_out() -> None:
    assert set(ALGORITHMS) == {find_algorithm(name).__name__ for name in BUILT_IN} <= set(algorithms.__all__)


# That checks can fail: SFT, broken in one way each -------------------------------------------------
class OtherOrder(SFT):
    def predict(self, observation, deterministic=False, state=None, episode_start=None):  # type: ignore[override]
        return super().predict(observation, state, episode_start, deterministic)


class Mute(SFT):
    def learn(self, *args: Any, **kwargs: Any) -> Any:
        super().learn(*args, **kwargs)


class FromZero(SFT):
    def learn(self, *args: Any, reset_num_timesteps: bool = True, **kwargs: Any) -> Any:
        return super().learn(*args, **kwargs)


class Deaf(SFT):
    def learn(self, total_timesteps: int, callback: Any = None, **kwargs: Any) -> Any:
        return super().learn(total_timesteps, **kwargs)


class Stubborn(SFT):
    def _count_step(self, *args: Any) -> bool:
        super()._count_step(*args)
        return self.num_timesteps < 30


class Uncounted(SFT):
    def _count_step(self, callback: Any, names: dict[str, Any], n_running: int) -> bool:
        self.num_timesteps += n_running
        return True


class Unlabelled(SFT):
    def _count_step(self, callback: Any, names: dict[str, Any], n_running: int) -> bool:
        return super()._count_step(callback, {"infos": [], "rewards": []}, n_running)


class Unseeded(SFT):
    def set_random_seed(self, seed: int | None = None) -> None:
        self.action_space.seed(seed)
        super().set_random_seed(np.random.default_rng().integers(10**6).item())


class Unhelpful(SFT):
    @classmethod
    def check_policy_name(cls, policy_name: str) -> None:
        if policy_name == "no-such-policy":
            raise ValueError(f"{policy_name}?")


class Idle(SFT):
    def learn(self, *args: Any, **kwargs: Any) -> Any:
        return self if self.env is None else super().learn(*args, **kwargs)


class Plural(SFT):
    def predict(self, *args: Any, **kwargs: Any) -> Any:
        actions, state = super().predict(*args, **kwargs)
        return np.atleast_1d(actions), state


class Mindless(SFT):
    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        return super().predict(observation, None, None, deterministic)


class Clinging(SFT):
    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        return super().predict(observation, state, None, deterministic)


class Lenient(SFT):
    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        return super().predict(observation[0] if isinstance(observation, tuple) else observation, *args, **kwargs)


class Suffixed(SFT):
    def save(self, path: Any, *args: Any, **kwargs: Any) -> None:
        super().save(path if hasattr(path, "write") else f"{path}.zip")


class Newborn(SFT):
    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> Any:
        model = super().load(*args, **kwargs)
        model.num_timesteps = 0
        return model


class Homeless(SFT):
    @classmethod
    def load(cls, path: Any, env: Any = None, **kwargs: Any) -> Any:
        return super().load(path, **kwargs)


class Fixed(SFT):
    @classmethod
    def load(cls, path: Any, env: Any = None, **kwargs: Any) -> Any:
        return super().load(path, env)


class Vague(SFT):
    @classmethod
    def load(cls, path: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().load(path, *args, **kwargs)
        except OSError as error:
            raise FileNotFoundError("no such thing") from error


class Pickled(SFT):
    def save(self, path: Any, *args: Any, **kwargs: Any) -> None:
        super().save(path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("data.pkl", b"")


class Heavy(SFT):
    def _to_save(self) -> Any:
        weights = dict(self.lm.base.named_parameters())
        norm = next(weight.detach().clone() for name, weight in weights.items() if "norm" in name)
        return dataclasses.replace(super()._to_save(), heads={"extra": {"weight": norm}})


class Settled(SFT):
    def set_env(self, env: Any, force_reset: bool = True) -> None:
        super().set_env(make_toy(2), force_reset)


class Sociable(SFT):
    def learn(self, *args: Any, **kwargs: Any) -> Any:
        return self if self.n_envs == 1 else super().learn(*args, **kwargs)


class Rigid(SFT):
    def set_parameters(self, *args: Any, **kwargs: Any) -> None:
        pass


class Nameless(SFT):
    def save(self, path: Any, *args: Any, **kwargs: Any) -> None:
        if hasattr(path, "write"):
            super().save(path)


class Dark(SFT):
    def learn(self, *args: Any, progress_bar: bool = False, **kwargs: Any) -> Any:
        return self if progress_bar else super().learn(*args, **kwargs)


class Terse(SFT):
    def dump_logs(self) -> None:
        self.logger.dump(step=self.num_timesteps)


class Titled(SFT):
    def learn(self, *args: Any, tb_log_name: str = "", **kwargs: Any) -> Any:
        return super().learn(*args, tb_log_name="run", **kwargs)


class Stateless(SFT):
    """SB3's evaluation passes state and starts by name."""

    def predict(self, observation: Any, deterministic: bool = False) -> Any:  # type: ignore[override]
        return super().predict(observation, deterministic=deterministic)


#: What is broken, and what the check then says.
BROKEN: list[tuple[str, type, str]] = [
    ("check_signatures", OtherOrder, r"predict\(\) to take"),
    ("check_learn_returns_self", Mute, "return the model itself, got None"),
    ("check_counting", FromZero, "go on at 8, got 0"),
    ("check_events", Deaf, "on_training_start first"),
    ("check_events", Unlabelled, "'dones'"),
    ("check_early_stop", Stubborn, "no further step"),
    ("check_same_seed", Unseeded, "same parameters"),
    ("check_unknown_policy", Unhelpful, "tiny"),
    ("check_learning_without_env", Idle, "got no error"),
    ("check_predict", Plural, "a str as the action"),
    ("check_predict_state", Mindless, r"3 turns, and of 1 .*, got \[1, 1\]"),
    ("check_predict_state", Clinging, "fresh start|got \\[4, 4\\]"),
    ("check_predict_refuses", Lenient, "got no error"),
    ("check_save_paths", Suffixed, r"'best_0.5' alone|'model.zip' alone"),
    ("check_load_without_env", Newborn, "num_timesteps 8, got 0"),
    ("check_load_with_env", Homeless, "given, got none"),
    ("check_load_overrides", Fixed, "set learning_rate"),
    ("check_load_refuses", Vague, "gone.zip"),
    ("check_save_contents", Pickled, "no pickle, got data.pkl"),
    ("check_save_contents", Heavy, "no weights of the base model"),
    ("check_set_env", Settled, r"what set_env\(\) was given"),
    ("check_env_kinds", Sociable, "single environment"),
    ("check_parameters", Rigid, r"after set_parameters\(\): the same"),
    ("check_evaluate_policy", Stateless, "evaluate_policy to run"),
    ("check_eval_callback", Nameless, "best_model.zip"),
    ("check_checkpoint_callback", Nameless, "files it_<n>_steps.zip"),
    ("check_max_episodes_callback", Unlabelled, "dones"),
    ("check_every_n_timesteps", Uncounted, "to trigger"),
    ("check_progress_bar", Dark, "behind a progress bar"),
    ("check_logger", Terse, "time/iterations"),
    ("check_tensorboard_log", Titled, "the runs"),
]


@pytest.mark.parametrize(("name", "broken", "message"), BROKEN, ids=[f"{n}-{b.__name__}" for n, b, _ in BROKEN])
def test_a_check_can_fail(learner: str, name: str, broken: type, message: str) -> None:
    def make(env: Any) -> Any:
        return broken(learner, env, **SMALL_SFT, **not_saved(SFT))

    chosen = [check for check in ALGORITHM_CHECKS if check.__name__ == name]
    assert len(chosen) == 1
    with pytest.raises(AssertionError, match=message):
        check_algorithm(make, make_toy(4), not_saved(SFT), chosen)


def test_every_check_is_seen_to_fail() -> None:
    assert {name for name, *_ in BROKEN} == {check.__name__ for check in ALGORITHM_CHECKS}
