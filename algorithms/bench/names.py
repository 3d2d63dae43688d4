"""Rankers by name, as the command line takes them.

======================  =======================================================================================================
``uniform``             all commands alike
``length``              long commands
``oracle``              the planner's values; ``labels:KIND`` another kind of labels
``noise:SIGMA``         the planner's values with Gaussian noise; ``noise:SIGMA@KIND`` on another kind of labels
``shuffled``            the planner's values, dealt to each state's commands at random
``policy:MODEL``        a policy's log-probability: a save, a run's folder, or a base model
``prm:SAVE``            a process reward model of an AgentPRM's or an InversePRM's save
``implicit:SAVE``       log-ratio of a policy to its base; ``implicit:SAVE@REFERENCE`` to another policy on the same base
``classifier:FOLDER``   a sequence classifier; ``classifier:FOLDER#LABEL`` where it has several labels
``stepwise:FOLDER``     a token classifier of steps, as TRL's ``PRMTrainer`` makes it
``judge:MODEL@URL``     a language model on an OpenAI-compatible server
``prover:K:RANKER``     the best of K continuations, by the ranker's chances of winning
``mean:A+B``            the mean of several rankers, standardised within each state
``module:Class``        your own
======================  =======================================================================================================

``NAME=`` in front of any of them is what tables call it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from agentprm_gym.bench.ranker import (
    LabelRanker,
    LengthRanker,
    MeanRanker,
    Ranker,
    ShuffledRanker,
    UniformRanker,
    check_ranker,
)
from agentprm_gym.bench.states import LABELS
from algorithms.common.shell.folders import saved_model
from algorithms.registry import import_object

#: Names that stand for themselves, and those with something behind a colon.
PLAIN = ("uniform", "length", "oracle", "shuffled")
WITH_MORE = ("labels", "noise", "policy", "prm", "implicit", "classifier", "stepwise", "judge", "mean", "prover")
_CHOICES = (
    "uniform, length, oracle, shuffled, labels:KIND, noise:SIGMA, policy:MODEL, prm:SAVE, implicit:SAVE, classifier:FOLDER, "
    "stepwise:FOLDER, judge:MODEL@URL, mean:A+B, prover:K:RANKER, or package.module:Class"
)
_NAMED = re.compile(r"([^:=+]+)=(?=[A-Za-z_])")


@dataclass(frozen=True, slots=True)
class Options:
    """How rankers are loaded.

    Attributes:
        base: where the base model of saves is now, a folder or a hub id; ``None``: where it was.
        device: torch device.
        server: keyword arguments of :meth:`~algorithms.bench.judge.JudgeRanker.of_server` for judges.
        seed: of noise and shuffling.
    """

    base: str | None = None
    device: str = "auto"
    server: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


def split_name(text: str) -> tuple[str | None, str]:
    """Part ``NAME=RANKER`` into the name, ``None`` without one, and the ranker.

    Args:
        text: what the user wrote.

    Example:
        >>> split_name("sft=policy:runs/sft"), split_name("judge:m@http://a/v1?x=1")
        (('sft', 'policy:runs/sft'), (None, 'judge:m@http://a/v1?x=1'))
    """
    found = _NAMED.match(text)
    return (None, text) if found is None else (found[1], text[found.end() :])


def check_ranker_name(text: str) -> None:
    """Refuse what :func:`make_ranker` would refuse, as far as it is seen without loading torch.

    Args:
        text: what the user wrote.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: the name is unknown, or what stands behind it does not fit.
    """
    _, name = split_name(text)
    kind, colon, rest = name.partition(":")
    if name in PLAIN:
        return
    if not colon or not rest:
        close = difflib.get_close_matches(kind, [*PLAIN, *WITH_MORE], n=1)
        hint = f": did you mean {close[0] + (':...' if close[0] in WITH_MORE else '')!r}?" if close else "."
        raise ValueError(f"unknown ranker {text!r}{hint} Choose from {_CHOICES}")
    check = _CHECKS.get(kind)
    if check is not None:
        check(name, rest)


def make_ranker(text: str, options: Options | None = None) -> Ranker:
    """Make a ranker out of its name.

    Args:
        text: one of the names in this module's text.
        options: how it is loaded.

    Returns:
        The ranker; its ``name`` is what stood in front of ``=``, else its own.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: the name is unknown, or what stands behind it does not fit: a save without such a model, a base model that
            is another one now; or a class of your own does not make a ranker.
    """
    check_ranker_name(text)
    own, name = split_name(text)
    ranker = _make(name, options or Options())
    check_ranker(ranker)
    if own is not None:
        ranker.name = own
    return ranker


def make_rankers(texts: Sequence[str], options: Options | None = None) -> list[Ranker]:
    """Make several rankers, which must have different names.

    Args:
        texts: names, see :func:`make_ranker`.
        options: how they are loaded.

    Raises:
        FileNotFoundError: see :func:`make_ranker`.
        ValueError: see :func:`make_ranker`; or two of them have the same name.
    """
    for text in texts:
        check_ranker_name(text)
    rankers: list[Ranker] = []
    for text in texts:
        ranker = make_ranker(text, options)
        if any(ranker.name == other.name for other in rankers):
            raise ValueError(
                f"two rankers are called {ranker.name!r}: give one another name, NAME={split_name(text)[1]}"
            )
        rankers.append(ranker)
    return rankers


# ---------------------------------------------------------------------- checks before anything is loaded
def _check_save(name: str, rest: str) -> None:
    for path in rest.split("@"):
        found = saved_model(path)
        if not Path(found).is_file():
            raise FileNotFoundError(
                f"ranker {name!r}: no saved model at {found!r}; expected the zip that an algorithm's save(path) wrote, or the "
                "folder of a run"
            )


def _check_policy(name: str, rest: str) -> None:
    found = saved_model(rest)
    if found.endswith(".zip"):  # else a base model, which may be an alias or a hub id
        _check_save(name, found)


def _check_folder(name: str, rest: str) -> None:
    folder = Path(rest.partition("#")[0])
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"ranker {name!r}: no model in {str(folder)!r}; expected a folder with config.json, which save_pretrained wrote"
        )


def _check_labels(name: str, rest: str) -> None:
    if rest not in LABELS:
        raise ValueError(f"ranker {name!r}: unknown labels {rest!r}; choose from {', '.join(LABELS)}")


def _check_noise(name: str, rest: str) -> None:
    size, at, kind = rest.partition("@")
    try:
        fits = 0 <= float(size) < float("inf")
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"ranker {name!r}: expected the noise as a number of 0 or more, for example noise:0.05, got {size!r}"
        )
    if at:
        _check_labels(name, kind)


def _check_judge(name: str, rest: str) -> None:
    model, at, url = rest.rpartition("@")
    if not (model and at and url):
        raise ValueError(f"ranker {name!r}: expected judge:MODEL@URL, for example judge:qwen@http://127.0.0.1:8000/v1")


def _check_mean(name: str, rest: str) -> None:
    parts = rest.split("+")
    if len(parts) < 2:
        raise ValueError(f"ranker {name!r}: a mean needs two rankers or more, mean:A+B")
    for part in parts:
        check_ranker_name(part)


def _check_prover(name: str, rest: str) -> None:
    k, _, inner = rest.partition(":")
    if not k.isdecimal() or int(k) < 1 or not inner:
        raise ValueError(
            f"ranker {name!r}: expected prover:K:RANKER with K of 1 or more, for example prover:4:prm:SAVE"
        )
    check_ranker_name(inner)


_CHECKS: Mapping[str, Callable[[str, str], None]] = {
    "labels": _check_labels,
    "noise": _check_noise,
    "policy": _check_policy,
    "prm": _check_save,
    "implicit": _check_save,
    "classifier": _check_folder,
    "stepwise": _check_folder,
    "judge": _check_judge,
    "mean": _check_mean,
    "prover": _check_prover,
}


# ---------------------------------------------------------------------- making
def _make(name: str, options: Options) -> Ranker:
    kind, _, rest = name.partition(":")
    plain: dict[str, Callable[[], Any]] = {
        "uniform": UniformRanker,
        "length": LengthRanker,
        "oracle": LabelRanker,
        "shuffled": lambda: ShuffledRanker(seed=options.seed),
        "labels": lambda: LabelRanker(rest),
        "noise": lambda: _noise(rest, options.seed),
        "mean": lambda: MeanRanker([make_ranker(part, options) for part in rest.split("+")]),
        "judge": lambda: _judge(rest, options),
        "prover": lambda: _prover(rest, options),
    }
    if kind in plain:
        return cast("Ranker", plain[kind]())
    if kind in ("policy", "prm", "implicit"):
        return _of_save(kind, rest, options)
    if kind in ("classifier", "stepwise"):
        return _of_folder(kind, rest, options)
    thing = import_object(name, "ranker")
    if not isinstance(thing, type):
        return cast("Ranker", thing)
    try:
        return cast("Ranker", thing())
    except TypeError as error:
        raise ValueError(f"ranker {name!r}: the class cannot be made without arguments ({error})") from error


def _noise(rest: str, seed: int) -> LabelRanker:
    size, _, kind = rest.partition("@")
    return LabelRanker(kind or "oracle", float(size), seed)


def _prover(rest: str, options: Options) -> Any:
    from algorithms.bench.provers import ProverRanker

    k, _, inner = rest.partition(":")
    return ProverRanker(make_ranker(inner, options), int(k))


def _judge(rest: str, options: Options) -> Any:
    from algorithms.bench.judge import JudgeRanker

    model, _, url = rest.rpartition("@")
    return JudgeRanker.of_server(url, model, **options.server)


def _of_save(kind: str, rest: str, options: Options) -> Ranker:
    # Torch takes seconds to load, and chance needs none of it.
    from algorithms.bench import saves

    if kind == "policy":
        return saves.PolicyRanker.load(rest, base=options.base, device=options.device)
    if kind == "prm":
        return saves.PRMRanker.load(rest, base=options.base, device=options.device)
    path, _, reference = rest.partition("@")
    return saves.ImplicitRanker.load(path, reference or None, base=options.base, device=options.device)


def _of_folder(kind: str, rest: str, options: Options) -> Ranker:
    from algorithms.bench import classifiers

    folder, _, label = rest.partition("#")
    if kind == "stepwise":
        return classifiers.StepwiseRanker.load(folder, device=options.device)
    return classifiers.ClassifierRanker.load(folder, label or None, device=options.device)
