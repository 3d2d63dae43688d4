"""``agentprm train`` and ``demo``: saved, not overwritten, configured, taken up again; classes of the user's own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentprm_gym.episodes import read_episodes, write_episodes
from tests.algorithm_helpers import echo_demonstrations
from tests.cli_helpers import GENERATED, SMALL_AGENT_PRM, SMALL_GROUPS, SMALL_PRM, SMALL_RUN, Cli, same_models

STOPPING = "tests.stopping:Stopping"


def test_training_saves_and_does_not_overwrite(cli: Cli, learner: str, tmp_path: Path) -> None:
    sft = ("train", "--algo", "sft", "--policy", learner, "--n-demos", 2, "--epochs", 1, "--out", "sft", *SMALL_RUN)
    done = cli(*sft, "--set", "batch_size=2", "learning_rate=0.01")
    assert done.status == 0 and "agentprm eval" in done.out
    names = {p.name for p in (tmp_path / "sft").iterdir()}
    assert names == {"model.zip", "settings.json", "config.yaml", "demos.jsonl.gz", "tb", "resume"}
    again = cli(*sft)
    assert again.status == 2 and "--overwrite" in again.err
    assert cli(*sft, "--overwrite").status == 0
    # A run's folder stands for its model.
    agent = ("train", "--algo", "agentprm", "--policy", "sft", "--iterations", 2, "--out", "agent", *SMALL_RUN)
    done = cli(*agent, "--set", *SMALL_AGENT_PRM)
    assert done.status == 0, done.err
    lines = [line for line in done.out.splitlines() if re.match(r"  (starting point|iteration)", line)]
    assert [line.split(":")[0].strip() for line in lines] == ["starting point", "iteration 1", "iteration 2"]
    assert (tmp_path / "agent" / "model.zip").is_file()


@pytest.mark.parametrize("algo", ["sft", "agentprm", "inverseprm", "ppo", "rft", "onlinedpo"])
def test_the_table_of_options_is_what_the_constructors_say(algo: str) -> None:
    """Options of the algorithms are known without torch; a class of the user's own is asked. Both say the same."""
    from algorithms import registry
    from algorithms.cli.train_options import learns_from, own_options

    path = registry.BUILT_IN[algo]
    module = registry.import_object(path, "algorithm").__module__
    same = f"{module}:{path.partition(':')[2]}"
    assert own_options(algo) == own_options(same) and learns_from(algo) == learns_from(same)


# ---------------------------------------------------------------------- settings and configurations
def test_a_pattern_in_brackets_is_a_text() -> None:
    import argparse

    from algorithms.cli import settings

    parser = argparse.ArgumentParser()
    settings.add_option(parser, "--set", "settings", dest="settings")
    pattern = "[Aa]ction: (.*)"
    assert parser.parse_args(["--set", f"policy_kwargs.parse={pattern}"]).settings == {
        "policy_kwargs": {"parse": pattern}
    }


def test_a_configuration_runs_again_and_the_command_line_counts_more(cli: Cli, learner: str, tmp_path: Path) -> None:
    import yaml

    from algorithms import GRPO

    given = ("--policy", learner, "--timesteps", "1e0", "--reward", "progress", "--reward-kwargs", '{"coef": 0.5}')
    done = cli("train", "--algo", "grpo", *given, "--set", *SMALL_GROUPS, "--out", "first", *SMALL_RUN)
    assert done.status == 0, done.err
    config = yaml.safe_load((tmp_path / "first" / "config.yaml").read_text())
    assert config["algo"] == "grpo" and config["reward"] == "progress" and config["reward_kwargs"] == {"coef": 0.5}
    assert config["set"] == {"n_games": 2, "group_size": 2, "batch_size": 2} and config["timesteps"] == 1
    assert "out" not in config
    assert cli("train", "--config", "first/config.yaml", "--out", "second").status == 0
    assert same_models(*(tmp_path / run / "model.zip" for run in ("first", "second")))
    assert cli("train", "--config", "first/config.yaml", "--out", "third", "--set", "n_games=3").status == 0
    assert GRPO.load(tmp_path / "third" / "model.zip").n_games == 3


