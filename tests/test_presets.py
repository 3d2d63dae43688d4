"""Presets of ``agentprm train``: each fits its algorithm, they are listed, and what the command line says counts more."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from algorithms.cli import presets
from tests.cli_helpers import SMALL_PRM, SMALL_RUN, Cli

NAMES = presets.names()


@pytest.fixture(scope="module")
def games() -> Any:
    """Environments that the constructors look at."""
    from tests.algorithm_helpers import make_alfworld

    return make_alfworld()


def parsed(*words: str) -> Any:
    """The options of a line of ``agentprm train``."""
    from algorithms.cli import configuration
    from algorithms.cli.main import build_parser

    parser, verbs = build_parser()
    args = parser.parse_args(["train", *words])
    return configuration.complete(parser, verbs["train"], ["train", *words], args.rules)


def test_the_presets_that_are_promised_are_there() -> None:
    assert {"sft-tiny", "agentprm-tiny", "agentprm-paper", "grpo-tiny", "inverseprm-tiny"} <= set(NAMES)
    assert {"sft-0.5b", "agentprm-0.5b", "sft-3b", "agentprm-3b"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_algorithm_takes_every_option_and_value(name: str, learner: str, games: Any, tmp_path: Path) -> None:
    from algorithms import registry
    from algorithms.cli import settings, train_options

    args = parsed("--preset", name, "--policy", learner, "--out", os.fspath(tmp_path / "run"))
    train_options.check_options(args)
    algorithm = registry.find_algorithm(args.algo)
    settings.check_settings(algorithm, args.settings)
    make: Any = algorithm
    model = make(args.policy, games, **args.settings)  # refuses values out of range, and options without effect
    assert model.learning_rate == args.settings.get("learning_rate", model.learning_rate)


@pytest.mark.parametrize("name", NAMES)
def test_what_nobody_has_trained_with_says_so(name: str) -> None:
    assert ("UNTESTED" in presets.purpose(name)) == (parsed("--preset", name).policy != "tiny")


def test_the_papers_preset_is_the_papers_recipe(learner: str, games: Any) -> None:
    from algorithms import AgentPRM

    args = parsed("--preset", "agentprm-paper")
    mine = AgentPRM(learner, games, n_iterations=args.iterations, **args.settings)
    paper = AgentPRM.paper(learner, games)
    assert mine.n_iterations == paper.n_iterations
    for stage in ("rollout", "fit", "improve"):
        assert asdict(getattr(mine, stage)) == asdict(getattr(paper, stage))


def test_the_tiny_agentprm_is_the_demos(learner: str, games: Any) -> None:
    """``agentprm demo`` trains with the defaults; the preset spells some of them out."""
    from algorithms import AgentPRM

    args = parsed("--preset", "agentprm-tiny")
    mine, demos = AgentPRM(learner, games, **args.settings), AgentPRM(learner, games)
    assert mine.learning_rate == demos.learning_rate
    for stage in ("rollout", "fit", "improve"):
        assert asdict(getattr(mine, stage)) == asdict(getattr(demos, stage))


def test_a_configuration_counts_more_and_the_command_line_most(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("iterations: 5\nn_envs: 3\nset: {improve: {beta: 0.7}, gamma: 0.9}\n")
    words = ("--preset", "agentprm-tiny", "--config", os.fspath(tmp_path / "more.yaml"))
    args = parsed(*words, "--n-envs", "2", "--set", "gamma=0.8")
    assert (args.algo, args.iterations, args.n_envs) == ("agentprm", 5, 2)
    assert args.settings["improve"] == {"objective": "online_dpo", "beta": 0.7} and args.settings["gamma"] == 0.8


def test_a_preset_trains_and_its_run_is_described_without_it(cli: Cli, learner: str, tmp_path: Path) -> None:
    import yaml

    from algorithms import AgentPRM

    small = (*SMALL_PRM, "rollout.n_branch_states=2", "n_validation_games=2", "improve.beta=0.3")
    words = ("train", "--preset", "agentprm-tiny", "--policy", learner, "--iterations", 1, "--out", "run", *SMALL_RUN)
    done = cli(*words, "--set", *small)
    assert done.status == 0, done.err
    model = AgentPRM.load(tmp_path / "run" / "model.zip")
    assert model.improve.beta == 0.3 and model.learning_rate == 1e-3
    # The run can be made again when the preset is another one.
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert "preset" not in config and config["algo"] == "agentprm" and config["set"]["prm"]["form"] == "log_prob"
    going_on = cli("train", "--resume", "run", "--preset", "agentprm-tiny")
    assert going_on.status == 2 and "leave out --preset" in going_on.err


def test_the_list_names_each_with_its_purpose(cli: Cli, tmp_path: Path) -> None:
    done = cli("train", "--preset", "list")
    assert done.status == 0
    for name in NAMES:
        assert f"{name}  {presets.purpose(name)}" in done.out
    assert not any(tmp_path.iterdir())


def test_an_unknown_preset_is_refused_with_those_that_are_known(cli: Cli) -> None:
    done = cli("train", "--preset", "agentprm-tini")
    assert done.status == 2 and "did you mean 'agentprm-tiny'" in done.err and "Traceback" not in done.err


def test_a_configuration_cannot_name_a_preset(cli: Cli, tmp_path: Path) -> None:
    """It says itself what it holds."""
    (tmp_path / "config.yaml").write_text("preset: sft-tiny\n")
    done = cli("train", "--config", "config.yaml")
    assert done.status == 2 and "'preset'" in done.err
