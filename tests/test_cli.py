"""The command line: help that helps, wrong input ends with status 2 and one line, verbs do what they say."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from agentprm_gym.episodes import read_episodes
from agentprm_gym.games import find_games
from algorithms.cli.progress import progress, stage
from tests.cli_helpers import GENERATED, Cli
from tests.game_files import write_games

VERBS = ("demo", "train", "eval", "play", "games", "demos")  # those that take games


# ---------------------------------------------------------------------- help and wrong input
def test_help_lists_the_verbs(cli: Cli) -> None:
    done = cli("--help")
    assert done.status == 0
    assert all(re.search(rf"^    {verb} ", done.out, re.MULTILINE) for verb in (*VERBS, "compare", "export"))
    assert "examples:" in done.out


def test_the_version_is_told(cli: Cli) -> None:
    import agentprm_gym

    assert cli("--version").out == f"agentprm {agentprm_gym.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_its_options(cli: Cli, verb: str) -> None:
    done = cli(verb, "--help")
    assert done.status == 0
    assert "--games" in done.out and "default: None" not in done.out
    options = re.findall(r"^  (--\S+)(.*(?:\n {10,}.*)*)", done.out, re.MULTILINE)
    assert len(options) >= 5
    for option, text in options:
        assert re.search(r"[a-z]{3,}", text), f"{verb} {option} has no help"


def test_listing_games_does_not_wait_for_torch() -> None:
    code = "import sys; from algorithms.cli import main; main(['games', '--games', 'generated']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "algorithms" in loaded
    assert not loaded & {"torch", "transformers", "stable_baselines3"}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["dance"], "invalid choice: 'dance'"),
        (["train"], "--algo"),
        (["train", "--algo", "a2c"], "sft"),
        (["train", "--algo", "sft", "--timesteps", "9"], "--n-demos"),
        (["train", "--algo", "rft", "--reward", "progress"], "won episodes"),
        (["train", "--algo", "inverseprm", "--reward", "progress"], "demonstrations"),
        (["train", "--algo", "inverseprm", "--epochs", "9"], "--iterations"),
        (["train", "--algo", "sft", "--minutes", "9"], "--epochs"),
        (["train", "--algo", "ppo", "--minutes", "0"], "above 0"),
        (["train", "--algo", "grop"], "did you mean 'grpo'"),
        (["train", "--algo", "no_such.module:Mine"], "no module 'no_such.module'"),
        (["train", "--algo", "algorithms:Mine"], "has to be renamed"),
        (["train", "--algo", "algorithms.testing:check_algorithm"], "subclass of algorithms.LLMAlgorithm"),
        (["train", "--algo", "ppo", "--reward", "tests.stopping:MyPenality"], "did you mean 'MyPenalty'"),
        (["train", "--algo", "ppo", "--import", "no_such_module"], "no module 'no_such_module'"),
        (["train", "--algo", "ppo", "--timesteps", "1.5"], "expected a whole number of 1 or more, got '1.5'"),
        (["train", "--algo", "ppo", "--timesteps", "many"], "expected a whole number of 1 or more, got 'many'"),
        (["train", "--algo", "ppo", "--seed", "-1"], "expected a whole number of 0 or more, got '-1'"),
        (["train", "--algo", "ppo", "--threads", "-3"], "expected a whole number of 1 or more, got '-3'"),
        (["train", "--algo", "ppo", "--device", "gpu"], "expected auto, cpu, cuda or cuda:<number>, got 'gpu'"),
        (["train", "--algo", "ppo", "--policy", "nowhere.zip"], "no saved model at nowhere.zip"),
        (["train", "--algo", "ppo", "--env", "TextIdentity-v0", "--split", "train"], "--env-kwargs"),
        (["train", "--algo", "sft", "--env", "TextIdentity-v0"], "--demos is missing"),
        (["train", "--algo", "ppo", "--env", "NoSuchEnv-v0"], "--import"),
        (["train", "--algo", "ppo", "--env", "TextIdentity-v0", "--env-kwargs", '{"words": 3}'], "does not take"),
        (["train", "--algo", "agentprm", "--set", "improve.beat=1"], "did you mean 'improve.beta'"),
        (["train", "--algo", "agentprm", "--set", "beta=1"], "did you mean 'improve.beta'"),
        (["train", "--algo", "agentprm", "--set", "gamma.x=1"], "gamma of AgentPRM takes a value"),
        (
            ["train", "--algo", "agentprm", "--set", "policy_kwargs.action_mod=score"],
            "did you mean 'policy_kwargs.action_mode'",
        ),
        (["train", "--algo", "agentprm", "--set", "n_iterations=3"], "--iterations"),
        (["train", "--algo", "agentprm", "--set", "rollout.n_games=2.5"], "n_games must be a whole number"),
        (["eval", "tiny", "--env", "TextIdentity-v0", "--engine", "native"], "leave it out"),
        (["play", "--policy", "nowhere.zip"], "no saved model at nowhere.zip"),
        (["play", "--delay", "-1"], "expected a number of 0 or more, got '-1'"),
        (["train", "--resume", "nowhere"], "config.yaml"),
        (["train", "--algo", "ppo", "--reward-kwargs", "{}"], "--reward"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["compare", "nowhere"], "nowhere"),
        (["compare", ".", "--out", "curves.txt"], ".png"),
        (["train", "--algo", "sft", "--set", "lr=1"], "learning_rate"),
        (["train", "--algo", "agentprm", "--set", "gamma"], "KEY=VALUE"),
        (["train", "--algo", "agentprm", "--set", "policy_kwargs.explore={reset_share: 0.5}"], "is no JSON"),
        (["train", "--algo", "sft", "--policy", "tinny"], "'tiny'"),
        (["train", "--algo", "sft", "--demos", "nowhere.jsonl"], "nowhere.jsonl"),
        (["eval", "nowhere.zip"], "nowhere.zip"),
        (["eval", "tiny", "--n-envs", "0"], "1 or more"),
        (["eval", "tiny", "--temperature", "-1"], "--temperature"),
        (["eval", "tiny", "--temperature", "nan"], "expected a number of 0 or more, got 'nan'"),
        (["eval", "tiny", "--split", "test"], "valid_seen"),
        (["play", "--games", "nowhere"], "'nowhere'"),
        (["play", "--games", "generated", "--game", "99999"], "99999"),
        (["play", "--games", "generated", "--task-types", "cook"], "pick_and_place_simple"),
        (["games", "--games", "nowhere"], "alfworld"),
        (["games", "generate", "--games", "alfworld"], "leave out --games"),
        (["games", "generate", "--rooms", "garage"], "bathroom"),
        (["games", "generate", "--n-objects", "9", "3"], "n_objects"),
        (["games", "generate", "--n-objects", "1", "2", "3"], "[low, high]"),
        (["demos", "--n", "0"], "1 or more"),
        (["demos", "--games", "generated", "--expert", "planner", "--noise", "1"], "noise"),
        (["demos", "--games", "generated", "--noise", "-1"], "0 or more"),
        (["export", "nowhere.zip", "--out", "there"], "nowhere.zip"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_wrong_input_ends_with_status_2_and_says_what_is_expected(
    cli: Cli, tmp_path: Path, args: list[str], said: str
) -> None:
    done = cli(*args)
    assert done.status == 2
    assert said in done.err
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir())  # not even an empty folder


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--algo", "sft", "--out"),
        ("eval", "tiny", "--out"),
        ("demo", "--out"),
        ("games", "generate", "--out"),
        ("export", "save.zip", "--out"),
        ("compare", "run", "--out"),
        ("demos", "--out"),
    ],
    ids=lambda command: command[0],
)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    cli: Cli, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """A file where a folder has to be, or the other way round; nothing is played, and torch is not even loaded."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.png").mkdir()
    files = command[0] in ("compare", "demos")
    for out in ("folder.png",) if files else ("file", "file/below"):
        start = time.monotonic()
        done = cli(*command, out)
        assert done.status == 2 and "--out" in done.err and time.monotonic() - start < 1, done.err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_missing_gpu_is_an_error(cli: Cli) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    for words in (("eval", "tiny"), ("train", "--algo", "ppo"), ("demo",), ("play", "--policy", "tiny")):
        done = cli(*words, *GENERATED, "--device", "cuda")
        assert done.status == 2 and "finds no GPU here" in done.err


