"""Contract tests for environments and process rewards of your own; for algorithms see :mod:`algorithms.testing`.

Each check raises an ``AssertionError`` that says what was expected and what was got. :func:`check_text_env` and
:func:`check_process_reward` run them all; under pytest, parametrise over the lists, so that a failing one has a name::

    @pytest.mark.parametrize("check", TEXT_ENV_CHECKS, ids=lambda check: check.__name__)
    def test_my_env(check):
        check(gym.make("Mine-v0"))
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from agentprm_gym.rewards import FACTS, ProcessReward, ScoredTurn, make_reward, needs_of
from agentprm_gym.spaces import UnicodeText
from agentprm_gym.wrappers import ProcessRewardWrapper

OBSERVATION_KEYS = ("task", "feedback", "admissible_commands")
RESET_INFO_KEYS = ("game_id", "split", "task_type", "game_source", "won")
STEP_INFO_KEYS = (*RESET_INFO_KEYS, "command", "reason", "is_admissible", "is_success")
#: None of them is a command of any game.
NONSENSE = ("", "no such command", "\n\n", "ACTION:", "ACTION: fly", "\u2603 \U0001f600", "x" * 5000, "%s{}\\", "\0")

TextEnv = gym.Env[Any, Any]


def expect(holds: bool, expected: str, got: object) -> None:
    """Raise an ``AssertionError`` unless something holds; unlike ``assert``, also under ``python -O``.

    Raises:
        AssertionError: It does not.
    """
    if not holds:
        raise AssertionError(f"expected {expected}, got {got if isinstance(got, str) else repr(got)}")


# Environments --------------------------------------------------------------------------------------------------------------


def check_spaces(env: TextEnv) -> None:
    """Observations are a Dict of texts under the three keys, an action is a text."""
    space = env.observation_space
    expect(isinstance(space, spaces.Dict), "the observation space to be a gymnasium.spaces.Dict", space)
    assert isinstance(space, spaces.Dict)
    missing = [key for key in OBSERVATION_KEYS if key not in space.spaces]
    expect(not missing, f"observations with the keys {list(OBSERVATION_KEYS)}", f"no {missing}")
    for key in OBSERVATION_KEYS:
        expect(isinstance(space[key], UnicodeText), f"a UnicodeText for {key!r}", space[key])
    expect(isinstance(env.action_space, UnicodeText), "a UnicodeText as the action space", env.action_space)


def check_gymnasium(env: TextEnv) -> None:
    """Gymnasium's own checker finds nothing to complain about, nothing to warn of included."""
    # It tries every render mode, and some print.
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("error", UserWarning)
        try:
            check_env(env.unwrapped, skip_render_check=env.unwrapped.spec is None)
        except Exception as error:
            raise AssertionError(
                f"expected gymnasium.utils.env_checker.check_env to pass, got {type(error).__name__}: {error}"
            ) from error


def check_reset_and_step(env: TextEnv) -> None:
    """What ``reset`` and ``step`` return has the right types and lies in the spaces."""
    result: Any = env.reset(seed=0)
    expect(isinstance(result, tuple) and len(result) == 2, "reset() to return (observation, info)", result)
    _check_observation(env, result[0], "reset()")
    expect(type(result[1]) is dict, "info as a dict", result[1])
    result = env.step(_commands(result[0])[0])
    expect(isinstance(result, tuple) and len(result) == 5, "step() to return five things", result)
    observation, reward, terminated, truncated, info = result
    _check_observation(env, observation, "step()")
    expect(isinstance(reward, (int, float)) and bool(np.isfinite(reward)), "a finite number as reward", reward)
    expect(isinstance(terminated, bool), "terminated as a bool", terminated)
    expect(isinstance(truncated, bool), "truncated as a bool", truncated)
    expect(type(info) is dict, "info as a dict", info)


