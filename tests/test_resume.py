"""Runs that are killed and go on: wherever it happens, the result is that of an unbroken run."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.llm.saving import read_save
from algorithms import GRPO, PPO, RFT, SFT, AgentPRM, InversePRM, OnlineDPO
from algorithms.common.acting.rollouts import Rollout
from algorithms.common.shell.checkpoints import (
    gathered_path,
    iteration_path,
    pack_state,
    read_checkpoint,
    read_rollouts,
    remove_checkpoint,
    state_path,
    unpack_state,
    write_rollouts,
)
from algorithms.common.shell.deadline import Deadline
from tests.algorithm_helpers import make_model, make_toy, not_saved
from tests.llm_helpers import make_episodes

#: More than any run here takes.
LONG = 10**6
STAGES = {
    AgentPRM: ["validate", "roll out", "fit", "search", "improve"],
    InversePRM: ["roll out", "fit", "improve"],
}
#: Settings with two iterations; AgentPRM's also draw adapters anew and leave out parts of its inputs, at random.
SETTINGS: dict[type, dict[str, Any]] = {
    AgentPRM: {
        "n_iterations": 2,
        "improve": {"n_searched": 2},
        "prm": {"init": "base"},
        "policy_kwargs": {"lora": {"r": 4, "lora_dropout": 0.1}},
    },
    InversePRM: {"n_iterations": 2},
}


class Killed(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def toy() -> VecEnv:
    return make_toy()


def everything(model: Any) -> dict[str, torch.Tensor]:
    """All tensors that a model learns, and all adapters beside them."""
    groups = model.get_parameters() | {name: model.lm.adapter_state(name) for name in model.lm.adapters}
    return {f"{group}/{key}": value for group, state in groups.items() for key, value in state.items()}


def same(one: Any, other: Any) -> bool:
    """Whether two models are equal, bit for bit, counters included."""
    a, b = everything(one), everything(other)
    assert set(a) == set(b)
    counted = ("num_timesteps", "iteration", "_n_updates", "_episode_num", "total_tokens", "_num_timesteps_at_start")
    return all(torch.equal(a[key], b[key]) for key in a) and all(
        getattr(one, name) == getattr(other, name) for name in counted
    )


def go_on(algorithm: type, folder: Path, toy: VecEnv, total: int = LONG, **kwargs: Any) -> Any:
    model: Any = algorithm
    model = model.resume(folder, toy, **not_saved(algorithm), **kwargs)
    return model.learn(total - model.num_timesteps, reset_num_timesteps=False)


# ---------------------------------------------------------------------- algorithms with a PRM
@pytest.fixture(scope="module", params=list(STAGES), ids=lambda a: a.__name__)
def unbroken(
    request: pytest.FixtureRequest, learner: str, toy: VecEnv, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """An unbroken run, and its folder as it was after each checkpoint."""
    algorithm = request.param
    folder: Path = tmp_path_factory.mktemp("unbroken")
    model = make_model(algorithm, learner, toy, **SETTINGS[algorithm])
    model.checkpoint_dir = folder / "run"
    write = model.write_checkpoint
    copies: list[tuple[int, str]] = []

    def watched(gathered: Any) -> None:
        write(gathered)
        stage = model.stages_done[-1] if model.stages_done else "end"
        copies.append((model.iteration, stage))
        shutil.copytree(model.checkpoint_dir, folder / f"{model.iteration}-{stage}")

    model.write_checkpoint = watched
    model.learn(LONG)
    return model, folder, copies


def test_there_is_a_checkpoint_after_every_stage(unbroken: Any) -> None:
    model, folder, copies = unbroken
    stages = STAGES[type(model)]
    rest = [s for s in stages if s != "validate"]
    assert copies == [*((0, s) for s in stages), (1, "end"), *((1, s) for s in rest), (2, "end")]
    for copy in copies:
        run = folder / "{}-{}".format(*copy)
        iteration, stage = copy
        kept = {k for k in (1, 2) for version in (1, 2) if gathered_path(run, k, version).exists()}
        running = {iteration + 1} if stage in rest else set()
        assert kept == running | (set(range(1, iteration + 1)) if isinstance(model, InversePRM) else set())
        assert [iteration_path(run, k).exists() for k in (1, 2)] == [iteration > 0, iteration > 1]
        assert not list(run.rglob("*.part"))


@pytest.mark.parametrize(
    "copy",
    [
        *("0-validate", "0-roll out", "0-fit", "0-search", "0-improve"),
        *("1-end", "1-roll out", "1-fit", "1-search", "1-improve", "2-end"),
    ],
)
def test_a_run_that_goes_on_after_any_stage_ends_like_one_that_was_not_broken(
    unbroken: Any, toy: VecEnv, copy: str, tmp_path: Path
) -> None:
    model, folder, _ = unbroken
    if copy.split("-")[1] not in (*STAGES[type(model)], "end"):
        pytest.skip("InversePRM neither searches nor validates")
    run = tmp_path / "run"
    shutil.copytree(folder / copy, run)
    torch.manual_seed(99)  # what a new process begins with is something else
    resumed = go_on(type(model), run, toy)
    assert same(resumed, model)
    assert (resumed.best_success, resumed.best_iteration) == (model.best_success, model.best_iteration)
    for k in (1, 2):
        one, other = (read_save(iteration_path(place, k)) for place in (run, folder / "run"))
        for name, state in one.adapters.items():
            assert all(torch.equal(value, other.adapters[name][key]) for key, value in state.items())
        assert one.manifest["counters"] == {**other.manifest["counters"]}
    assert state_path(run).exists()


@pytest.mark.ci
@pytest.mark.parametrize("algorithm", list(STAGES), ids=lambda a: a.__name__)
def test_a_run_is_killed_in_the_middle_of_a_stage(algorithm: type, learner: str, toy: VecEnv, tmp_path: Path) -> None:
    """Killed while it improves the policy, whose weights are then half-way."""
    whole = make_model(algorithm, learner, toy, **SETTINGS[algorithm]).learn(LONG)
    model = make_model(algorithm, learner, toy, **SETTINGS[algorithm])
    model.checkpoint_dir = tmp_path

    def killed(name: str, share: float) -> None:
        if name == "improve policy" and share > 0.4 and model.iteration == 1:
            raise Killed

    model.on_stage = killed
    with pytest.raises(Killed):
        model.learn(LONG)
    calls: list[str] = []
    resumed = algorithm.resume(tmp_path, toy, **not_saved(algorithm))  # type: ignore[attr-defined]
    resumed.on_stage = lambda name, share: calls.append(name)
    resumed.learn(reset_num_timesteps=False)
    assert same(resumed, whole)
    assert set(calls) <= {"improve policy", "validate"}  # nothing is played or fitted again


def test_more_iterations_than_planned_are_those_of_a_longer_run(learner: str, toy: VecEnv, tmp_path: Path) -> None:
    short = make_model(AgentPRM, learner, toy, n_iterations=1)
    short.checkpoint_dir = tmp_path
    short.learn(LONG)
    longer = make_model(AgentPRM, learner, toy, n_iterations=2).learn(LONG)
    assert same(go_on(AgentPRM, tmp_path, toy, n_iterations=2), longer)


def test_the_model_of_an_iteration_is_an_ordinary_save(unbroken: Any, toy: VecEnv) -> None:
    model, folder, _ = unbroken
    first, last = (type(model).load(iteration_path(folder / "run", k), toy) for k in (1, 2))
    assert (first.iteration, last.iteration) == (1, 2)
    assert not all(torch.equal(value, everything(last)[key]) for key, value in everything(first).items())


# ---------------------------------------------------------------------- the others
@pytest.mark.ci
@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        (SFT, {}),
        (SFT, {"dagger_games": 3}),
        (GRPO, {"beta": 0.1}),
        (PPO, {}),
        (RFT, {}),
        (OnlineDPO, {}),
    ],
    ids=lambda x: x.__name__ if isinstance(x, type) else ",".join(x),
)
def test_others_go_on_after_an_iteration_optimizer_included(
    algorithm: type,
    settings: dict[str, Any],
    learner: str,
    toy: VecEnv,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if algorithm is SFT and settings:
        # The toy's teacher: the searching expert does not know this game.
        monkeypatch.setattr(
            "algorithms.sft.dagger.search_labels",
            lambda e: [t.feedback.removeprefix("You see ").removesuffix(".") for t in e.turns],
        )
    whole = make_model(algorithm, learner, toy, **settings)
    whole.learn(1)
    total = 4 * whole.num_timesteps
    whole = make_model(algorithm, learner, toy, **settings).learn(total)
    assert whole.iteration >= 3
    broken = make_model(algorithm, learner, toy, **settings)
    broken.checkpoint_dir = tmp_path
    step = broken._count_step

    def killed(*args: Any) -> bool:
        if broken.iteration == 2:
            raise Killed
        return bool(step(*args))

    broken._count_step = killed
    with pytest.raises(Killed):
        broken.learn(total)
    resumed = go_on(algorithm, tmp_path, toy, total)
    assert same(resumed, whole)
    states = [model.updater.state()["state"] for model in (resumed, whole)]
    assert states[0] and all(torch.equal(states[0][i]["exp_avg"], states[1][i]["exp_avg"]) for i in states[1])


def test_curves_go_on_in_the_same_tensorboard_run(learner: str, toy: VecEnv, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def points(folder: Path, tag: str) -> list[tuple[int, float]]:
        (log,) = (folder / "tb").iterdir()
        events = EventAccumulator(str(log)).Reload()
        return [(e.step, e.value) for e in events.Scalars(tag)]

    settings = {**SETTINGS[AgentPRM], "stats_window_size": 3}
    make_model(AgentPRM, learner, toy, **settings, tensorboard_log=str(tmp_path / "whole" / "tb")).learn(LONG)
    broken = make_model(AgentPRM, learner, toy, **settings, tensorboard_log=str(tmp_path / "broken" / "tb"))
    broken.checkpoint_dir = tmp_path / "broken"

    def killed(name: str, _: float) -> None:
        if name == "improve policy" and broken.iteration == 1:
            raise Killed

    broken.on_stage = killed
    with pytest.raises(Killed):
        broken.learn(LONG)
    broken.logger.close()
    go_on(AgentPRM, tmp_path / "broken", toy)
    # Of the broken iteration, too: what was recorded before the kill is written after it.
    for tag in ("rollout/success_rate", "rollout/branch_success_rate", "prm/loss", "eval/validation_success_rate"):
        whole = points(tmp_path / "whole", tag)
        # The starting point, too, where it is known.
        assert len(whole) == (3 if tag.startswith("eval") else 2) and points(tmp_path / "broken", tag) == whole
    seconds = [s for _, s in points(tmp_path / "broken", "time/time_elapsed")]
    assert seconds == sorted(seconds)


# ---------------------------------------------------------------------- files
def test_states_come_back_bit_for_bit() -> None:
    state = {
        "text": "a",
        "numbers": [0.1, math.inf, -0.0, 2**200, True, None, np.float64(1 / 3)],
        "nested": {0: {"step": torch.tensor(3.0), "betas": (0.9, 0.95)}, "empty": {}, "none": []},
        "same": [torch.arange(4.0).reshape(2, 2).t()] * 2,
        "bytes": torch.get_rng_state(),
    }
    tensors: dict[str, torch.Tensor] = {}
    back = unpack_state(pack_state(state, tensors), tensors)
    assert repr(back["numbers"]) == repr([*state["numbers"][:-1], 1 / 3])  # type: ignore[index]
    assert back["nested"][0]["betas"] == (0.9, 0.95) and back["nested"]["empty"] == {} and back["nested"]["none"] == []
    assert torch.equal(back["nested"][0]["step"], torch.tensor(3.0))
    assert torch.equal(back["same"][1], torch.tensor([[0.0, 2.0], [1.0, 3.0]])) and back["text"] == "a"
    assert torch.equal(back["bytes"], state["bytes"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="object"):
        pack_state([object()], {})


def test_rollouts_come_back_with_their_parts(tmp_path: Path) -> None:
    episodes = make_episodes(3)
    parts = {"first": [Rollout(episodes[0], ["a snapshot"], 0, [0.1])], "none": [], "rest": []}
    parts["rest"] = [Rollout(e, [], i, [1 / 3] * i) for i, e in enumerate(episodes[1:])]
    write_rollouts(tmp_path / "new", parts)
    back = read_rollouts(tmp_path / "new")
    assert list(back) == list(parts)
    for name, rollouts in parts.items():
        assert [(r.episode, r.n_history, r.rewards) for r in back[name]] == [
            (r.episode, r.n_history, r.rewards) for r in rollouts
        ]


def test_a_folder_without_a_checkpoint_says_what_is_expected(learner: str, toy: VecEnv, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected .*state\.zip"):
        GRPO.resume(tmp_path, toy)
    model = make_model(GRPO, learner, toy)
    model.save(state_path(tmp_path))
    with pytest.raises(ValueError, match="not a checkpoint"):
        GRPO.resume(tmp_path, toy)
    model.checkpoint_dir = tmp_path
    model.learn(1)
    with pytest.raises(ValueError, match="GRPO"):
        PPO.resume(tmp_path, toy)
    assert read_checkpoint(tmp_path)[0].manifest["class"] == "GRPO"


def test_removing_a_checkpoint_leaves_other_files(tmp_path: Path) -> None:
    mine = [tmp_path / "model.zip", tmp_path / "iterations" / "best.zip", tmp_path / "resume" / "notes.txt"]
    its = [state_path(tmp_path), iteration_path(tmp_path, 3), gathered_path(tmp_path, 2) / "episodes.jsonl.gz"]
    for path in (*mine, *its):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    remove_checkpoint(tmp_path)
    assert all(path.exists() for path in mine) and not any(path.exists() for path in its)


# ---------------------------------------------------------------------- deadlines
def test_a_deadline_ends_with_the_running_iteration(learner: str, toy: VecEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("algorithms.common.shell.deadline.time.monotonic", lambda: clock[0])

    class Tick(BaseCallback):
        def _on_rollout_end(self) -> None:
            clock[0] += 40

        def _on_step(self) -> bool:
            return True

    deadline = Deadline(1)
    model = make_model(GRPO, learner, toy)
    model.learn(LONG, callback=[Tick(), deadline])
    # 80 seconds are over after the second iteration, the first one that ends behind the deadline.
    assert model.iteration == 2 and deadline.is_over
    model.learn(1, callback=deadline)
    assert model.iteration == 3 and not deadline.is_over
    with pytest.raises(ValueError, match="above 0"):
        Deadline(0)


# ---------------------------------------------------------------------- another environment
@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"task_types": ["pick_two_obj_and_place"]}, "number of games"),
        ({"split": "valid_seen"}, "split was train, is now valid_seen"),
        ({"max_episode_steps": 7}, "step limit was 30, is now 7"),
        ({"generator_kwargs": {"rooms": ["kitchen"]}}, "games was"),
        ({"reward": "progress"}, "process reward was None, is now progress"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_run_does_not_go_on_in_another_environment(
    learner: str, tmp_path: Path, kwargs: dict[str, Any], said: str
) -> None:
    from algorithms import make_eval_env

    model = make_model(GRPO, learner, make_eval_env(n_envs=2, games="generated", split="train"))
    model.checkpoint_dir = tmp_path
    model.write_checkpoint()
    same_games = make_eval_env(n_envs=3, games="generated", split="train", engine="native")
    assert GRPO.resume(tmp_path, same_games).iteration == 0
    env_id = "ALFWorldPRM-v0" if "reward" in kwargs else "ALFWorld-v0"
    other = make_eval_env(env_id, n_envs=2, **{"games": "generated", "split": "train", **kwargs})
    with pytest.raises(ValueError, match=said):
        GRPO.resume(tmp_path, other)
