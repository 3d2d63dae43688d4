"""Configurations and run folders of other people: they say what is learnt, not which code runs on this machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from algorithms.cli import configuration
from algorithms.cli.main import build_parser, main
from algorithms.cli.train_options import RULES

GRANTED = {
    "a setting": "algo: grpo\nset: {policy_kwargs: {trust_remote_code: true}}",
    "a dotted setting": 'algo: grpo\nset: {"policy_kwargs.trust_remote_code": true}',
    "a word": 'algo: grpo\nset: {policy_kwargs: {trust_remote_code: "yes"}}',
    "of a reward": "algo: grpo\nreward: progress\nreward_kwargs: {trust_remote_code: 1}",
    "of a part of a reward": "algo: grpo\nreward: sum\nreward_kwargs: {parts: [{trust_remote_code: true}]}",
    "of an environment": "algo: grpo\nenv_kwargs: {engine: textworld, trust_games: true}",
}
NAMED = {
    "a reward that is a function of the system": (
        "algo: grpo\nreward: os:system\nreward_kwargs: {command: touch x}",
        "os:system",
    ),
    "an algorithm": ("algo: subprocess:Popen", "subprocess:Popen"),
    "a module": ("algo: grpo\nimport: [antigravity]", "antigravity"),
    "an environment of Python's own modules": ("algo: grpo\nenv: this:My-v0", "this:My-v0"),
    "a Ray cluster": ("algo: grpo\nray: 192.0.2.1:6379", "192.0.2.1:6379"),
    "a reader": ('algo: grpo\nenv_kwargs: {parse: "os:system"}', "os:system"),
    "a service that gets the curves": ("algo: grpo\nlog: wandb", "wandb"),
    "services that get the curves": ("algo: grpo\nlog: [mlflow]", "mlflow"),
    "a judge on another machine": (
        "algo: grpo\nreward: judge:https://judge.example/v1",
        "judge:https://judge.example/v1",
    ),
    "a part of a reward": ('algo: grpo\nreward: sum\nreward_kwargs: {parts: [{reward: "os:system"}]}', "os:system"),
}


def read(path: Path, text: str, *words: str, verb: str = "train") -> dict[str, Any]:
    path.write_text(text)
    return configuration.read_config(build_parser()[1][verb], path, words)


@pytest.mark.parametrize("text", GRANTED.values(), ids=GRANTED)
def test_a_configuration_cannot_grant_what_only_the_command_line_may(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"config\.yaml says trust_\w+, which lets files of other people run code"):
        # Even where the command line says it: the file is somebody else's, and what else it holds was not meant.
        read(tmp_path / "config.yaml", text, "--set", "policy_kwargs.trust_remote_code=true", "--trust-games")
    assert read(tmp_path / "config.yaml", text.replace("true", "false").replace('"yes"', "false").replace("1", "false"))


@pytest.mark.parametrize(("text", "name"), NAMED.values(), ids=NAMED)
def test_names_of_code_count_where_the_command_line_says_them_too(tmp_path: Path, text: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"names '{name}'.*say it on the command line, too"):
        read(tmp_path / "config.yaml", text)
    assert read(tmp_path / "config.yaml", text, "--any", name)


OWN = ("algo: my_module:Mine", "algo: grpo\nimport: [my_module]", "algo: grpo\nenv: my_module:My-v0")


@pytest.mark.parametrize("text", OWN)
def test_modules_of_the_users_own_need_not_be_said_again_but_those_beside_the_file(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, elsewhere = tmp_path / "project" / "runs", tmp_path / "project"
    run.mkdir(parents=True)
    (elsewhere / "my_module.py").write_text("")
    monkeypatch.chdir(elsewhere)
    assert read(run / "config.yaml", text)
    (run / "my_module.py").write_text("")
    for place in (elsewhere, run):
        monkeypatch.chdir(place)
        with pytest.raises(ValueError, match=r"names 'my_module.*say it on the command line, too"):
            read(run / "config.yaml", text)
        assert read(run / "config.yaml", text, "--any", text.split()[-1].strip("[]"))


def test_the_name_of_another_key_counts_only_on_the_command_line(tmp_path: Path) -> None:
    text = "policy: openai:http://127.0.0.1:1/v1\napi_key_env: AWS_SECRET_ACCESS_KEY"
    with pytest.raises(ValueError, match="AWS_SECRET_ACCESS_KEY"):
        read(tmp_path / "config.yaml", text, verb="eval")
    assert read(tmp_path / "config.yaml", text, "--api-key-env", "AWS_SECRET_ACCESS_KEY", verb="eval")


def test_a_folders_name_does_not_send_curves_away(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names 'wandb'"):
        read(tmp_path / "config.yaml", "algo: grpo\nlog: wandb", "--out", "runs/wandb")
    assert read(tmp_path / "config.yaml", "algo: grpo\nlog: wandb", "--log=wandb")["log"] == ["wandb"]


@pytest.mark.parametrize(
    ("address", "here"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://localhost/v1", True),
        ("http://[::1]:8/v1", True),
        ("https://api.example.com/v1", False),
        ("http://127.0.0.1.example.com/v1", False),
        ("http://[::1/v1", False),
        ("nothing", False),
    ],
)
def test_a_player_on_another_machine_counts_only_on_the_command_line(tmp_path: Path, address: str, here: bool) -> None:
    """It would be sent the games' texts, and the key in OPENAI_API_KEY."""
    text = f"policy: 'openai:{address}'"
    if here:
        assert read(tmp_path / "config.yaml", text, verb="eval")
        return
    with pytest.raises(ValueError, match="on the command line, too"):
        read(tmp_path / "config.yaml", text, verb="eval")
    assert read(tmp_path / "config.yaml", text, f"openai:{address}", verb="eval")