def check_info_keys(env: TextEnv) -> None:
    """``info`` tells which game it is, what was read from the action, and whether the task is done."""
    observation, info = env.reset(seed=0)
    missing = [key for key in RESET_INFO_KEYS if key not in info]
    expect(not missing, f"the info of reset() to have {list(RESET_INFO_KEYS)}", f"no {missing}")
    expect(isinstance(info["game_id"], str) and info["game_id"] != "", 'a name in info["game_id"]', info["game_id"])
    command = _commands(observation)[0]
    *_, info = env.step(f"REASON: let me see\nACTION: {command}")
    missing = [key for key in STEP_INFO_KEYS if key not in info]
    expect(not missing, f"the info of step() to have {list(STEP_INFO_KEYS)}", f"no {missing}")
    for key in ("won", "is_admissible", "is_success"):
        expect(isinstance(info[key], (bool, np.bool_)), f'a bool in info["{key}"]', info[key])
    expect(bool(info["is_admissible"]), f"the first admissible command, {command!r}, to be admissible", "False")
    expect(
        info["command"] == command, f'info["command"] to be {command!r}, which stood behind ACTION:', info["command"]
    )
    expect(info["reason"] == "let me see", 'info["reason"] to be what stood before ACTION:', info["reason"])


def check_any_string(env: TextEnv) -> None:
    """No string is an error, and what is no admissible command is said to be none."""
    for action in (*NONSENSE, env.action_space.sample()):
        observation, _ = env.reset(seed=0)
        try:
            after, _, _, _, info = env.step(action)
        except Exception as error:
            raise AssertionError(
                f"expected step({_short(action)}) to raise nothing, got {type(error).__name__}: {error}"
            ) from error
        _check_observation(env, after, f"step({_short(action)})")
        if action in NONSENSE and action.strip() not in _commands(observation):
            expect(not info["is_admissible"], f"{_short(action)} not to be admissible", "True")


def check_responses(env: TextEnv) -> None:
    """A whole response does what its command does."""
    observation, _ = env.reset(seed=0)
    for command in _commands(observation)[:12]:  # many, since some do what no command does: nothing
        results = []
        for form in ("{}", "REASON: let me see\nACTION: {}\nACTION: fly", "hm\naction: {}"):
            env.reset(seed=0)
            results.append(env.step(form.format(command))[:4])
        for result in results[1:]:
            expect(result == results[0], f"a response to do what its command does, {results[0]}", result)


def check_same_seed(env: TextEnv) -> None:
    """The same seed and actions give the same everything, twice."""
    first, second = _play(env, seed=7), _play(env, seed=7)
    for step, (a, b) in enumerate(zip(first, second, strict=False)):
        expect(a == b, f"the same seed and actions to give the same at step {step}, {a}", b)


def check_subgoals(env: TextEnv) -> None:
    """Where ``subgoals()`` is offered, it counts from none to all."""
    if not env.has_wrapper_attr("subgoals"):
        return
    observation, info = env.reset(seed=0)
    for _ in range(10):
        done, total = env.get_wrapper_attr("subgoals")()
        expect(
            0 <= done <= total and total > 0,
            "subgoals() to return (done, total) with 0 <= done <= total",
            (done, total),
        )
        expect((done == total) == info["won"], "all subgoals to be done exactly when the game is won", (done, total))
        observation, _, terminated, truncated, info = env.step(_commands(observation)[0])
        if terminated or truncated:
            break


def check_snapshots(env: TextEnv) -> None:
    """Where ``snapshot()`` and ``restore()`` are offered, an episode continues exactly, also from a pickle."""
    env = env.unwrapped  # a step limit outside goes on counting
    offered = [name for name in ("snapshot", "restore") if hasattr(env, name)]
    expect(len(offered) != 1, "snapshot() and restore(), or neither", f"only {offered}")
    if not offered:
        return
    inner: Any = env
    observation, _ = inner.reset(seed=5)
    for choose in (0, -1):
        after, _, terminated, _, _ = inner.step(_commands(observation)[choose])
        if terminated:  # a game of one turn: take it from the beginning
            observation, _ = inner.reset(seed=5)
            break
        observation = after
    state = pickle.loads(pickle.dumps(inner.snapshot()))
    subgoals = inner.subgoals() if hasattr(inner, "subgoals") else None
    expected = _follow(inner, observation)
    inner.reset(seed=6)
    restored, _ = inner.restore(state)
    expect(restored == observation, f"restore() to return the observation at the snapshot, {observation}", restored)
    if subgoals is not None:
        expect(inner.subgoals() == subgoals, f"subgoals() to be as at the snapshot, {subgoals}", inner.subgoals())
    for a, b in zip(expected, _follow(inner, restored), strict=False):
        expect(a == b, f"an episode to continue from restore() as from the snapshot, {a}", b)


