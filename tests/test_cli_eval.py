"""``agentprm eval`` and ``compare``: every game once, nothing lost, nothing overwritten, compared game by game."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from agentprm_gym.episodes import Episode, read_episodes, write_episodes
from agentprm_gym.games import TASK_TYPES, find_games
from tests.cli_helpers import GENERATED, SMALL_GROUPS, SMALL_RUN, Cli
from tests.stopping import StoppingEnv  # noqa: F401  # registers Stopping-v0, which is to stay after the first test

SHORT = ("--max-steps", 4, "--n-envs", 2)


def episodes_in(folder: Path) -> list[Episode]:
    return list(read_episodes(folder / "episodes.jsonl.gz"))


def commands(folder: Path) -> dict[str, list[str]]:
    return {e.game_id: [turn.command for turn in e.turns] for e in episodes_in(folder)}


def test_eval_draws_games_of_all_types_and_writes_what_happened(cli: Cli, saved: Path, tmp_path: Path) -> None:
    run = ("eval", saved / "agent.zip", *GENERATED, "--max-games", 6, "--max-steps", 5, "--n-envs", 2)
    for folder, extra in (("alone", []), ("best", ["--best-of", 3])):
        done = cli(*run, *extra, "--out", folder)
        assert done.status == 0, done.err
        assert "all" in done.out and "mean steps" in done.out and "generated games" in done.out
        result = json.loads((tmp_path / folder / "result.json").read_text())
        assert result["rows"][-1]["n"] == 6 and result["rows"][-1]["mean_steps"] == 5.0
        assert result["games"]["content_hash"] == find_games("valid_seen", "generated").content_hash
        assert (result["temperature"], result["max_steps"], result["model"]) == (1.0, 5, str(saved / "agent.zip"))
        assert (result["search"], result["n"]) == (("best-of-n", 3) if extra else ("none", None))
        episodes = episodes_in(tmp_path / folder)
        assert Counter(e.task_type for e in episodes) == dict.fromkeys(TASK_TYPES, 1)
        assert all((turn.candidates is not None) == bool(extra) for e in episodes for turn in e.turns)
    assert commands(tmp_path / "alone").keys() == commands(tmp_path / "best").keys()
    assert cli(*run, "--seed", 1, "--out", "other").status == 0
    assert commands(tmp_path / "alone").keys() != commands(tmp_path / "other").keys()


def test_the_prm_of_another_save_chooses_among_a_policys_draws(cli: Cli, saved: Path, tmp_path: Path) -> None:
    run = ("eval", saved / "sft.zip", *GENERATED, "--max-games", 2, *SHORT, "--best-of", 3)
    done = cli(*run, "--out", "none")
    assert done.status == 2 and "no process reward model" in done.err
    done = cli(*run, "--prm", saved / "agent.zip", "--out", "out")
    assert done.status == 0
    turns = [turn for e in episodes_in(tmp_path / "out") for turn in e.turns]
    assert turns
    for turn in turns:
        assert turn.candidates
        best = max(turn.candidates, key=lambda row: row["score"])
        assert best["command"] == turn.command and 0 <= best["score"] <= 1


def test_an_evaluation_is_not_overwritten(cli: Cli, saved: Path, tmp_path: Path) -> None:
    run = ("eval", saved / "sft.zip", *GENERATED, "--max-games", 2, *SHORT)
    for split in ("valid_seen", "valid_unseen"):
        assert cli(*run, "--split", split).status == 0
    first, second = sorted((tmp_path / "runs" / "eval").iterdir())
    assert first.name.endswith("sft-valid_seen") and second.name.endswith("sft-valid_unseen")
    before = (first / "result.json").read_bytes()
    again = cli(*run, "--temperature", 0)
    assert again.status == 2 and "--overwrite" in again.err and (first / "result.json").read_bytes() == before
    assert cli(*run, "--temperature", 0, "--overwrite").status == 0
    assert json.loads((first / "result.json").read_text())["temperature"] == 0


def test_an_interrupted_evaluation_goes_on_where_it_was(cli: Cli, learner: str, tmp_path: Path) -> None:
    run = ("eval", learner, "--import", "tests.stopping", "--env", "Stopping-v0", "--n-envs", 2)
    assert cli(*run, "--out", "whole").status == 0
    part = tmp_path / "part"
    for stop, status in (("interrupt", 130), ("fault", 2)):
        (tmp_path / "stop").write_text(stop)
        done = cli(*run, "--out", "part", "--overwrite")
        assert done.status == status and "--resume part" in done.out + done.err
        n_played = len(list(read_episodes(part / "unfinished.jsonl.gz")))
        assert 0 < n_played < len(commands(tmp_path / "whole")) and not (part / "result.json").exists()
    (tmp_path / "stop").unlink()
    again = cli(*run, "--out", part)
    assert again.status == 2 and "--resume" in again.err
    done = cli("eval", "--resume", part)
    assert done.status == 0 and f"{n_played} were played before" in done.out, done.err
    assert commands(part) == commands(tmp_path / "whole")
    assert {p.name for p in part.iterdir()} == {"about.json", "config.yaml", "episodes.jsonl.gz", "result.json"}
    for words, said in [
        (("--max-steps", 5), "--max-steps"),
        (("--temperature", 0), "--temperature"),
        (("tiny",), "--policy"),
    ]:
        other = cli("eval", "--resume", part, *words)
        assert other.status == 2 and said in other.err, words


def test_two_commands_do_not_write_into_one_folder(cli: Cli, saved: Path, tmp_path: Path) -> None:
    from algorithms.common.shell.folders import locked

    with locked(tmp_path / "out"):
        for words in (("eval", saved / "sft.zip"), ("train", "--algo", "ppo"), ("demo",)):
            done = cli(*words, *GENERATED, "--out", "out")
            assert done.status == 2 and f"process {os.getpid()} on" in done.err
    assert not (tmp_path / "out").exists()


def test_eval_does_not_go_on_with_another_model_of_the_same_name(cli: Cli, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes((saved / "sft.zip").read_bytes())
    assert cli("eval", "model.zip", *GENERATED, "--max-games", 1, *SHORT, "--out", "out").status == 0
    (tmp_path / "model.zip").write_bytes((saved / "agent.zip").read_bytes())
    done = cli("eval", "--resume", "out")
    assert done.status == 2 and "model_sha256" in done.err


def test_a_runs_folder_stands_for_its_model(cli: Cli, saved: Path, tmp_path: Path) -> None:
    from algorithms import GRPO
    from tests.algorithm_helpers import make_alfworld, make_model

    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "model.zip").write_bytes((saved / "agent.zip").read_bytes())
    assert (
        cli("eval", "runs/mine", *GENERATED, "--max-games", 1, *SHORT, "--best-of", 2, "--prm", "runs/mine").status == 0
    )
    assert (tmp_path / "runs" / "eval" / "mine-valid_seen" / "result.json").is_file()
    assert cli("play", "--policy", "runs/mine", *GENERATED, "--max-steps", 1).status == 0
    assert cli("export", "runs/mine", "--out", "adapter").status == 0
    make_model(GRPO, "runs/mine", make_alfworld())  # in Python, too
    rewarded = ("play", "--reward", "prm:runs/mine", *GENERATED)
    assert cli(*rewarded, stdin="look\nquit\n").status == 0
    (run / "seed_0").mkdir()
    (run / "model.zip").unlink()
    done = cli("eval", "runs/mine", *GENERATED)
    assert done.status == 2 and "seed_0" in done.err


def test_a_save_whose_base_was_moved(cli: Cli, tmp_path: Path) -> None:
    from algorithms import SFT
    from tests.algorithm_helpers import make_alfworld, make_model
    from tests.llm_helpers import save_random_model

    make_model(SFT, save_random_model(tmp_path / "before"), make_alfworld()).save(tmp_path / "model.zip")
    (tmp_path / "before").rename(tmp_path / "after")
    for words in (
        ("eval", "model.zip", *GENERATED, "--max-games", 1, *SHORT, "--out", "result"),
        ("play", "--policy", "model.zip", *GENERATED, "--max-steps", 1),
        ("export", "model.zip", "--out", "exported"),
    ):
        lost = cli(*words)
        assert lost.status == 2 and "base" in lost.err and "before" in lost.err
        found = cli(*words, "--base", tmp_path / "after")
        assert found.status == 0, found.err


def test_an_environment_of_somebody_else_is_evaluated(cli: Cli, learner: str, tmp_path: Path) -> None:
    done = cli("eval", learner, "--env", "TextIdentity-v0", "--n-envs", 2, "--out", "out")
    assert done.status == 0, done.err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["env"] == "TextIdentity-v0" and result["rows"][-1]["n"] == len(episodes_in(tmp_path / "out")) > 1


# ---------------------------------------------------------------------- the protocol
def without_times(folder: Path) -> list[str]:
    """The lines of a result before its last block, as docs/protocol.md cuts them off."""
    lines = (folder / "result.json").read_text().splitlines()
    return lines[: lines.index(' "run": {')]


@pytest.mark.ci
def test_the_same_evaluation_twice_gives_the_same_files_apart_from_times(learner: str, tmp_path: Path) -> None:
    """With two processes, and the commands of docs/protocol.md."""
    root = Path(__file__).parents[1]
    words = ("eval", learner, *GENERATED, "--max-games", "2", "--max-steps", "3", "--n-envs", "2", "--out")
    for name in ("a", "b"):
        command = [sys.executable, "-m", "algorithms.cli.main", *words, name]
        subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, check=True)
    page = (root / "docs" / "protocol.md").read_text()
    (script,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, check=True)
    assert (tmp_path / "a" / "result.json").read_bytes() != (tmp_path / "b" / "result.json").read_bytes()
    assert without_times(tmp_path / "a") == without_times(tmp_path / "b")
    result = json.loads((tmp_path / "b" / "result.json").read_text())
    result["seed"] = 1
    (tmp_path / "b" / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    assert subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, check=False).returncode == 1


def test_a_result_names_its_conditions(cli: Cli, saved: Path, tmp_path: Path) -> None:
    kwargs = json.dumps({"grammar": "2.1.1"})
    run = ("eval", saved / "agent.zip", *GENERATED, "--max-games", 3, *SHORT, "--best-of", 2, "--temperature", 0.5)
    assert cli(*run, "--env-kwargs", kwargs, "--seed", 2, "--out", "out").status == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    games = find_games("valid_seen", "generated", grammar="2.1.1")
    told = result["protocol"]
    played = [e.game_id for e in episodes_in(tmp_path / "out")]
    assert told["games"] == {
        "source": "generated",
        "split": "valid_seen",
        "content_hash": games.content_hash,
        "n": 3,
        "played_sha256": hashlib.sha256("".join(f"{g}\n" for g in played).encode()).hexdigest(),
    }
    assert (told["version"], told["grammar"], told["engine"], told["step_cap"]) == (1, "2.1.1", "native", 4)
    assert (told["action_mode"], told["reasons"], told["seed"]) == ("constrained", False, 2)
    assert "oldest turns" in told["history"]["rule"] and told["history"]["context_tokens"] >= 1
    assert told["sampling"]["temperature"] == 0.5
    assert (told["sampling"]["search"], told["sampling"]["n"]) == ("best-of-n", 2)
    assert result["tokens"]["policy"] > 0 and result["tokens"]["prm"] > 0
    assert {"torch", "alfworld"} <= set(result["versions"]) and result["commit"]
    assert result["run"]["seconds"] > 0 and result["run"]["sittings"] == 1 and "machine" in result["run"]
    assert list(result)[-1] == "run"
    every = result["rows"][-1]
    assert every["name"] == "all" and every["mean_steps"] == 4.0 and every["inadmissible"] == 0.0
    assert every["mean_steps_won"] is None  # nothing was won


def test_sittings_of_an_evaluation_add_up(cli: Cli, learner: str, tmp_path: Path) -> None:
    run = ("eval", learner, "--import", "tests.stopping", "--env", "Stopping-v0", "--n-envs", 2)
    assert cli(*run, "--out", "whole").status == 0
    (tmp_path / "stop").write_text("interrupt")
    assert cli(*run, "--out", "part").status == 130
    (tmp_path / "stop").unlink()
    before = json.loads((tmp_path / "part" / "spent.json").read_text())
    assert before["tokens"]["policy"] > 0
    assert cli("eval", "--resume", "part").status == 0
    whole, part = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "part"))
    # What was under way when the first sitting ended was played again.
    assert part["tokens"]["policy"] >= whole["tokens"]["policy"] > before["tokens"]["policy"]
    assert part["run"]["sittings"] == 2 and part["run"]["seconds"] > before["seconds"]
    assert part["rows"] == whole["rows"]
    kept = (tmp_path / "part" / "result.json").read_bytes()
    assert cli("eval", "--resume", "part").status == 0  # nothing is left to play
    assert (tmp_path / "part" / "result.json").read_bytes() == kept


# ---------------------------------------------------------------------- compare
def test_results_under_other_conditions_are_not_compared(cli: Cli, saved: Path, tmp_path: Path) -> None:
    run = ("eval", saved / "sft.zip", *GENERATED, "--max-games", 2, "--n-envs", 2, "--max-steps")
    assert cli(*run, 3, "--out", "a").status == 0
    for name, extra, said in [
        ("cap", (4,), "step limit differs: 3 and 4"),
        ("split", (3, "--split", "valid_unseen"), "split differs: valid_seen and valid_unseen"),
        ("types", (3, "--task-types", "look_at_obj_in_light"), "list of games (content hash) differs"),
        ("words", (3, "--env-kwargs", '{"grammar": "2.1.1"}'), "wording of the games (grammar) differs"),
    ]:
        assert cli(*run, *extra, "--out", name).status == 0
        done = cli("compare", "a/result.json", f"{name}/result.json")
        assert done.status == 2 and said in done.err and "same conditions" in done.err, done.err
    assert not (tmp_path / "runs" / "compare.json").exists()


def test_compare_says_which_games_one_alone_won(cli: Cli, tmp_path: Path) -> None:
    """Files as eval writes them; the numbers by hand."""
    about = {"env": "ALFWorld-v0", "games": {"split": "valid_seen", "content_hash": "0"}, "max_steps": 30}
    for name, wins in (("a", range(5)), ("b", range(4, 12))):
        episodes = [
            Episode(game_id=str(i), split="valid_seen", task_type="", task="", success=i in wins) for i in range(20)
        ]
        write_episodes(tmp_path / name / "episodes.jsonl.gz", episodes)
        (tmp_path / name / "result.json").write_text(json.dumps(about))
    done = cli("compare", "a/result.json", "b/result.json", "--out", "table.json")
    assert done.status == 0, done.err
    assert "b alone won 7 games, a alone 4; McNemar's exact test: p = 0.549" in done.out
    _, second = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert (second["only_first"], second["only_this"]) == (4, 7)
    assert second["mcnemar_p"] == 2 * (1 + 11 + 55 + 165 + 330) / 2048


def test_evaluations_are_compared_game_by_game(cli: Cli, saved: Path, tmp_path: Path) -> None:
    run = ("eval", *GENERATED, *SHORT)
    assert cli(*run, saved / "sft.zip", "--max-games", 4, "--out", "sft").status == 0
    assert cli(*run, saved / "agent.zip", "--max-games", 3, "--out", "agent").status == 0
    done = cli("compare", "sft", "mine=agent", "--out", "table.json")
    assert done.status == 0, done.err
    assert "against sft" in done.out and "3 games in common" in done.out
    first, second = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert "difference" not in first and (second["name"], second["n_both"], second["difference"]) == ("mine", 3, 0.0)
    (tmp_path / "run").mkdir()
    mixed = cli("compare", "sft", "run")
    assert mixed.status == 2 and "runs with runs" in mixed.err
    picture = cli("compare", "sft", "agent", "--out", "table.png")
    assert picture.status == 2 and ".json" in picture.err


def test_runs_are_compared_and_what_is_left_out_is_told(cli: Cli, learner: str, saved: Path, tmp_path: Path) -> None:
    train = ("train", "--policy", learner, "--timesteps", 1, "--seeds", 2, "--set", *SMALL_GROUPS, *SMALL_RUN)
    for algo in ("grpo", "rloo"):
        done = cli(*train, "--algo", algo, "--out", algo)
        assert done.status == 0 and f"agentprm compare {algo}" in done.out
    assert {p.name for p in (tmp_path / "grpo").iterdir()} == {"seed_0", "seed_1", "config.yaml"}
    again = cli(*train, "--algo", "grpo", "--out", "grpo")
    assert again.status == 2 and "seed_0" in again.err
    single = tuple(word for word in train if word not in ("--seeds", 2))
    for overwrite in ((), ("--overwrite",)):
        over = cli(*single, "--algo", "grpo", "--out", "grpo", *overwrite)
        assert over.status == 2 and "several seeds" in over.err
    done = cli("compare", "grpo", "mine=rloo", "--x", "tokens", "--tag", "rollout/ep_len_mean", "rollout/success_rate")
    assert done.status == 0, done.err
    assert (tmp_path / "runs" / "compare.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((tmp_path / "runs" / "compare.json").read_text())["rows"]
    assert [(row["run"], row["seeds"]) for row in rows] == [("grpo", 2), ("mine", 2)] * 2
    assert ["reached_by" in row for row in rows] == [False, False, True, True]  # a length has no height to reach
    done = cli("compare", "grpo", "--tag", "rollout/sucess_rate")
    assert done.status == 2 and "did you mean 'rollout/success_rate'" in done.err


@pytest.mark.parametrize("table", ["demo", "eval", "compare"])
def test_tables_fit_80_columns(table: str) -> None:
    import io

    from rich.console import Console

    from algorithms.cli import output
    from algorithms.common.measure.evaluation import Rate

    console = Console(file=io.StringIO(), width=80)
    if table == "eval":
        made = output.rates_table([Rate("pick_clean_then_place_in_recep", 3000, 2999, 0.9, 1.0, 29.9)], "task type")
    else:
        columns = ("success %\n[95 % interval]", "against SFT,\nsame mode, paired", "mean\nsteps")
        made = output.make_table("policy", *(("games",) if table == "compare" else ()), *columns)
        games = ("400",) if table == "compare" else ()
        made.add_row("AgentPRM, best of 8", *games, "100.0 [100.0, 100.0]", "-10.5 [-12.5, -10.1]", "29.9")
    console.print(made)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert all(len(line) <= 80 for line in lines)
    numbers = "100.0 [90.0, 100.0]" if table == "eval" else "100.0 [100.0, 100.0]"
    assert sum(numbers in line for line in lines) == 1  # in one line, not broken