# ---------------------------------------------------------------------- progress
def test_without_a_terminal_a_line_now_and_then_says_how_far_it_is() -> None:
    console = Console(file=io.StringIO(), width=120)
    with progress(console, interval=0.05) as bars, stage(bars, "roll out", 4) as done:
        for n in range(3):
            done(n)
            time.sleep(0.1)
    # Old versions of rich leave an empty line behind.
    lines = console.file.getvalue().rstrip("\n").split("\n")  # type: ignore[attr-defined]
    assert any(re.fullmatch(r"  \.\.\. roll out 50 %, 0:00 so far, about 0:00 left", line) for line in lines)
    assert re.fullmatch(r"  roll out 0:00", lines[-1])


def test_debug_shows_where_an_error_comes_from(cli: Cli) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        cli("--debug", "games", "--games", "nowhere")


# ---------------------------------------------------------------------- games
def test_games_lists_every_split(cli: Cli) -> None:
    done = cli("games", *GENERATED)
    assert done.status == 0
    for text in ("train", "valid_seen", "valid_unseen", "3000", "400", "pick_two_obj_and_place"):
        assert text in done.out
    assert find_games("valid_seen", "generated").content_hash[:12] in done.out


def test_ids_come_one_a_line(cli: Cli) -> None:
    done = cli("games", *GENERATED, "--split", "valid_seen", "--task-types", "look_at_obj_in_light", "--list")
    expected = find_games("valid_seen", "generated", ["look_at_obj_in_light"]).game_ids
    assert done.out.splitlines() == list(expected)


