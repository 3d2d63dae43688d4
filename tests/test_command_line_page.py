"""docs/command_line.md: every line is one that the command line takes, and what is cheap is run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.algorithm_helpers import make_alfworld, make_model
from tests.cli_helpers import Cli

PAGE = (Path(__file__).parents[1] / "docs" / "command_line.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
YAML = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("line", LINES)
def test_every_line_is_taken(line: str) -> None:
    from algorithms.cli.main import build_parser

    program, *words = shlex.split(line)
    assert program == "agentprm"
    parser, _ = build_parser()
    parser.parse_args(words)


@pytest.mark.parametrize("line", [line for line in LINES if "--set" in line and "my_module" not in line])
def test_settings_are_those_of_the_algorithms(line: str) -> None:
    from algorithms.cli.main import build_parser
    from algorithms.cli.settings import check_settings
    from algorithms.registry import find_algorithm

    parser, _ = build_parser()
    args = parser.parse_args(shlex.split(line)[1:])
    check_settings(find_algorithm(getattr(args, "algo", None) or "agentprm"), args.settings)


def test_the_configuration_is_read(tmp_path: Path) -> None:
    from algorithms.cli.configuration import read_config
    from algorithms.cli.main import build_parser
    from algorithms.cli.settings import check_settings
    from algorithms.registry import find_algorithm

    text, _ = YAML
    (tmp_path / "study.yaml").write_text(text)
    values = read_config(build_parser()[1]["train"], tmp_path / "study.yaml")
    assert values["settings"]["improve"] == {"beta": 0.1, "n_updates": 100}
    check_settings(find_algorithm(values["algo"]), values["settings"])


def test_the_space_is_read(tmp_path: Path) -> None:
    from algorithms.cli.settings import check_settings, nested
    from algorithms.cli.sweep import read_space
    from algorithms.registry import find_algorithm

    _, text = YAML
    (tmp_path / "space.yaml").write_text(text)
    for one in read_space(tmp_path / "space.yaml"):
        check_settings(find_algorithm("grpo"), nested({one.name: one.ends()[0]}))


@pytest.mark.parametrize("line", [line for line in LINES if re.match(r"agentprm (games|demos) ", line)])
def test_games_and_demonstrations(cli: Cli, line: str) -> None:
    assert cli(*shlex.split(line)[1:]).status == 0


def test_the_example_of_ones_own_classes(cli: Cli, learner: str, tmp_path: Path) -> None:
    from algorithms import SFT

    (code,) = PYTHON
    # Names that other tests of the page do not register.
    code = code.replace("sign_grpo", "sign_grpo_again").replace("Fruit-v0", "Fruit-v1")
    (tmp_path / "my_module.py").write_text(code)
    make_model(SFT, learner, make_alfworld()).save(tmp_path / "runs" / "sft" / "model.zip")
    lines = [line for line in LINES if "my_module" in line]
    assert len(lines) == 3
    lines = [line.replace("sign_grpo", "sign_grpo_again").replace("Fruit-v0", "Fruit-v1") for line in lines]
    for line in lines:
        words = shlex.split(line)[1:]
        if words[0] == "train":  # the same with a smaller budget
            small = ("n_games=2", "group_size=2", "batch_size=2")
            words = [*words, "--timesteps", "1", "--n-envs", "4", "--set", *small]
            words += [] if "--policy" in words else ["--policy", learner]
            words += [] if "--env" in words else ["--games", "generated"]
        done = cli(*words)
        assert done.status == 0, done.err
