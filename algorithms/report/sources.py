"""What a report is made of: evaluations and training runs, read from the folders that the command line wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentprm_gym.episodes import Episode, read_episodes
from agentprm_gym.files import read_json_object
from algorithms.common.measure.comparison import Curve, mean_interval, read_curves
from algorithms.common.shell import folders

#: Curves that are drawn where a run has them, and what they say.
CURVES = {
    "rollout/success_rate": "share of the last training episodes that were won",
    "eval/validation_success_rate": "share of held-out train games that were won",
    "eval/success_rate": "share of evaluation episodes that were won",
    "prm/score_mean": "mean score of the commands that were executed",
    "prm/gap": "mean score less the success rate of the same episodes",
    "train/kl": "divergence from the policy before, in nats a turn",
}
#: How good a process reward model is, and what that says: the last value of each.
MEASURES = {
    "prm/heldout_ece": "calibration error on held-out labels; 0 is best",
    "prm/heldout_bce": "cross-entropy on held-out labels",
    "prm/heldout_bce_constant": "the same of the best constant score",
    "prm/heldout_kendall_tau": "order within a state against held-out labels; 1 is best, 0 chance",
    "prm/heldout_top1": "how often its favourite is the best by held-out labels",
    "prm/heldout_choice_gain": "gain of its choice among labelled commands; 1 is best, 0 chance",
    "prm/heldout_pair_accuracy": "pairs of a state in the right order, of held-out labels",
    "prm/planner_kendall_tau": "order of all admissible commands against the planner's exact Q",
    "prm/planner_top1": "how often its favourite is the best by the planner",
    "prm/planner_policy_top1": "the same of the policy's favourite",
    "prm/planner_choice_gain": "gain of its choice by the planner's Q; 1 is best, 0 chance",
}
#: Words of the command line that a run is shown with.
SETTINGS = (
    "algo",
    "policy",
    "split",
    "games",
    "reward",
    "demos",
    "timesteps",
    "iterations",
    "epochs",
    "seed",
    "settings",
)
#: Pictures that a run wrote into its curves: calibration and the fit of its process reward model.
PICTURES = ("prm/calibration", "prm/fit_curve")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(slots=True)
class Evaluation:
    """Episodes of one policy under one protocol.

    Attributes:
        name: what it is called in the report.
        about: its result file.
        episodes: in the order of the games.
        step_cap: the step limit; ``None`` where it is not known.
    """

    name: str
    about: Mapping[str, Any]
    episodes: list[Episode]
    step_cap: int | None = None


@dataclass(slots=True)
class Training:
    """A training run of one or several seeds.

    Attributes:
        name: what it is called in the report.
        curves: the curves that it has, see :data:`CURVES`.
        measures: tag, mean of the last values over the seeds, and half the width of the 95 % interval (NaN with one seed).
        pictures: tag and PNG.
        settings: the commit, and those of :data:`SETTINGS` that it was begun with.
    """

    name: str
    curves: list[Curve] = field(default_factory=list)
    measures: list[tuple[str, float, float]] = field(default_factory=list)
    pictures: list[tuple[str, bytes]] = field(default_factory=list)
    settings: Mapping[str, str] = field(default_factory=dict)


def read_sources(named: Mapping[str, str | Path]) -> tuple[list[Evaluation], list[Training]]:
    """Read folders.

    Args:
        named: names and folders: of ``agentprm eval``, ``train``, ``demo``, or any folder with event files below.

    Raises:
        FileNotFoundError: a folder is missing, holds nothing to report on, or an evaluation that did not end.
        ValueError: a file in it cannot be read.
    """
    evaluations: list[Evaluation] = []
    trainings: list[Training] = []
    for name, path in named.items():
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"no run {str(folder)!r}: expected a folder that 'agentprm train' or 'agentprm eval' wrote"
            )
        if folders.holds(folder) == "evaluation":
            evaluations.append(_evaluation(name, folder))
            continue
        found = _demo(name, folder)
        evaluations += found
        if any(folder.rglob("events.out.tfevents.*")):
            trainings.append(_training(name, folder))
        elif not found:
            raise FileNotFoundError(
                f"{folder} holds neither curves nor episodes: expected a folder that 'agentprm train', 'eval' or 'demo' wrote"
            )
    return evaluations, trainings


def _evaluation(name: str, folder: Path) -> Evaluation:
    if not (folder / folders.EPISODES).is_file() or not (folder / "result.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds an evaluation that did not end: 'agentprm eval --resume {folder}' goes on with it"
        )
    about = read_json_object(folder / "result.json")
    protocol = about.get("protocol")
    known = (protocol if isinstance(protocol, dict) else {}).get("step_cap"), about.get("max_steps")
    cap = next((x for x in known if isinstance(x, int) and x > 0), None)
    return Evaluation(name, about, list(read_episodes(folder / folders.EPISODES)), cap)


def _demo(name: str, folder: Path) -> list[Evaluation]:
    """The evaluations of ``agentprm demo``, which lie together; their step limit is that of the longest failure."""
    files = sorted((folder / "eval").glob("*.jsonl.gz"))
    about = read_json_object(folder / "result.json") if (folder / "result.json").is_file() else {}
    found = []
    for path in files:
        episodes = list(read_episodes(path))
        lost = [len(e.turns) for e in episodes if e.truncated]
        label = f"{name}/{path.name.removesuffix('.jsonl.gz')}"
        found.append(Evaluation(label, about, episodes, max(lost, default=None)))
    return found


def _training(name: str, folder: Path) -> Training:
    tags, pictures = _found(folder)
    # All at once: event files are long, and each call reads them.
    wanted = [tag for tag in (*CURVES, *MEASURES) if tag in tags]
    curves = read_curves({name: folder}, wanted) if wanted else []
    measures = []
    for curve in curves:
        if curve.tag in MEASURES:
            mean, half = mean_interval(curve.last())
            tag = curve.tag if curve.label == name else f"{curve.tag} ({curve.label})"
            measures.append((tag, float(mean), float(half)))
    drawn = [curve for curve in curves if curve.tag in CURVES]
    return Training(name, drawn, measures, pictures, _settings(folder))


def _settings(folder: Path) -> dict[str, str]:
    """What a run was begun with, as its own file says; of several seeds what the first one was."""
    files = [folder / "settings.json", *sorted(folder.glob("seed_*/settings.json"))]
    note = next((read_json_object(path) for path in files if path.is_file()), {})
    given = note.get("args")
    args = given if isinstance(given, dict) else {}
    told = {"commit": note.get("commit"), **{key: args.get(key) for key in SETTINGS}}
    return {key: str(value) for key, value in told.items() if value not in (None, "", "None", "{}")}


def _found(folder: Path) -> tuple[set[str], list[tuple[str, bytes]]]:
    """All scalar tags below a folder, and the last picture of each of :data:`PICTURES`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags: set[str] = set()
    last: dict[str, bytes] = {}
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        accumulator = EventAccumulator(str(path), size_guidance={"scalars": 1, "images": 1})
        accumulator.Reload()
        tags |= set(accumulator.Tags()["scalars"])
        for tag in set(PICTURES) & set(accumulator.Tags()["images"]):
            last[tag] = accumulator.Images(tag)[-1].encoded_image_string
    return tags, [(tag, last[tag]) for tag in PICTURES if last.get(tag, b"").startswith(_PNG)]