def test_a_folder_with_one_split_shows_that_one(cli: Cli, tmp_path: Path) -> None:
    write_games(tmp_path / "data", [0, 1])
    done = cli("games", "--games", tmp_path / "data")
    assert done.status == 0 and "train" in done.out and "valid_seen" not in done.out


def test_check_names_the_games_that_cannot_be_played(cli: Cli, tmp_path: Path) -> None:
    good, bad = write_games(tmp_path / "data", [0, 1])
    sound = bad.read_text()
    bad.write_text("{")
    done = cli("games", "--games", tmp_path / "data", "--check")
    assert done.status == 1
    assert str(bad) in done.out and str(good) not in done.out and "1 games cannot be played" in done.out
    bad.write_text(sound)
    assert cli("games", "--games", tmp_path / "data", "--check").status == 0


@pytest.mark.parametrize("expert", ["search", "planner"])
def test_demonstrations_are_written(cli: Cli, tmp_path: Path, expert: str) -> None:
    done = cli("demos", *GENERATED, "--n", 3, "--expert", expert, "--out", "some.jsonl.gz")
    assert done.status == 0 and "wrote 3 demonstrations" in done.out
    episodes = list(read_episodes(tmp_path / "some.jsonl.gz"))
    assert [e.success for e in episodes] == [True] * 3
    assert {e.split for e in episodes} == {"train"} and {e.policy for e in episodes} == {f"expert:{expert}"}


def test_all_games_of_a_split_are_demonstrated_in_few_steps(cli: Cli, tmp_path: Path) -> None:
    looking = ("--split", "valid_unseen", "--task-types", "look_at_obj_in_light")
    done = cli("demos", *GENERATED, *looking, "--expert", "planner", "--max-steps", 5, "--out", "looks.jsonl")
    episodes = list(read_episodes(tmp_path / "looks.jsonl"))
    n_games = len(find_games("valid_unseen", "generated", ["look_at_obj_in_light"]))
    assert f"wrote {n_games} demonstrations" in done.out
    assert len({e.game_id for e in episodes}) == n_games and all(len(e.turns) <= 5 for e in episodes)


def test_games_are_generated_as_asked_and_never_overwritten_unasked(cli: Cli, tmp_path: Path) -> None:
    run = ("games", "generate", "--n", 4, "--split", "valid_seen", "--rooms", "kitchen", "--n-receptacles", 4, 6)
    knobs = {"rooms": ["kitchen"], "n_receptacles": [4, 6], "n_games": 4}
    expected = find_games("valid_seen", "generated", generator_kwargs=knobs)
    done = cli(*run)
    assert done.status == 0 and "wrote 4 games of valid_seen" in done.out and "a second" in done.out
    assert set(find_games("valid_seen", tmp_path / "generated").game_ids) == set(expected.game_ids)
    done = cli(*run, "--seed", 1)
    assert done.status == 0 and len(find_games("valid_seen", tmp_path / "generated")) == 8
    assert "4 were there already" in cli(*run).out
    path = next((tmp_path / "generated").rglob("game.tw-pddl"))
    path.write_text("{}")
    done = cli(*run, "--seed", 0 if path.parent.name in str(expected.game_ids) else 1)
    assert done.status == 2 and "--force" in done.err and path.read_text() == "{}"


