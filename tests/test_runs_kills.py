"""Runs that are killed at any file operation: what is left in the folder goes on like a run that was not killed.

A kill leaves a folder as it is between two file operations, or in the middle of a write. So one unbroken run is watched, its
folder is noted before each of its file operations and in the middle of each write, and then each of these folders is resumed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.llm.saving import read_save
from algorithms import GRPO, SFT, AgentPRM, InversePRM
from algorithms.common.shell.checkpoints import gathered_path, state_path
from algorithms.common.shell.folders import holds
from tests.algorithm_helpers import make_model, make_toy, not_saved
from tests.test_resume import LONG, SETTINGS, same

#: What a folder holds: contents by path, None for a folder.
State = dict[str, bytes | None]
RUNS: dict[str, tuple[type, dict[str, Any]]] = {
    "AgentPRM": (AgentPRM, SETTINGS[AgentPRM]),
    "AgentPRM, fitted to all": (AgentPRM, {**SETTINGS[AgentPRM], "prm": {"aggregate": True}}),
    "InversePRM": (InversePRM, SETTINGS[InversePRM]),
    "GRPO": (GRPO, {"beta": 0.1}),
    "SFT with DAgger": (SFT, {"dagger_games": 3}),
}


class Watch:
    """Notes what a folder holds before each file operation in it, and in the middle of each write.

    Attributes:
        states: the different states in their order, the last one aside.
        n_operations: how many file operations there were.
        not_synced: files that were renamed, or are named by a checkpoint, before they were on the disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.states, self.n_operations = folder, list[State](), 0
        self.not_synced: list[str] = []
        self._pool: dict[bytes, bytes] = {}
        self._seen: set[frozenset[tuple[str, bytes | None]]] = set()
        self._synced: set[int] = set()
        self._last = self._read()  # what is there already was not written under our eyes

    def operation(self, event: str, args: tuple[Any, ...]) -> None:
        """A file operation is about to happen."""
        if event == "open":
            writes = args[1] is None and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            writes = writes or (args[1] is not None and set(str(args[1])) & set("wax+"))
            if not writes or not self._is_inside(args[0]):
                return
        elif event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "fsync"):
            # shutil.rmtree names files relative to an open folder.
            if not any(self._is_inside(arg) or (isinstance(arg, int) and arg > 2) for arg in args):
                return
        else:
            return
        self.n_operations += 1
        if event == "fsync":
            self._synced.add(os.fstat(args[0]).st_ino)
        elif event == "os.rename":
            self._check_synced(Path(os.fsdecode(args[0])), Path(os.fsdecode(args[1])))
        self.note()

    def note(self) -> None:
        """Note the folder as it is, and as it was in the middle of what was written since the last time."""
        now = self._read()
        for path, data in now.items():
            if data is not None and self._last.get(path) != data and data not in self._last.values():
                for size in (0, len(data) // 2):
                    self._add({**now, path: data[:size]})
        self._add(now)
        self._last = now

    def _add(self, state: State) -> None:
        # Unfinished files are never read, and the names of some are drawn at random: that there are any is what counts.
        key = frozenset((str(Path(p).parent), b".part") if ".part" in p else (p, data) for p, data in state.items())
        if key not in self._seen:
            self._seen.add(key)
            self.states.append(state)

    def _read(self) -> State:
        state: State = {}
        for path in sorted(self.folder.rglob("*")):
            data = None if path.is_dir() else path.read_bytes()
            state[str(path.relative_to(self.folder))] = None if data is None else self._pool.setdefault(data, data)
        return state

    def _is_inside(self, path: Any) -> bool:
        return isinstance(path, (str, bytes, os.PathLike)) and self.folder in Path(os.fsdecode(path)).parents

    def _check_synced(self, source: Path, target: Path) -> None:
        files = [source]
        if target == state_path(self.folder):  # names folders, which must be there with all that they hold
            files += [path for k in (1, 2, 3) for path in _versions(self.folder, k)]
            files += [file for folder in files[1:] for file in folder.iterdir()]
        for path in files:
            if path.stat().st_ino not in self._synced and str(path) not in self.not_synced:
                self.not_synced.append(str(path))


def _versions(run: Path, iteration: int) -> list[Path]:
    first = gathered_path(run, iteration)
    return [path for path in first.parent.glob(f"{first.name}*") if path.name[len(first.name) :][:1] in ("", "_")]


_watch: list[Watch] = []
_hooked: list[bool] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _watch and (event == "open" or event.startswith("os.")):
        (watch,) = _watch
        _watch.clear()  # what is read here is no operation of the run
        try:
            watch.operation(event, args)
        finally:
            _watch.append(watch)


@contextmanager
def watched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Watch the file operations in a folder."""
    if not _hooked:
        sys.addaudithook(_hook)  # stays, and does nothing without a watch
        _hooked.append(True)
    fsync: Callable[[int], None] = os.fsync

    def noted(handle: int) -> None:
        if _watch and (path := Path(f"/proc/self/fd/{handle}")).exists() and folder in path.resolve().parents:
            _hook("os.fsync", ())
            _watch[0].operation("fsync", (handle,))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    _watch.append(Watch(folder))
    try:
        yield _watch[0]
    finally:
        _watch[0].note()
        _watch[0].states.pop()  # the run is over
        _watch.clear()


@pytest.fixture(scope="module")
def toy() -> VecEnv:
    return make_toy()


@pytest.fixture(autouse=True)
def teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy's teacher: the searching expert does not know this game."""
    monkeypatch.setattr(
        "algorithms.sft.dagger.search_labels",
        lambda e: [t.feedback.removeprefix("You see ").removesuffix(".") for t in e.turns],
    )


def begin(name: str, learner: str, toy: VecEnv, folder: Path) -> tuple[Any, int]:
    """A run that has not begun, and how many timesteps it takes."""
    algorithm, settings = RUNS[name]
    model, total = make_model(algorithm, learner, toy, **settings), LONG
    if model.__class__ in (GRPO, SFT):
        model.learn(1)
        total = 3 * model.num_timesteps
        model = make_model(algorithm, learner, toy, **settings)
    model.checkpoint_dir = folder
    return model, total


def lay(state: State, folder: Path) -> None:
    for path, data in state.items():
        target = folder / path
        (target if data is None else target.parent).mkdir(parents=True, exist_ok=True)
        if data is not None:
            target.write_bytes(data)


def check(state: State, whole: Any, total: int, again: Any, toy: VecEnv, folder: Path, unbroken: Path) -> None:
    """A folder goes on to the end of the unbroken run, or says that it is to begin again."""
    algorithm: Any = type(whole)
    lay(state, folder)
    torch.manual_seed(99)  # what a new process begins with is something else
    if "resume/state.zip" in state:
        model = algorithm.resume(folder, toy, **not_saved(algorithm))
        model.learn(total - model.num_timesteps, reset_num_timesteps=False)
    else:
        with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
            algorithm.resume(folder, toy, **not_saved(algorithm))
        model = again(folder)
        model.learn(total)
    assert same(model, whole)
    for path in (unbroken / "iterations").glob("*.zip"):
        one, other = read_save(path), read_save(folder / "iterations" / path.name)
        for name, tensors in one.adapters.items():
            assert all(torch.equal(value, other.adapters[name][key]) for key, value in tensors.items())
    left = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and ".part" not in p.name}
    # An older version of what was played may have been removed in the other run under the other number.
    names = {p.parent.name if p.parent.name.startswith("gathered") else p.name for p in map(Path, left)}
    assert len([n for n in names if n.startswith("gathered")]) == len(list((unbroken / "resume").glob("gathered*")))
    assert holds(folder) == "run"


