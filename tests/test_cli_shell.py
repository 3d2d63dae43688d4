"""The manners of a shell: completion in a real bash, results as JSON, and the statuses that commands end with."""

from __future__ import annotations

import argparse
import json
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from algorithms.cli.completion import SHELLS
from algorithms.cli.main import build_parser
from algorithms.cli.output import provenance
from tests.bench_helpers import small_panel
from tests.cli_helpers import GENERATED, SMALL_GROUPS, SMALL_RUN, Cli

# ---------------------------------------------------------------------- completion


@pytest.fixture
def complete(cli: Cli, tmp_path: Path) -> Callable[[str], list[str]]:
    """What bash offers where Tab is pressed at the end of a line."""
    (tmp_path / "completion.sh").write_text(cli("completion", "bash").out)

    def ask(line: str) -> list[str]:
        words = line.split(" ")
        program = (
            "source completion.sh\n"
            f"COMP_WORDS=({' '.join(repr(word) for word in words)})\nCOMP_CWORD={len(words) - 1}\n"
            '_agentprm\nprintf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "--norc", "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True
        )
        assert done.stderr == ""
        return done.stdout.split()

    return ask


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("agentprm ev", ["eval"]),
        ("agentprm --debug dem", ["demo", "demos"]),
        ("agentprm eval --spl", ["--split"]),
        ("agentprm eval --split valid_", ["valid_seen", "valid_train", "valid_unseen"]),
        ("agentprm eval --temperature ", []),
        ("agentprm train --algo inv", ["inverseprm"]),
        ("agentprm train --preset grpo", ["grpo-tiny"]),
        ("agentprm train --log wandb ml", ["mlflow"]),  # any number of values
        ("agentprm train --reward oracle_", ["oracle_advantage", "oracle_potential", "oracle_q"]),
        ("agentprm eval --out runs/x --split valid_u", ["valid_unseen"]),
        ("agentprm eval --out runs/x smol", ["smollm2-135m"]),
        ("agentprm games gen", ["generate"]),
        ("agentprm completion f", ["fish"]),
    ],
)
def test_bash_completes(complete: Callable[[str], list[str]], line: str, wanted: list[str]) -> None:
    assert sorted(complete(line)) == wanted


def test_every_option_of_every_verb_is_completed(complete: Callable[[str], list[str]]) -> None:
    for name, verb in build_parser()[1].items():
        known = {option for action in verb._actions for option in action.option_strings if option.startswith("--")}
        assert set(complete(f"agentprm {name} --")) == known, name


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_a_script(cli: Cli, shell: str) -> None:
    done = cli("completion", shell)
    assert done.status == 0
    for name in build_parser()[1]:
        assert name in done.out
    assert ("bashcompinit" in done.out) == (shell == "zsh")
    if shell == "fish":  # a line for each option, quotes that end
        assert all(line.startswith(("complete -c agentprm -n", "#")) for line in done.out.splitlines())
        assert all(line.replace("\\'", "").count("'") % 2 == 0 for line in done.out.splitlines())


def test_zsh_reads_its_script(cli: Cli, tmp_path: Path) -> None:
    import shutil

    if shutil.which("zsh") is None:
        pytest.skip("needs zsh")
    (tmp_path / "completion.zsh").write_text(cli("completion", "zsh").out)
    done = subprocess.run(["zsh", "-f", "-c", "source completion.zsh && which _agentprm"], cwd=tmp_path, check=False)
    assert done.returncode == 0


# ---------------------------------------------------------------------- JSON

#: Verbs that show something to people only: a game, a server, a script.
WITHOUT_JSON = {"play", "serve", "completion"}


def test_every_verb_with_a_result_has_json() -> None:
    def has(verb: argparse.ArgumentParser) -> bool:
        return any("--json" in action.option_strings for action in verb._actions)

    assert {name for name, verb in build_parser()[1].items() if not has(verb)} == WITHOUT_JSON


