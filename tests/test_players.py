"""Players without a language model: ``agentprm eval random``, ``expert`` and ``planner``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from agentprm_gym.episodes import Episode, read_episodes
from agentprm_gym.experts import Planner, demonstrate
from agentprm_gym.games import GameList, find_games
from algorithms import evaluate, load_actor, make_eval_env
from algorithms.common.acting.players import ExpertActor, RandomActor
from algorithms.common.acting.requests import Request
from tests.cli_helpers import GENERATED, Cli


def played(player: str, n: int, seed: int = 0) -> list[Episode]:
    venv = make_eval_env(n_envs=3, games="generated", split="valid_seen", max_episode_steps=30)
    episodes = evaluate(load_actor(player, venv), venv, games=range(n), seed=seed)
    venv.close()
    return episodes


@pytest.fixture(scope="module")
def games() -> GameList:
    return find_games("valid_seen", "generated")


def test_the_expert_plays_as_in_its_demonstrations(games: GameList) -> None:
    for index, episode in enumerate(played("expert", 8)):
        shown = demonstrate(games[index])
        assert [(t.command, t.reason) for t in episode.turns] == [(t.command, t.reason) for t in shown.turns]
        assert episode.success == shown.success


def test_the_planner_needs_as_many_steps_as_the_shortest_plan(games: GameList) -> None:
    for index, episode in enumerate(played("planner", 8)):
        assert episode.success
        assert len(episode.turns) == len(Planner(games[index]).plan())


def test_random_commands_are_admissible_and_their_probability_is_written_down() -> None:
    episodes = played("random", 6)
    turns = [turn for episode in episodes for turn in episode.turns]
    assert all(turn.is_admissible for turn in turns)
    for turn in turns:
        assert turn.log_prob == pytest.approx(-np.log(len(turn.admissible_commands)))
    assert [e.turns[0].command for e in played("random", 6)] == [e.turns[0].command for e in episodes]
    assert [e.turns[0].command for e in played("random", 6, seed=1)] != [e.turns[0].command for e in episodes]


def test_random_commands_are_drawn_evenly() -> None:
    request = Request(0, "task", "", ("a", "b", "c", "d"), np.random.default_rng(0))
    drawn = Counter(RandomActor().answer([request])[0].command for _ in range(4000))
    # Three standard deviations of a count of 4,000 draws with probability 1/4.
    assert all(abs(drawn[command] - 1000) < 3 * np.sqrt(4000 * 0.25 * 0.75) for command in "abcd")


def test_the_expert_goes_on_from_turns_of_others(games: GameList) -> None:
    whole = demonstrate(games[0])
    actor = ExpertActor()
    cut = len(whole.turns) // 2
    actor.start(4, games[0].task, whole.turns[:cut])
    turn = whole.turns[cut]
    request = Request(4, games[0].task, turn.feedback, turn.admissible_commands, np.random.default_rng(0))
    assert actor.answer([request])[0].command == turn.command


def test_eval_plays_them_under_the_protocol(cli: Cli, tmp_path: Path) -> None:
    for player in ("random", "expert", "planner"):
        done = cli("eval", player, *GENERATED, "--max-games", 6, "--n-envs", 2, "--out", player)
        assert done.status == 0, done.err
        result = json.loads((tmp_path / player / "result.json").read_text())
        assert result["protocol"]["sampling"]["temperature"] is None and result["model"] == player
        assert result["tokens"] == {} and result["rows"][-1]["inadmissible"] == 0.0
        assert {e.policy for e in read_episodes(tmp_path / player / "episodes.jsonl.gz")} == {player}
    rates = [json.loads((tmp_path / p / "result.json").read_text())["rows"][-1] for p in ("random", "planner")]
    assert rates[0]["success"] < rates[1]["success"] == 1.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("random", "--best-of", 4), "search"),
        (("expert", "--reason"), "reason"),
        (("planner", "--prm", "model.zip"), "prm"),
        (("planner", "--env", "TextIdentity-v0"), "action_costs"),
    ],
)
def test_what_a_player_cannot_do_is_refused(cli: Cli, tmp_path: Path, words: tuple[object, ...], said: str) -> None:
    (tmp_path / "model.zip").touch()
    source = () if "--env" in words else GENERATED
    done = cli("eval", *words, *source, "--max-games", 2, "--out", "out")
    assert done.status == 2 and said in done.err


def test_a_folder_of_the_same_name_needs_its_path(cli: Cli, learner: str, tmp_path: Path) -> None:
    (tmp_path / "random").symlink_to(learner)
    run = (*GENERATED, "--max-games", 1, "--max-steps", 2, "--n-envs", 1)
    assert cli("eval", "random", *run, "--out", "player").status == 0
    assert cli("eval", "./random", *run, "--out", "model").status == 0
    tokens = [json.loads((tmp_path / name / "result.json").read_text())["tokens"] for name in ("player", "model")]
    assert tokens[0] == {} and tokens[1]["policy"] > 0


def test_naming_them_does_not_load_torch() -> None:
    code = (
        "import sys; from algorithms.common.acting.players import PLAYERS; assert 'torch' not in sys.modules, PLAYERS"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