def test_groups_of_settings_have_dotted_names_and_are_nested_in_yaml(cli: Cli, learner: str, tmp_path: Path) -> None:
    from algorithms import AgentPRM

    # Letters beyond ASCII are read wherever the tests run.
    (tmp_path / "config.yaml").write_text(
        f"# größer\nalgo: agentprm\npolicy: {learner}\niterations: 1\nn_envs: 4\nthreads: 1\ngames: generated\n"
        "set:\n  n_validation_games: 2\n  gamma: 9e-1\n  prm: {n_epochs: 1, form: log_prob}\n"
        "  rollout: {n_games: 2, n_repeats: 1, n_branch_states: 2}\n  improve: {n_updates: 1, beta: 0.3}\n",
        encoding="utf-8",
    )
    done = cli(
        "train", "--config", "config.yaml", "--out", "run", "--set", "improve.beta=0.1", 'rollout={"n_games": 3}'
    )
    assert done.status == 0, done.err
    model = AgentPRM.load(tmp_path / "run" / "model.zip")
    assert (model.gamma, model.fit.form, model.fit.n_epochs) == (0.9, "log_prob", 1)
    assert (model.improve.beta, model.improve.n_updates) == (0.1, 1)
    assert (model.rollout.n_games, model.rollout.n_branch_states) == (3, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- ppo", "algo: ppo"),
        ("algo: [", "is not YAML"),
        ("algo: grpo\nlearning_rate: 1", "'learning_rate'"),
        ("algo: grpo\niteration: 1", "did you mean 'iterations'"),
        ("algo: grpo\nset: 3", "{gamma: 0.9"),
        ("algo: grpo\nset: {gama: 1}", "did you mean 'gamma'"),
        ("algo: grpo\nn_envs: many", "--n-envs): expected a whole number"),
        ("algo: grpo\nn_envs: [1, 2]", "--n-envs): expected one value"),
        ("algo: grpo\noverwrite: 3", "--overwrite): expected true or false"),
        ("algo: grpo\nsplit: test", "--split): expected one of train"),
        ("algo: grpo\nreward_kwargs: 3", "--reward-kwargs): expected a JSON object"),
        ("seed: 1", "algo"),
    ],
)
def test_a_wrong_configuration_says_what_is_expected(cli: Cli, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    done = cli("train", "--config", "config.yaml")
    assert done.status == 2 and said in done.err and "Traceback" not in done.err


# ---------------------------------------------------------------------- classes of the user's own
MINE = """
import gymnasium as gym
from agentprm_gym.envs.identity import TextIdentityEnv
from agentprm_gym.rewards import ProgressReward
from algorithms import GRPO, register_algorithm


class Mine(GRPO):
    "Learns from the sign of the advantage."

    def _advantages(self, samples):
        super()._advantages(samples)
        for sample in samples:
            sample.advantages[:] = (sample.advantages > 0) * 2.0 - 1.0


class Polite:
    "Pays for apples."

    name, privileged = "polite", False

    def __init__(self, coef=1.0):
        self.coef = coef

    def score(self, turns):
        import numpy as np

        return np.array([self.coef * ("apple" in turn.turns[-1].command) for turn in turns])


class Privileged(ProgressReward):
    pass


register_algorithm("mine", Mine)
gym.register("Apples-v0", TextIdentityEnv, kwargs={"words": ("apple", "bowl", "egg")})
"""


def test_an_algorithm_a_reward_and_an_environment_of_the_users_own(cli: Cli, learner: str, tmp_path: Path) -> None:
    """By module and class, and by registered names, from a file in the current folder."""
    (tmp_path / "my_classes.py").write_text(MINE)
    small = ("--policy", learner, "--n-envs", 4, "--timesteps", 1, "--set", *SMALL_GROUPS)
    reward = ("--reward", "my_classes:Polite", "--reward-kwargs", '{"coef": 0.5}')
    for out, algo in (("class", ("--algo", "my_classes:Mine")), ("name", ("--algo", "mine", "--import", "my_classes"))):
        words = ("train", *algo, "--import", "my_classes", "--env", "Apples-v0", *reward, *small, "--out", out)
        done = cli(*words, "--env-kwargs", '{"n_turns": 2}')
        assert done.status == 0, done.err
        assert "--env Apples-v0" in done.out
        assert json.loads((tmp_path / out / "settings.json").read_text())["args"]["env"] == "Apples-v0"
    assert same_models(tmp_path / "class" / "model.zip", tmp_path / "name" / "model.zip")
    done = cli("eval", "class", "--import", "my_classes", "--env", "Apples-v0", "--n-envs", 2, "--out", "result")
    assert done.status == 0 and json.loads((tmp_path / "result" / "result.json").read_text())["rows"][-1]["n"] == 3
    # What reads the true state goes around each environment.
    words = ("train", "--algo", "mine", "--import", "my_classes", "--env", "Apples-v0", *small, "--out", "privileged")
    done = cli(*words, "--reward", "my_classes:Privileged")
    assert done.status == 0, done.err
    words = ("train", "--algo", "my_classes:Mine", "--reward", "my_classes:Privileged", *small, *GENERATED)
    done = cli(*words, "--out", "alfworld")
    assert done.status == 0, done.err


def test_a_demonstrations_file_of_another_environment_is_learnt_from(cli: Cli, learner: str, tmp_path: Path) -> None:
    write_episodes(tmp_path / "demos.jsonl", echo_demonstrations())
    run = ("train", "--algo", "sft", "--policy", learner, "--env", "TextIdentity-v0", "--demos", "demos.jsonl")
    done = cli(*run, "--epochs", 1, "--n-envs", 2, "--out", "sft")
    assert done.status == 0, done.err


# ---------------------------------------------------------------------- going on
@pytest.mark.parametrize("algo", ["SFT", "GRPO"])
def test_an_interrupted_run_keeps_what_it_learnt_and_goes_on(cli: Cli, learner: str, tmp_path: Path, algo: str) -> None:
    from agentprm_gym.llm.saving import read_save

    own = {
        "SFT": ("--n-demos", 3, "--epochs", 3, "--set", "batch_size=2"),
        "GRPO": ("--timesteps", 300, "--set", *SMALL_GROUPS),
    }[algo]
    run = ("train", "--algo", STOPPING + algo, "--policy", learner, *own, *SMALL_RUN)
    assert cli(*run, "--out", "whole").status == 0
    (tmp_path / "stop").write_text("0")
    done = cli(*run, "--out", "broken")
    assert done.status == 130 and "--resume broken" in done.out and "interrupted.zip" in done.out
    assert not (tmp_path / "broken" / "model.zip").exists()
    assert read_save(tmp_path / "broken" / "interrupted.zip").manifest["counters"]["num_timesteps"] > 0
    # A folder without a result says what there is instead.
    unfinished = cli("eval", "broken", *GENERATED)
    assert unfinished.status == 2 and "--resume broken" in unfinished.err and "interrupted.zip" in unfinished.err
    (tmp_path / "stop").unlink()
    done = cli("train", "--resume", "broken")
    assert done.status == 0, done.err
    assert "expert demonstrations" not in done.out
    assert same_models(tmp_path / "whole" / "model.zip", tmp_path / "broken" / "model.zip")
    assert cli(*run, "--out", "broken").status == 2 and cli(*run, "--out", "broken", "--overwrite").status == 0


def test_a_fault_keeps_what_was_learnt(
    cli: Cli, learner: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("train", "--algo", "tests.stopping:FaultyGRPO", "--policy", learner, "--timesteps", 300, "--out", "run")
    with pytest.raises(RuntimeError, match="a fault of the user's"):
        cli(*run, "--set", *SMALL_GROUPS, *SMALL_RUN)
    assert "run/interrupted.zip" in capsys.readouterr().err
    assert (tmp_path / "run" / "interrupted.zip").is_file()


def test_inverse_prm_is_trained_and_keeps_its_demonstrations(cli: Cli, learner: str, tmp_path: Path) -> None:
    from algorithms import InversePRM

    run = ("train", "--algo", "inverseprm", "--policy", learner, "--iterations", 1, "--set", *SMALL_PRM, *SMALL_RUN)
    done = cli(*run, "--n-demos", 2, "--out", "played")
    assert done.status == 0, done.err
    assert len(list(read_episodes(tmp_path / "played" / "demos.jsonl.gz"))) == 2
    done = cli(*run, "--demos", "played/demos.jsonl.gz", "--out", "read")
    assert done.status == 0 and not (tmp_path / "read" / "demos.jsonl.gz").exists()
    assert same_models(tmp_path / "played" / "model.zip", tmp_path / "read" / "model.zip")
    assert InversePRM.load(tmp_path / "read" / "model.zip").iteration == 1
    done = cli("eval", "read/iterations/1.zip", *GENERATED, "--max-games", 2, "--max-steps", 3, "--n-envs", 2)
    assert done.status == 0, done.err


@pytest.mark.slow
def test_a_killed_run_goes_on_and_a_finished_one_says_so(cli: Cli, learner: str, tmp_path: Path) -> None:
    """A real kill, by the process itself when it has improved the policy for the second time."""
    from agentprm_gym.llm.saving import read_save

    run = ("train", "--algo", "tests.stopping:KilledAgentPRM", "--policy", learner, "--iterations", 2)
    run = (*run, "--set", *SMALL_AGENT_PRM, *SMALL_RUN)
    assert cli(*run, "--out", "whole").status == 0
    (tmp_path / "stop").touch()
    code = "import sys; from algorithms.cli import main; main(sys.argv[1:])"
    words = [str(word) for word in (*run, "--out", "killed")]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    died = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, env=env, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (tmp_path / "killed" / "model.zip").exists()
    again = cli(*run, "--out", "killed")
    assert again.status == 2 and "--resume killed" in again.err
    (tmp_path / "stop").unlink()
    done = cli("train", "--resume", "killed")
    assert done.status == 0, done.err
    assert re.search(r"iteration 2: .*validate", done.out) and "iteration 1" not in done.out
    assert "roll out" not in done.out and "fit" not in done.out
    assert same_models(tmp_path / "whole" / "model.zip", tmp_path / "killed" / "model.zip")
    for k in (1, 2):
        assert same_models(*(tmp_path / name / "iterations" / f"{k}.zip" for name in ("whole", "killed")))
    assert len(json.loads((tmp_path / "killed" / "settings.json").read_text())["resumed"]) == 1
    assert [p.name for p in (tmp_path / "killed" / "tb").iterdir()] == ["KilledAgentPRM_1"]

    before = (tmp_path / "killed" / "model.zip").read_bytes()
    done = cli("train", "--resume", "killed", "--iterations", 2)
    assert done.status == 0 and "is finished" in done.out
    assert (tmp_path / "killed" / "model.zip").read_bytes() == before
    done = cli("train", "--resume", "killed", "--iterations", 3)
    assert done.status == 0 and "iteration 3" in done.out
    assert read_save(tmp_path / "killed" / "iterations" / "3.zip").manifest["counters"]["iteration"] == 3
    # The larger number is the run's from now on.
    done = cli("train", "--resume", "killed", "--iterations", 2)
    assert done.status == 2 and "not smaller" in done.err


def test_a_run_is_resumed_as_it_was_begun(cli: Cli, learner: str, tmp_path: Path) -> None:
    run = ("train", "--algo", "grpo", "--policy", learner, "--timesteps", 1, "--set", *SMALL_GROUPS, *SMALL_RUN)
    assert cli(*run, "--out", "run").status == 0
    for words, said in [
        (("--algo", "ppo"), "--algo grpo, not ppo"),
        (("--seed", 1), "--seed"),
        (("--out", "elsewhere"), "--out"),
        (("--set", "gamma=0.5"), "gamma"),
        (("--reward", "progress"), "--reward"),
        (("--split", "valid_seen"), "--split"),
        (("--games", "auto"), "--games"),
        (("--env-kwargs", '{"max_episode_steps": 5}'), "--env-kwargs"),
        (("--config", "run/config.yaml"), "leave out --config"),
        (("--overwrite",), "leave out --overwrite"),
        (("--iterations", 3), "--iterations"),
    ]:
        done = cli("train", "--resume", "run", *words)
        assert done.status == 2 and said in done.err, words
    # What is said again, and where it runs.
    again = ("--algo", "grpo", "--set", "n_games=2", "--device", "cpu", "--n-envs", 2, "--minutes", 5, "--out", "run")
    done = cli("train", "--resume", "run", *again)
    assert done.status == 0 and "is finished" in done.out, done.err
    (tmp_path / "run" / "resume" / "state.zip").unlink()
    done = cli("train", "--resume", "run")
    assert done.status == 2 and "state.zip" in done.err and "run/config.yaml" in done.err


def test_other_games_in_the_same_folder_are_noticed(cli: Cli, learner: str, tmp_path: Path) -> None:
    """The options are as they were, and the games are not."""
    made = ("games", "generate", "--out", "mine", "--split", "train")
    assert cli(*made, "--n", 4).status == 0
    run = ("train", "--algo", "grpo", "--policy", learner, "--timesteps", 1, "--set", *SMALL_GROUPS)
    assert cli(*run, "--n-envs", 4, "--games", "mine", "--out", "run").status == 0
    assert cli(*made, "--n", 6).status == 0
    done = cli("train", "--resume", "run", "--timesteps", 9999)
    assert done.status == 2 and "number of games was 4, is now 6" in done.err


@pytest.mark.ci
def test_seeds_go_on_together(cli: Cli, learner: str, tmp_path: Path) -> None:
    run = ("train", "--algo", STOPPING + "GRPO", "--policy", learner, "--timesteps", 200, "--seeds", 3)
    run = (*run, "--set", *SMALL_GROUPS, *SMALL_RUN)
    assert cli(*run, "--out", "whole").status == 0
    (tmp_path / "stop").write_text("1")
    done = cli(*run, "--out", "broken")
    assert done.status == 130 and "--resume broken goes on" in done.out
    (tmp_path / "stop").unlink()
    done = cli("train", "--resume", "broken")
    assert done.status == 0 and "seed_0/model.zip is finished" in done.out, done.err
    for seed in range(3):
        assert same_models(*(tmp_path / name / f"seed_{seed}" / "model.zip" for name in ("whole", "broken")))


def test_training_stops_after_so_many_minutes_and_goes_on(cli: Cli, learner: str, tmp_path: Path) -> None:
    from algorithms import GRPO

    run = ("train", "--algo", "grpo", "--policy", learner, "--timesteps", 300, "--set", *SMALL_GROUPS, *SMALL_RUN)
    assert cli(*run, "--out", "whole").status == 0
    done = cli(*run, "--out", "short", "--minutes", 1e-6)
    assert done.status == 0 and "and 1 iterations; --resume short goes on" in done.out
    assert GRPO.load(tmp_path / "short" / "model.zip").iteration == 1
    done = cli("train", "--resume", "short", "--minutes", 60)
    assert done.status == 0, done.err
    assert same_models(tmp_path / "whole" / "model.zip", tmp_path / "short" / "model.zip")


# ---------------------------------------------------------------------- demo
@pytest.mark.ci
def test_the_demo_goes_on_where_it_was_interrupted(
    cli: Cli, learner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from algorithms import AgentPRM

    run = ("demo", "--policy", learner, "--n-demos", 2, "--epochs", 1, "--iterations", 1, "--max-games", 6)
    run = (*run, "--set", *SMALL_AGENT_PRM, *SMALL_RUN)
    folder = tmp_path / "runs" / "demo"

    def interrupted(self: AgentPRM, stage: str, share: float) -> None:
        if stage == "improve policy":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AgentPRM, "on_progress", interrupted)
        done = cli(*run)
    assert done.status == 130 and "same command" in done.out
    sft = folder / "sft.zip"
    before = sft.stat().st_mtime_ns
    assert not (folder / "agentprm.zip").exists() and not (folder / "result.json").exists()

    done = cli(*run)
    assert done.status == 0, done.err
    assert sft.stat().st_mtime_ns == before and "SFT on" not in done.out
    result = json.loads((folder / "result.json").read_text())
    names = ["base model", "SFT", "AgentPRM", "AgentPRM, best of 8 by the PRM", "SFT, greedy", "AgentPRM, greedy"]
    assert [row["name"] for row in result["rows"]] == names
    assert [row["n"] for row in result["rows"]] == [6] * 6
    assert len(result["rows"][0]["by_task_type"]) == 7  # games of all six types, and all
    assert not list(folder.rglob("*.part"))

    again = cli(*run)
    assert again.status == 0 and "evaluate" not in again.out and "against SFT" in again.out
    for words, said in ((("--seed", 1), "seed"), (("--set", "gamma=0.5"), "settings")):
        other = cli(*run, *words)
        assert other.status == 2 and f"({said})" in other.err and "--out" in other.err
    # A folder belongs to one command.
    for words in (("train", "--algo", "ppo"), ("eval", learner)):
        other = cli(*words, *GENERATED, "--out", "runs/demo")
        assert other.status == 2 and "holds a demo" in other.err
    named = cli("play", "--policy", "runs/demo", *GENERATED)
    assert named.status == 2 and "runs/demo/agentprm.zip" in named.err