TEXT_ENV_CHECKS: tuple[Callable[[TextEnv], None], ...] = (
    check_spaces,
    check_reset_and_step,
    check_info_keys,
    check_any_string,
    check_responses,
    check_same_seed,
    check_subgoals,
    check_snapshots,
    check_gymnasium,
)


def check_text_env(env_or_id: str | TextEnv, **kwargs: Any) -> None:
    """Check that an environment keeps the contract of the text environments here.

    Args:
        env_or_id: An environment, or a registered id.
        **kwargs: For ``gym.make`` where it is an id.

    Raises:
        AssertionError: It does not; the message says what was expected and what was got.
        TypeError: There are kwargs for an environment that is made already.

    Example:
        >>> import agentprm_gym
        >>> check_text_env("TextIdentity-v0", n_turns=2)
    """
    if isinstance(env_or_id, str):
        env: TextEnv = gym.make(env_or_id, **kwargs)
    elif kwargs:
        raise TypeError(f"an environment that is made already takes no kwargs, got {sorted(kwargs)}")
    else:
        env = env_or_id
    for check in TEXT_ENV_CHECKS:
        check(env)


# Process rewards -----------------------------------------------------------------------------------------------------------


def check_declared(reward: ProcessReward, turns: Sequence[ScoredTurn]) -> None:
    """It has a name, and says whether it is privileged."""
    name = getattr(reward, "name", None)
    expect(isinstance(name, str) and name != "", "a process reward to have a name", name)
    privileged = getattr(reward, "privileged", None)
    expect(isinstance(privileged, bool), "privileged to be True or False", privileged)


def check_scores(reward: ProcessReward, turns: Sequence[ScoredTurn]) -> None:
    """One finite number comes back for each turn."""
    scores = reward.score(turns)
    expect(isinstance(scores, np.ndarray), "score() to return a numpy array", type(scores).__name__)
    expect(scores.shape == (len(turns),), f"scores of shape ({len(turns)},)", f"shape {scores.shape}")
    expect(np.issubdtype(scores.dtype, np.floating), "scores of a floating type", f"{scores.dtype}")
    bad = np.flatnonzero(~np.isfinite(scores)).tolist()
    expect(not bad, "finite scores", f"{scores[bad][:3]} for the turns {bad[:3]}")


def check_empty_batch(reward: ProcessReward, turns: Sequence[ScoredTurn]) -> None:
    """No turns have no scores."""
    scores = np.asarray(reward.score([]))
    expect(scores.shape == (0,), "scores of shape (0,) for no turns", f"shape {scores.shape}")


def check_batches(reward: ProcessReward, turns: Sequence[ScoredTurn]) -> None:
    """A turn's score depends neither on what else is in the batch nor on its place there."""
    whole = np.asarray(reward.score(turns), dtype=np.float64)
    alone = np.array([float(np.asarray(reward.score([turn]))[0]) for turn in turns])
    back = np.asarray(reward.score(turns[::-1]), dtype=np.float64)[::-1]
    for what, scores in (("alone", alone), ("in a batch the other way round", back)):
        # Models add up in another order where a batch has another shape.
        different = np.flatnonzero(~np.isclose(whole, scores, rtol=1e-3, atol=1e-4))
        for i in different[:1]:
            expect(False, f"turn {i} to be worth {what} what it is in the batch, {whole[i]}", f"{scores[i]}")


def check_repeatable(reward: ProcessReward, turns: Sequence[ScoredTurn]) -> None:
    """The same turns have the same scores again, and are left as they were."""
    before = copy.deepcopy(list(turns))
    first, second = (np.asarray(reward.score(turns), dtype=np.float64) for _ in range(2))
    expect(bool(np.array_equal(first, second)), f"the same turns to have the same scores, {first}", f"{second}")
    expect(list(turns) == before, "score() to leave the turns as they were", "other turns")


PROCESS_REWARD_CHECKS: tuple[Callable[[ProcessReward, Sequence[ScoredTurn]], None], ...] = (
    check_declared,
    check_scores,
    check_empty_batch,
    check_batches,
    check_repeatable,
)