def test_standard_output_is_nothing_but_json(cli: Cli, saved: Path, tmp_path: Path) -> None:
    from agentprm_gym.bench import write_panel

    def run(*words: object) -> object:
        done = cli(*words, "--json")
        assert done.status == 0, done.err
        return json.loads(done.out)

    demos = run("demos", "--n", 2, *GENERATED)
    assert demos["file"] == "demos.jsonl.gz" and demos["episodes"] == 2
    assert run("export-data", "demos.jsonl.gz", "--to", "chat", "--out", "chat.jsonl")["rows"] == 2
    assert run("export-data", "chat.jsonl", "--back", "--out", "again.jsonl", *GENERATED)["episodes"] == 2
    assert run("export", saved / "sft.zip", "--out", "adapter")["format"] == "peft"
    evaluated = run("eval", saved / "sft.zip", "--max-games", 2, "--n-envs", 2, "--out", "one", *GENERATED)
    assert evaluated == json.loads((tmp_path / "one" / "result.json").read_text())
    assert cli("eval", saved / "sft.zip", "--max-games", 2, "--n-envs", 2, "--out", "two", *GENERATED).status == 0
    compared = run("compare", "one", "two")
    assert [row["folder"] for row in compared["rows"]] == ["one", "two"]
    assert run("report", "one", "--out", "report.html")["bytes"] == (tmp_path / "report.html").stat().st_size
    write_panel(tmp_path / "small.jsonl.gz", small_panel(), name="small")
    bench = run("bench", "uniform", "--panel", "small.jsonl.gz", "--n-samples", 0)
    assert bench["rows"][0]["name"] == "uniform"
    assert run("games", "--split", "valid_seen", *GENERATED)[0]["split"] == "valid_seen"
    listed = run("games", "--split", "valid_seen", "--list", *GENERATED)
    assert len(listed["valid_seen"]) == run("games", "--split", "valid_seen", *GENERATED)[0]["games"]
    assert run("games", "generate", "--n", 1, "--out", "generated")["new"] == 1
    assert run("models")[0]["name"] == "tiny"
    trained = run(
        *("train", "--algo", "grpo", "--policy", saved / "sft.zip", "--timesteps", 1, "--out", "grpo"),
        *(*SMALL_RUN, "--set", *SMALL_GROUPS),
    )
    assert trained == [{"seed": 0, "model": "grpo/model.zip"}]
    assert "json" not in (tmp_path / "grpo" / "config.yaml").read_text()
    presets = run("train", "--preset", "list")
    assert {"name", "purpose", "file"} == set(presets[0])


def test_errors_do_not_stand_in_the_json(cli: Cli) -> None:
    done = cli("eval", "nowhere.zip", "--json")
    assert (done.status, done.out) == (2, "")
    assert "nowhere.zip" in done.err


# ---------------------------------------------------------------------- saves and settings
def test_info_says_what_a_save_holds(cli: Cli, saved: Path) -> None:
    import hashlib

    path = saved / "agent.zip"
    done = cli("info", path)
    assert done.status == 0, done.err
    assert "AgentPRM" in done.out and "rollout.n_games" in done.out
    found = json.loads(cli("info", path, "--json").out)
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert set(found["adapters"]) == {"policy", "prm"} and found["adapters"]["prm"] > 0
    assert found["settings"]["rollout"]["n_games"] == 4
    assert cli("info", saved / "nothing.zip").status == 2


def test_every_setting_is_listed(cli: Cli) -> None:
    from algorithms import AgentPRM
    from algorithms.cli.settings import check_settings, nested

    done = cli("train", "--algo", "agentprm", "--settings", "--json")
    assert done.status == 0, done.err
    found = {row["name"]: row for row in json.loads(done.out)}
    assert found["gamma"]["default"] == AgentPRM("tiny", "TextIdentity-v0", _init_setup_model=False).gamma
    assert "rollout.n_games" in found and "improve.beta" in found and "policy_kwargs.action_mode" in found
    assert [name for name, row in found.items() if not row["about"]] == []
    for name, row in found.items():
        if row["default"] is not None:
            check_settings(AgentPRM, nested({name: row["default"]}))
    assert cli("train", "--settings").status == 2


# ---------------------------------------------------------------------- doctor
def test_doctor_looks_for_every_extra_that_a_user_may_want(cli: Cli) -> None:
    from packaging.requirements import Requirement

    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    told = {row["what"] for row in json.loads(cli("doctor", "--json").out)}
    for extra in set(extras) - {"dev", "docs", "browser", "serving"}:
        assert told & {Requirement(line).name for line in extras[extra]}, extra


def test_a_results_command_names_no_folder_of_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["table1", "--budget", "small", "--runs", "/home/me/x", "--seeds", "0", "1", "--out=/home/me/y", "--work"]
    monkeypatch.setattr("sys.argv", words)
    assert provenance()["command"].endswith(" --budget small --seeds 0 1")
