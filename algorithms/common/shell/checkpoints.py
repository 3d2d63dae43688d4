"""Checkpoints: what a run leaves in its folder so that it can go on after a kill as if nothing had happened.

    resume/state.zip           a save (:mod:`agentprm_gym.llm.saving`) with all adapters, and what a save leaves out:
                               random streams, optimizer, counters, the best policy so far, the stages that are done
    resume/gathered_<k>/       what iteration k played, in the episodes' own format; gathered_<k>_2, ... where a later stage
                               changed it
    iterations/<k>.zip         the model right after iteration k (algorithms with a PRM)

``state.zip`` is replaced in one step and names the folders that belong to it, which are written before and removed after. A
folder that exists is never written again: another stage, or the same one after a kill, takes the next number. So whenever a run
is killed, or the power fails, its folder holds one checkpoint, the old one or the new.

Two things are not in the files. :attr:`Turn.tokens`: a policy that writes reasons or free text and was killed in the middle of
an iteration goes on with its texts as the tokenizer cuts them, which may differ from the tokens that it wrote. And the running
deviations of process rewards (``normalize=True``), which begin again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.episodes import read_episodes, write_episodes
from agentprm_gym.files import sync_folder, write_whole
from agentprm_gym.llm.finite import NO_WEIGHTS
from agentprm_gym.llm.saving import SavedModel, read_save, write_save
from algorithms.common.acting.rollouts import Rollout
from algorithms.common.shell.logs import reward_settings

EPISODES = "episodes.jsonl.gz"
_FOLDER, _STATE, _ITERATIONS, _GATHERED = "resume", "state.zip", "iterations", "gathered_"
#: Where in a save the rest of a checkpoint stands, among the manifest's keys and among the heads.
_REST = NO_WEIGHTS
#: So much of a hash tells two apart.
_SHOWN = 40


# ---------------------------------------------------------------------- paths
def state_path(run: str | os.PathLike[str]) -> Path:
    """The checkpoint of a run's folder."""
    return Path(run) / _FOLDER / _STATE


def gathered_path(run: str | os.PathLike[str], iteration: int, version: int = 1) -> Path:
    """The folder with what an iteration played.

    Args:
        run: the run's folder.
        iteration: which iteration, from 1.
        version: which of its writings, from 1.
    """
    return Path(run) / _FOLDER / (f"{_GATHERED}{iteration}" + (f"_{version}" if version > 1 else ""))


def new_version(run: str | os.PathLike[str], iteration: int) -> int:
    """The first version of what an iteration played that has no folder yet; see :func:`gathered_path`."""
    version = 1
    while gathered_path(run, iteration, version).exists():
        version += 1
    return version


def finish_gathered(folder: Path) -> None:
    """Put the names in a folder of played episodes on the disk, and its own name, before a checkpoint names it."""
    sync_folder(folder)
    sync_folder(folder.parent)


def iteration_path(run: str | os.PathLike[str], iteration: int) -> Path:
    """The model after an iteration; iterations count from 1."""
    return Path(run) / _ITERATIONS / f"{iteration}.zip"


# ---------------------------------------------------------------------- states
def pack_state(state: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Turn nested containers of tensors and plain values into JSON types, bit for bit; tensors are put aside.

    Args:
        state: dicts (with any plain keys), lists and tuples of tensors, numbers, strings, booleans and ``None``.
        tensors: where the tensors are put, under names that the result mentions.

    Raises:
        TypeError: the state holds anything else.
    """
    if isinstance(state, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = state.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(state, Mapping):
        # JSON's own objects have strings for keys, and an optimizer's state has numbers.
        return {"dict": [[key, pack_state(value, tensors)] for key, value in state.items()]}
    if isinstance(state, (list, tuple)):
        kind = "list" if isinstance(state, list) else "tuple"
        return {kind: [pack_state(value, tensors) for value in state]}
    if isinstance(state, np.generic):
        state = state.item()
    if state is None or isinstance(state, (bool, int, float, str)):
        return state
    raise TypeError(f"a checkpoint holds tensors and plain values, got {type(state).__name__}")


def unpack_state(packed: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The inverse of :func:`pack_state`."""
    if not isinstance(packed, dict):
        return packed
    ((kind, value),) = packed.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: unpack_state(item, tensors) for key, item in value}
    items = [unpack_state(item, tensors) for item in value]
    return tuple(items) if kind == "tuple" else items


def write_checkpoint(
    run: str | os.PathLike[str], saved: SavedModel, state: Mapping[str, Any], gathered: Collection[Path] = ()
) -> None:
    """Replace a run's checkpoint in one step.

    Args:
        run: the run's folder.
        saved: the model, all adapters included.
        state: the rest; see :func:`pack_state`.
        gathered: folders of played episodes that belong to it; others are removed.
    """
    tensors: dict[str, torch.Tensor] = {}
    manifest = {**saved.manifest, _REST: pack_state({**state, "gathered": [path.name for path in gathered]}, tensors)}
    whole = SavedModel(manifest, saved.adapters, saved.adapter_configs, {**saved.heads, _REST: tensors})
    write_save(state_path(run), whole)
    _remove_gathered(run, gathered)