def check_process_reward(reward: str | ProcessReward, turns: Sequence[ScoredTurn] | None = None) -> None:
    """Check that a process reward keeps the contract.

    Args:
        reward: A process reward, or the name of a registered one.
        turns: What to score; by default :func:`example_turns`.

    Raises:
        AssertionError: It does not; the message says what was expected and what was got.

    Example:
        >>> import agentprm_gym
        >>> check_process_reward("progress")
    """
    reward = make_reward(reward) if isinstance(reward, str) else reward
    if turns is None:
        check_declared(reward, ())
        # Toys have no planner: who asks for it sees the household game alone.
        needs = needs_of(reward)
        turns = [t for t in example_turns(reward.privileged) if all(getattr(t, need) is not None for need in needs)]
    for check in PROCESS_REWARD_CHECKS:
        check(reward, turns)


def example_turns(privileged: bool = True, n: int = 8) -> list[ScoredTurn]:
    """Return turns to try a process reward on: of a household game that goes on, and of toys that end, won and lost.

    Args:
        privileged: Whether they tell what only privileged rewards may know.
        n: How many of the household game.
    """
    seen: list[ScoredTurn] = []

    class Recorder:
        """A process reward that keeps what it is shown."""

        name = "recorder"

        def __init__(self, needs: frozenset[str]) -> None:
            self.privileged = bool(needs)
            self.needs = needs

        def score(self, turns: Sequence[ScoredTurn]) -> np.ndarray[Any, np.dtype[np.float64]]:
            # The environment goes on writing where the turns stand.
            seen.extend(pickle.loads(pickle.dumps(turn)) for turn in turns)
            return np.zeros(len(turns))

    def play(env_id: str, actions: Callable[[list[str]], str], n_steps: int, **kwargs: Any) -> None:
        env = ProcessRewardWrapper(gym.make(env_id, **kwargs), "outcome")
        known = [fact for fact, method in FACTS.items() if privileged and env.has_wrapper_attr(method)]
        env.process_reward = Recorder(frozenset(known))
        observation, _ = env.reset(seed=0)
        for _ in range(n_steps):
            observation, _, terminated, truncated, _ = env.step(actions(_commands(observation)))
            if terminated or truncated:
                break
        env.close()

    rng = np.random.default_rng(0)
    play("ALFWorld-v0", lambda commands: str(rng.choice([*commands, "dance"])), n, games="generated")
    play("TextIdentity-v0", lambda commands: commands[0], 2, n_turns=2)
    # With two words, one of the two is right.
    for word in ("mug", "egg"):
        play("TextIdentity-v0", lambda commands, word=word: word, 1, words=["egg", "mug"])  # type: ignore[misc]
    return seen


# Inside --------------------------------------------------------------------------------------------------------------------


def _commands(observation: Any) -> list[str]:
    return list(observation["admissible_commands"].split("\n"))


def _short(action: str) -> str:
    return repr(action if len(action) <= 40 else action[:37] + "...")


def _check_observation(env: TextEnv, observation: Any, where: str) -> None:
    expect(isinstance(observation, dict), f"the observation of {where} to be a dict", observation)
    for key in OBSERVATION_KEYS:
        expect(key in observation, f"{key!r} in the observation of {where}", f"only {sorted(observation)}")
        expect(type(observation[key]) is str, f"{key!r} of {where} to be a str", type(observation[key]).__name__)
    expect(observation in env.observation_space, f"the observation of {where} to lie in its space", observation)


def _play(env: TextEnv, seed: int, n_steps: int = 30) -> list[Any]:
    """Play admissible commands chosen by a seed, over the ends of episodes; return all that came back."""
    rng = np.random.default_rng(seed)
    seen: list[Any] = [env.reset(seed=seed)]
    for _ in range(n_steps):
        seen.append(env.step(str(rng.choice(_commands(seen[-1][0])))))
        if seen[-1][2] or seen[-1][3]:
            seen.append(env.reset())
    return seen


def _follow(env: TextEnv, observation: Any, n_steps: int = 5) -> list[Any]:
    seen: list[Any] = []
    for i in range(n_steps):
        commands = _commands(observation)
        seen.append(env.step(commands[i % len(commands)]))
        observation = seen[-1][0]
        if seen[-1][2]:
            break
    return seen