def test_knobs_hold_for_lists_and_not_for_real_games(cli: Cli, tmp_path: Path) -> None:
    done = cli("games", *GENERATED, "--rooms", "bathroom", "--split", "train", "--list")
    scenes = {int(line.split("/")[0].rsplit("-", 1)[1]) for line in done.out.splitlines()}
    assert done.status == 0 and min(scenes) > 400
    write_games(tmp_path / "data", [0])
    done = cli("games", "--games", tmp_path / "data", "--n-objects", 5)
    assert done.status == 2 and "games='generated'" in done.err


# ---------------------------------------------------------------------- play
def test_a_game_can_be_won_by_following_hints(cli: Cli) -> None:
    """The hint ends with the command to type; follow it until the game is won."""
    script: list[str] = []
    for _ in range(30):
        done = cli("play", *GENERATED, "--game", 0, stdin="\n".join([*script, "hint", ""]))
        assert done.status == 0
        if "Done, in" in done.out:
            break
        script.append(re.findall(r"Try: (.+)", done.out)[-1])
    assert f"Done, in {len(script)} turns." in done.out
    assert "Goodbye" in done.out


def test_turns_are_taken_back(cli: Cli) -> None:
    done = cli("play", *GENERATED, "--game", 3, stdin="undo\ngo to fridge 1\n!dance\nu\nu\nlook\nquit\nnot read\n")
    assert done.status == 0
    _, second = done.out.split("Nothing to take back.")
    assert "Your task is to" not in done.out  # it stands above, once
    assert "Nothing happens." in second
    assert second.count("Taken back.") == 2
    # Back at the start: the first look at a room without furniture at hand.
    assert "you see nothing" in second.split("Taken back.")[-1]
    assert "not read" not in done.out


def test_numbers_stand_for_commands(cli: Cli) -> None:
    done = cli("play", *GENERATED, "--game", 3, stdin="1\n999\n0\n")
    number, command = re.findall(r"^ *(\d+) (go to \S+ \d+)", done.out, re.MULTILINE)[0]
    assert number == "1" and f"> {command}" in done.out
    assert done.out.count("Type a number from 1 to") == 2


def test_a_slip_of_the_pen_costs_no_turn(cli: Cli) -> None:
    done = cli("play", *GENERATED, "--game", 3, stdin="go to frigde 1\nGo  to fridge 1\nquit\n")
    assert "'go to frigde 1' is not possible here. Did you mean 'go to fridge 1'?" in done.out
    assert "> go to fridge 1" in done.out and "turn 1 |" in done.out and "turn 2 |" not in done.out


def test_the_same_seed_draws_the_same_game(cli: Cli) -> None:
    one, same, other = (cli("play", *GENERATED, "--seed", seed).out for seed in (1, 1, 2))
    assert one == same != other


def test_watching_shows_what_the_policy_and_the_prm_think(cli: Cli, saved: Path) -> None:
    done = cli("play", "--policy", saved / "agent.zip", "--best-of", 8, *GENERATED, "--max-steps", 3)
    assert done.status == 0
    assert "PRM" in done.out and "log prob" in done.out and "8 draws" in done.out
    assert re.search(r"^3 > ", done.out, re.MULTILINE) and "Not done after 3 turns." in done.out
    rows = re.findall(r"^ +(\S.*?) +(\d\.\d{3}) +(-?\d+\.\d\d) *$", done.out, re.MULTILINE)
    assert len(rows) >= 3 and all(0 <= float(score) <= 1 for _, score, _ in rows)


@pytest.mark.parametrize("name", ["agent.zip", "sft.zip", "base model"])
def test_watching_the_policy_alone_is_the_default(cli: Cli, saved: Path, learner: str, name: str) -> None:
    done = cli("play", "--policy", learner if name == "base model" else saved / name, *GENERATED, "--max-steps", 2)
    assert done.status == 0
    assert "PRM" not in done.out and "log prob" in done.out


def test_best_of_without_a_prm_says_so(cli: Cli, saved: Path) -> None:
    done = cli("play", "--policy", saved / "sft.zip", "--best-of", 4, *GENERATED)
    assert done.status == 2 and "no process reward model" in done.err
