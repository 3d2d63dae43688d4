"""What all tests share: one thread for tiny matrices, and real ALFWorld data, which a machine may not have."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentprm_gym.games import TASK_TYPES, DataNotFoundError, GameList, find_games
from tests.cli_helpers import Cli, Done

# Torch, which is not loaded yet, reads it: matrices this small are slower on two threads, much slower on busy cores.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is marked ``ci`` is ``slow``, too, so that ``-m "not slow"`` is the default suite."""
    for item in items:
        if item.get_closest_marker("ci"):
            if item.get_closest_marker("slow"):
                raise pytest.UsageError(f"{item.nodeid} is marked slow and ci; ci is for what .ci/run runs: keep one")
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def names_of_this_test() -> Iterator[None]:
    """What a test registers is gone after it: messages, pages and defaults name all that is registered."""
    import gymnasium as gym

    from agentprm_gym.rewards import registry as rewards
    from algorithms import registry as algorithms

    held: list[dict[str, Any]] = [gym.registry, rewards._ENTRIES, algorithms._registered]
    before = [dict(names) for names in held]
    yield
    for names, kept in zip(held, before, strict=True):
        if names.keys() != kept.keys():
            names.clear()
            names.update(kept)


@pytest.fixture(scope="session")
def real_games() -> GameList:
    """The real train games; tests that need them skip where there are none."""
    try:
        return find_games("train", "alfworld")
    except DataNotFoundError as error:
        pytest.skip(f"needs the real ALFWorld games: {error}")


@pytest.fixture(scope="session")
def generated_games() -> GameList:
    """Generated train games."""
    return find_games("train", "generated")


@pytest.fixture(scope="session")
def one_of_each_type(generated_games: GameList) -> list[int]:
    """Indices of one generated game of each task type."""
    types = [game_id.split("-", 1)[0] for game_id in generated_games.game_ids]
    return [types.index(t) for t in TASK_TYPES]


@pytest.fixture(scope="session")
def learner(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny random language model that can learn."""
    from tests.llm_helpers import save_random_model

    return save_random_model(tmp_path_factory.mktemp("learner"), head_scale=20)


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of another model of the same shape."""
    from tests.llm_helpers import save_random_model

    return save_random_model(tmp_path_factory.mktemp("stranger"), seed=1, head_scale=20)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Run ``agentprm`` in an empty folder, with a script on standard input."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")  # nothing is wrapped
    monkeypatch.setattr("sys.path", list(sys.path))  # it adds the current folder

    def run(*args: object, stdin: str = "") -> Done:
        from algorithms.cli import main

        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        try:
            status = main([str(a) for a in args])
        except SystemExit as stop:  # argparse
            status = int(stop.code or 0)
        said = capsys.readouterr()
        return Done(status, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def saved(learner: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a saved SFT and a saved AgentPRM."""
    from algorithms import SFT, AgentPRM
    from tests.algorithm_helpers import make_alfworld, make_model

    folder = tmp_path_factory.mktemp("saved")
    make_model(SFT, learner, make_alfworld()).save(folder / "sft.zip")
    make_model(AgentPRM, learner, make_alfworld()).save(folder / "agent.zip")
    return folder