def watch(
    name: str, learner: str, toy: VecEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, int, Watch]:
    folder = tmp_path / "unbroken"
    model, total = begin(name, learner, toy, folder)
    with monkeypatch.context() as patch, watched(folder, patch) as seen:
        model.learn(total)
    return model, total, seen


def played(state: State) -> State:
    """The finished files of played episodes."""
    return {
        path: data for path, data in state.items() if "gathered" in path and data is not None and ".part" not in path
    }


def half_written(states: list[State]) -> list[State]:
    """One folder for each checkpoint before which played episodes are written, when the first of their files is there."""
    chosen, at_checkpoint = [], State()
    before = State()
    for state in states:
        if state.get("resume/state.zip") != before.get("resume/state.zip"):
            at_checkpoint = played(state)
        elif played(state) != played(before) and played(before) == at_checkpoint and at_checkpoint:
            chosen.append(state)
        before = state
    return chosen


@pytest.mark.ci
@pytest.mark.parametrize("name", ["AgentPRM", "SFT with DAgger"])
def test_some_kills(name: str, learner: str, toy: VecEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where played episodes that a checkpoint names are written again, by AgentPRM's search, and shortly before the end."""
    model, total, seen = watch(name, learner, toy, tmp_path, monkeypatch)
    assert seen.n_operations > 40 and not seen.not_synced
    for i, state in enumerate([half_written(seen.states)[0], seen.states[-1]]):
        again = lambda run: begin(name, learner, toy, run)[0]  # noqa: E731
        check(state, model, total, again, toy, tmp_path / str(i), tmp_path / "unbroken")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RUNS))