def read_checkpoint(run: str | os.PathLike[str]) -> tuple[SavedModel, dict[str, Any]]:
    """Read a run's checkpoint: the model with all its adapters, and the rest.

    Raises:
        FileNotFoundError: the folder does not hold one.
        ValueError: the file is not a checkpoint.
    """
    path = state_path(run)
    if not path.is_file():
        raise FileNotFoundError(
            f"{run} holds no checkpoint: expected {path}, which a run writes as soon as its first stage or iteration is done"
        )
    saved = read_save(path)
    if _REST not in saved.manifest:
        raise ValueError(f"{path} is a saved model, not a checkpoint; load it with load(), or pass it as policy=")
    state: dict[str, Any] = unpack_state(saved.manifest[_REST], saved.heads[_REST])
    return saved, state


def tidy(run: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Remove what a kill left behind: folders of played episodes that a checkpoint does not name.

    Args:
        run: the run's folder.
        state: what :func:`read_checkpoint` returned.
    """
    if "gathered" in state:  # not in checkpoints up to version 0.2
        with suppress(OSError):  # they are not in the way
            _remove_gathered(run, [Path(run) / _FOLDER / name for name in state["gathered"]])


def remove_checkpoint(run: str | os.PathLike[str]) -> None:
    """Remove a run's checkpoint and its iterations' models, if they exist; other files stay."""
    state_path(run).unlink(missing_ok=True)
    _remove_gathered(run, ())
    for path in (Path(run) / _ITERATIONS).glob("*.zip"):
        if re.fullmatch(r"\d+", path.stem):
            path.unlink()


def _remove_gathered(run: str | os.PathLike[str], keep: Collection[Path]) -> None:
    names = {path.name for path in keep}
    for path in (Path(run) / _FOLDER).glob(f"{_GATHERED}*"):
        if re.fullmatch(r"\d+(_\d+)?", path.name.removeprefix(_GATHERED)) and path.name not in names:
            shutil.rmtree(path)


# ---------------------------------------------------------------------- the environment
def describe_environment(venv: VecEnv) -> dict[str, Any]:
    """What a run that goes on must find again: the games, the step limit and the process reward.

    Args:
        venv: environments; those of one kind are assumed to be equal.

    Returns:
        JSON types. What an environment does not tell is ``None``.
    """
    spec = _first(venv, "spec")
    games = _first(venv, "games")
    listed = getattr(games, "content_hash", None) is not None
    n_games = _first(venv, "n_games")
    return {
        "environment": None if spec is None or listed else spec.id,
        "split": getattr(games, "split", None) if listed else _first(venv, "split"),
        "number of games": None if n_games is None else int(n_games),
        "games": games.content_hash if listed else None,
        "wording": None if spec is None else [spec.kwargs.get(name) for name in ("grammar", "goal_text")],
        "step limit": None if spec is None else spec.max_episode_steps,
        "process reward": reward_settings(venv)["reward"],
    }


def check_environment(begun: Mapping[str, Any], venv: VecEnv, run: str | os.PathLike[str]) -> None:
    """Refuse to go on with a run in another environment than it was begun in.

    Args:
        begun: what :func:`describe_environment` said; empty for a checkpoint of version 0.1, which is not checked.
        venv: the environments now.
        run: the run's folder, for the message.

    Raises:
        ValueError: the games, the step limit or the process reward differ.
    """
    now = describe_environment(venv) if begun else {}
    differs = [key for key, value in now.items() if key in begun and begun[key] != value]
    if not differs:
        return
    key = differs[0]
    before, after = (str(value)[:_SHOWN] for value in (begun[key], now[key]))
    raise ValueError(
        f"{run}: the run was begun with another environment ({', '.join(differs)}): {key} was {before}, is now {after}. Make "
        "the environment as it was, or start a new run from the model: policy='...zip'"
    )


def _first(venv: VecEnv, name: str) -> Any:
    """An attribute of the first environment; ``None`` where it does not have it."""
    try:
        return venv.get_attr(name, indices=[0])[0] if venv.has_attr(name) else None
    except AttributeError:
        return None


# ---------------------------------------------------------------------- rollouts
def write_rollouts(folder: Path, parts: Mapping[str, Sequence[Rollout]]) -> None:
    """Write rollouts: their episodes, and in ``rollouts.json`` what an episode does not say; snapshots are left out.

    Args:
        folder: where to; made where it is missing.
        parts: rollouts by their purpose.
    """
    rows = [
        {"part": name, "n_history": rollout.n_history, "rewards": [float(r) for r in rollout.rewards]}
        for name, rollouts in parts.items()
        for rollout in rollouts
    ]
    write_episodes(folder / EPISODES, [rollout.episode for rollouts in parts.values() for rollout in rollouts])
    text = json.dumps({"parts": list(parts), "rollouts": rows}, indent=1) + "\n"
    write_whole(folder / "rollouts.json", text)


def read_rollouts(folder: Path) -> dict[str, list[Rollout]]:
    """Read what :func:`write_rollouts` wrote, in the same order."""
    data = json.loads((folder / "rollouts.json").read_text(encoding="utf-8"))
    parts: dict[str, list[Rollout]] = {name: [] for name in data["parts"]}
    for episode, row in zip(read_episodes(folder / EPISODES), data["rollouts"], strict=True):
        parts[row["part"]].append(Rollout(episode, [], row["n_history"], row["rewards"]))
    return parts