def test_ordinary_names_are_no_code(tmp_path: Path) -> None:
    text = "algo: ppo\nenv: agentprm_gym:ALFWorld-v0\nreward: prm:runs/a\nset: {critic: 'prm:runs/a.zip'}\npolicy: owner/name"
    assert read(tmp_path / "config.yaml", text)["reward"] == "prm:runs/a"


@pytest.mark.parametrize("words", [("--config", "config.yaml"), ("--resume", ".")])
def test_nothing_runs_by_way_of_the_command_line(
    words: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for text, _ in NAMED.values():
        Path("config.yaml").write_text(text)
        assert main(["train", *words]) == 2
        assert "on the command line" in capsys.readouterr().err
    assert not Path("x").exists()


def test_grants_are_not_written_and_do_not_make_another_run(tmp_path: Path) -> None:
    parser, verbs = build_parser()
    grant = ["--set", "policy_kwargs.trust_remote_code=true", "gamma=0.5"]
    args = parser.parse_args(["train", "--algo", "grpo", *grant])
    configuration.write_config(verbs["train"], tmp_path, args, RULES)
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert written["set"] == {"gamma": 0.5}
    for more in ([], grant[:2]):
        parser, verbs = build_parser()
        words = ["train", "--resume", str(tmp_path), *more]
        again = configuration.complete(parser, verbs["train"], words, RULES)
        assert again.settings["gamma"] == 0.5
        assert bool(again.settings.get("policy_kwargs")) is bool(more)


BOMBS = {
    "aliases of aliases": "a: &a [x, x]\nb: &b [*a, *a]\nset: {c: [*b, *b]}",
    "an alias to itself": "set: &a {b: *a}",
    "deep nesting": "set: " + "[" * 50_000 + "]" * 50_000,
    "a large file": "# " + "x" * 300_000,
    "tags": "set: !!python/object/apply:os.system ['touch x']",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_yaml_that_grows_is_refused(tmp_path: Path, text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ValueError, match="--config: "):
        read(tmp_path / "config.yaml", text)
    assert time.perf_counter() - start < 5