def test_all_kills(name: str, learner: str, toy: VecEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every file operation, and in the middle of every write."""
    model, total, seen = watch(name, learner, toy, tmp_path, monkeypatch)
    assert not seen.not_synced
    print(f"{name}: {seen.n_operations} file operations, {len(seen.states)} different folders")
    for i, state in enumerate(seen.states):
        again = lambda run: begin(name, learner, toy, run)[0]  # noqa: E731
        check(state, model, total, again, toy, tmp_path / str(i), tmp_path / "unbroken")


# ---------------------------------------------------------------------- what else a checkpoint must hold
@pytest.mark.ci
def test_what_a_diverged_policy_played_is_still_known_after_a_kill(
    learner: str, toy: VecEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """on_divergence="refit" adds episodes to what all later process reward models are fitted to."""
    diverged = lambda guard, algorithm, before, after: 1.0 if algorithm.iteration == 0 else None  # noqa: E731
    monkeypatch.setattr("algorithms.common.prm.guard.Guard._divergence", diverged)
    settings: dict[str, Any] = {"n_iterations": 2, "prm": {"aggregate": True}, "on_divergence": "refit"}
    with pytest.warns(UserWarning, match="the policy has learnt the PRM's mistakes"):
        whole = make_model(AgentPRM, learner, toy, **settings).learn(LONG)
        model = make_model(AgentPRM, learner, toy, **settings)
        model.checkpoint_dir = tmp_path
        model.n_iterations = 1
        model.learn(LONG)
    resumed = AgentPRM.resume(tmp_path, toy, n_iterations=2)
    assert len(resumed._past[0].trunks) == len(model._past[0].trunks) > 4
    assert same(resumed.learn(LONG, reset_num_timesteps=False), whole)


@pytest.mark.ci
def test_a_checkpoint_of_version_0_2_goes_on(learner: str, toy: VecEnv, tmp_path: Path) -> None:
    """It lists iterations, whose episodes were written once."""
    model = make_model(InversePRM, learner, toy, n_iterations=1)
    model.checkpoint_dir = tmp_path
    model.learn(LONG)
    whole = make_model(InversePRM, learner, toy, n_iterations=2).learn(LONG)
    model._running_state, state = lambda: {**state, "kept": [1]}, model._running_state()  # type: ignore[misc]
    model.write_checkpoint([gathered_path(tmp_path, 1)])
    resumed = InversePRM.resume(tmp_path, toy, n_iterations=2, **not_saved(InversePRM))
    assert same(resumed.learn(LONG, reset_num_timesteps=False), whole)
