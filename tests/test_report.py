"""``agentprm report``: what it says is true of the games, and nothing in it is obeyed by a browser.

The page in a real browser: ``test_report_browser.py``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from agentprm_gym.engines.native import NativeEngine
from agentprm_gym.episodes import write_episodes
from agentprm_gym.experts import Planner
from agentprm_gym.games import GameList, find_games
from algorithms.report.making import make_report
from algorithms.report.replay import Games, disagrees, games_of, replay
from algorithms.report.sources import Evaluation, read_sources
from algorithms.report.tables import measures, pairs, scores, success
from algorithms.report.viewing import Texts, embedded, episode_data
from tests.cli_helpers import GENERATED, Cli
from tests.report_helpers import HOSTILE, by_planner, hostile, idle, played, with_candidates, write_evaluation
from tests.test_comparison import write_run


@pytest.fixture(scope="module")
def games() -> GameList:
    return find_games("valid_seen", "generated")


class Page(HTMLParser):
    """What a browser would find in a page: its elements, and the texts of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[str, str]] = []
        self._open = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.inside.append((self._open, data))

    def data(self) -> Any:
        scripts = [text for tag, text in self.inside if tag == "script"]
        return json.loads(scripts[0])


# ---------------------------------------------------------------------- played again
def test_a_shortest_way_is_the_best_at_every_turn(games: GameList) -> None:
    episode = by_planner(games[0])
    found = replay(episode, Games(games), 30)
    assert found is not None and found.lost_at is None
    n = len(episode.turns)
    assert [m.cost for m in found.moments] == list(range(n, 0, -1))
    assert [m.loss for m in found.moments] == [0.0] * n
    for moment, turn in zip(found.moments, episode.turns, strict=True):
        assert moment.q[turn.command] == max(moment.q.values()) == pytest.approx(0.95 ** (moment.cost - 1))


def test_time_runs_out_where_fewer_commands_are_left_than_needed(games: GameList) -> None:
    cost = int(Planner(games[0]).cost_to_go(Planner(games[0]).start))
    found = replay(idle(games[0]), Games(games), 30)
    assert found is not None
    # Before turn t 30 - t commands are left. The last turn at which `cost` of them are: t = 30 - cost; looking there is fatal.
    assert found.lost_at == 30 - cost
    assert all(m.loss == 1 for m in found.moments)
    without_limit = replay(idle(games[0]), Games(games))
    assert without_limit is not None and without_limit.lost_at is None


def test_a_dead_end_is_found(games: GameList) -> None:
    """A command after which the game cannot be won at all, found with the planner in some game."""
    for game in games:
        planner, engine = Planner(game), NativeEngine()
        frame = engine.reset(game)
        begun: list[str] = []
        for command in planner.plan():
            costs = planner.action_costs(engine.snapshot())
            dead = [c for c in frame.admissible_commands if costs[c] == float("inf")]
            if dead:
                found = replay(played(game, [*begun, dead[0], "look"], success=False), Games(games), 30)
                assert found is not None and found.lost_at == len(begun)
                assert found.moments[-1].cost == float("inf") and set(found.moments[-1].q.values()) == {0.0}
                return
            begun.append(command)
            frame = engine.step(command)
    pytest.fail("no game has a dead end beside its shortest way")


def test_what_plays_otherwise_has_no_room(games: GameList) -> None:
    episode = by_planner(games[0])
    other = replace(episode, turns=[episode.turns[0], *episode.turns[2:]])
    assert replay(other, Games(games)) is None
    assert replay(replace(episode, game_id="nowhere"), Games(games)) is None
    assert replay(episode, Games(why_not="none")) is None


def test_games_are_found_by_what_the_result_says(games: GameList) -> None:
    note = {"source": "generated", "split": "valid_seen"}
    worded = games_of({"games": note, "protocol": {"env_kwargs": {"grammar": "2.1.1"}}})
    assert worded.listed is not None and worded.listed[0].grammar == "2.1.1"
    assert "does not name" in games_of({}).why_not
    for wrong in ({"source": "/nowhere", "split": "valid_seen"}, {"source": "generated", "split": "mine"}):
        assert "not on this machine" in games_of({"games": wrong}).why_not


def test_a_model_and_the_planner_disagree_about_what_the_model_scored() -> None:
    q = {"a": 0.5, "b": 0.9, "c": 1.0}
    assert not disagrees({"a": 0.1, "b": 0.2}, q)  # c is better, but was not scored
    assert disagrees({"a": 0.3, "b": 0.2}, q)
    assert not disagrees({"a": 0.3}, q) and not disagrees({}, q) and not disagrees({"a": 1.0, "dance": 0.0}, q)


# ---------------------------------------------------------------------- tables
def test_scores_are_judged_by_outcome_and_by_planner(games: GameList) -> None:
    right = with_candidates(by_planner(games[0]), games[0], wrong=False)
    wrong = with_candidates(by_planner(games[0]), games[0], wrong=True)
    named = {name: [(e, replay(e, Games(games), 30))] for name, e in (("right", right), ("wrong", wrong))}
    table = scores({**named, "none": [(idle(games[0]), None)]})
    assert table is not None
    rows = {row[0]: dict(zip(table.head, row, strict=True)) for row in table.rows}
    assert set(rows) == {"right", "wrong"}
    # Along a shortest way the exact Q is what happens: 0.95 to the power of the commands that followed.
    assert rows["right"]["calibration error"] == "0.000" and rows["right"]["scored commands"] == str(len(right.turns))
    assert (rows["right"]["tau"], rows["right"]["top-1"], rows["right"]["choice gain"]) == ("1.000", "1.000", "1.000")
    assert (rows["wrong"]["tau"], rows["wrong"]["top-1"], rows["wrong"]["choice gain"]) == ("-1.000", "0.000", "-1.000")
    assert (rows["right"]["disagrees with the planner %"], rows["wrong"]["disagrees with the planner %"]) == (
        "0.0",
        "100.0",
    )


def test_evaluations_are_compared_under_the_same_conditions_only(games: GameList) -> None:
    about = {"games": {"split": "valid_seen", "content_hash": "0"}}
    few = [by_planner(games[i]) for i in range(3)]
    lost = [idle(games[0]), *few[1:]]
    first = Evaluation("first", about, few, 30)
    table = pairs([first, Evaluation("second", about, lost, 30), Evaluation("short", about, lost, 20)])
    assert table is not None
    assert [row[0] for row in table.rows] == ["second"]
    assert table.rows[0][1:] == ["3", "-33.3 [-98.7, +32.0]", "0", "1", "1"]
    assert pairs([first]) is None
    whole, split = success([first, Evaluation("second", about, lost, 30)])
    assert [row[:2] for row in whole.rows] == [["first", "3"], ["second", "3"]]
    assert whole.rows[0][2].startswith("100.0 [43.9") and whole.rows[1][2].startswith("66.7 [")
    assert set(split.head[1:]) == {e.task_type for e in few}


def test_a_training_run_of_two_seeds_has_curves_and_measures_with_intervals(tmp_path: Path) -> None:
    for seed, last in ((0, 0.5), (1, 0.7)):
        write_run(tmp_path / "run" / f"seed_{seed}" / "tb" / "AgentPRM_1", {0: 0.0, 100: last})
        write_run(tmp_path / "run" / f"seed_{seed}" / "tb" / "AgentPRM_1", {0: last}, "prm/heldout_kendall_tau")
    note = {
        "commit": "abc",
        "args": {"algo": "agentprm", "reward": "None", "settings": "{'gamma': 0.9}", "threads": "1"},
    }
    (tmp_path / "run" / "seed_0" / "settings.json").write_text(json.dumps(note))
    (training,) = read_sources({"run": tmp_path / "run"})[1]
    assert training.settings == {"commit": "abc", "algo": "agentprm", "settings": "{'gamma': 0.9}"}
    assert [(curve.tag, len(curve.seeds)) for curve in training.curves] == [("rollout/success_rate", 2)]
    table = measures(training)
    assert table is not None and table.rows[0][:2] == ["prm/heldout_kendall_tau", "0.600 [-0.671, 1.871]"]
    html = make_report({"run": tmp_path / "run"})
    assert (
        "{&#39;gamma&#39;: 0.9}" in html
        and "0.600 [-0.671, 1.871]" in html
        and html.count("data:image/svg+xml;base64,") == 1
    )
    assert 'id="viewer"' not in html  # there are no episodes


# ---------------------------------------------------------------------- the page
def test_the_data_of_an_episode_is_that_of_the_game(games: GameList) -> None:
    game, texts = games[0], Texts()
    episode = with_candidates(by_planner(game), game, wrong=True)
    data = episode_data(episode, replay(episode, Games(games), 30), texts)
    assert json.loads(embedded(data)) == data
    names = texts.all
    assert [names[r] for r in data["m"]["r"]] == list(game.receptacles)
    assert {names[o] for o in data["m"]["g"]} == {o for o, k in game.object_types.items() if k == game.goal.object_type}
    inside = {names[int(r)]: [names[o] for o in objects] for r, objects in data["m"]["c"].items()}
    assert inside == {r: list(objects) for r, objects in game.contents.items() if objects}
    assert data["d"] == list(range(len(episode.turns))) and data["w"] is None
    turn = data["u"][0]
    assert names[turn["c"]] == episode.turns[0].command
    assert len(turn["q"]) == len(turn["a"]) and turn["v"] == max(turn["q"]) and turn["e"] == len(episode.turns)
    assert [(names[c], s) for c, s, _ in turn["n"]] == [
        (c["command"], round(c["score"], 4)) for c in episode.turns[0].candidates or []
    ]
    held = [names[u["z"]["h"]] for u in data["u"] if "h" in u["z"]]
    assert held and all(game.object_types[o] == game.goal.object_type for o in held)


def test_no_text_of_games_or_models_is_obeyed(games: GameList, tmp_path: Path) -> None:
    """The page's elements and scripts are the same as those of a harmless report."""
    episodes = [by_planner(games[0]), idle(games[1])]
    pages = {}
    for name, wanted in (("harmless", episodes), ("hostile", [hostile(e) for e in episodes])):
        label = HOSTILE if name == "hostile" else "mine"
        about = {"model": label, "search": label}
        folder = write_evaluation(tmp_path / name, games, wanted, **about)
        pages[name] = Page(make_report({label: folder}, title=label))
    for kind in ("tags", "inside"):
        harmless, attacked = (getattr(pages[name], kind) for name in ("harmless", "hostile"))
        assert len(harmless) == len(attacked)
        assert [x[0] for x in harmless] == [x[0] for x in attacked]
    for tag, attributes in pages["hostile"].tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        for name in ("src", "href"):
            assert name not in attributes or str(attributes[name]).startswith("data:image/"), tag
    data = pages["hostile"].data()
    shown = "".join(data["texts"])
    assert "</script><script>window.hacked=1</script>" in shown  # it is shown as it is
    assert not re.search("[\u2028\u2029\u202e\x00\x1b]", shown)


def test_the_policy_allows_the_pages_own_script_and_style_alone(games: GameList, tmp_path: Path) -> None:
    page = Page(make_report({"a": write_evaluation(tmp_path / "a", games, [by_planner(games[0])])}))
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in str(policy).split("; "))
    own = {tag: text for tag, text in page.inside if tag == "style" or "use strict" in text}
    hashed = {tag: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for tag, text in own.items()}
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    assert (rules["script-src"], rules["style-src"]) == (f"'sha256-{hashed['script']}'", f"'sha256-{hashed['style']}'")


def test_episodes_without_their_games_are_shown_without_a_room(games: GameList, tmp_path: Path) -> None:
    folder = write_evaluation(
        tmp_path / "a", games, [by_planner(games[0])], games={"split": "train", "source": "/nowhere"}
    )
    html = make_report({"a": folder})
    assert "1 episodes are shown without a room and exact values: the games are not on this machine" in html
    (run,) = Page(html).data()["runs"]
    assert "m" not in run["episodes"][0] and "q" not in run["episodes"][0]["u"][0]


def test_the_viewer_has_some_episodes_of_all_types_and_says_so(games: GameList, tmp_path: Path) -> None:
    types = [game_id.split("-", 1)[0] for game_id in games.game_ids]
    some = [types.index(kind) for kind in dict.fromkeys(types)]
    folder = write_evaluation(tmp_path / "a", games, [by_planner(games[i]) for i in (*some, some[0] + 1)])
    html = make_report({"a": folder}, max_episodes=len(some))
    assert f"a: {len(some)} of {len(some) + 1} episodes, spread over the task types." in html
    data = Page(html).data()
    assert len({e["t"] for e in data["runs"][0]["episodes"]}) == len(some)


# ---------------------------------------------------------------------- the command line
def test_the_command_line_writes_one_page(cli: Cli, games: GameList, tmp_path: Path) -> None:
    write_evaluation(tmp_path / "one", games, [by_planner(games[0])])
    write_evaluation(tmp_path / "two", games, [idle(games[0])])
    done = cli("report", "one", "named=two/result.json", "--out", "pages/report.html", "--title", "A & B")
    assert done.status == 0 and "open it in a browser" in done.out, done.err
    html = (tmp_path / "pages" / "report.html").read_text()
    assert "<title>A &amp; B</title>" in html and "against one" in html
    assert [Page(html).data()["texts"][run["name"]] for run in Page(html).data()["runs"]] == ["one", "named"]


def test_from_an_evaluation_to_a_page_with_scores(cli: Cli, saved: Path, tmp_path: Path) -> None:
    """What eval writes is what report reads: with a search, and with scores that are added."""
    run = ("eval", saved / "agent.zip", *GENERATED, "--max-games", 2, "--max-steps", 4, "--n-envs", 2)
    assert cli(*run, "--search", "prm-greedy", "--out", "greedy").status == 0
    assert cli(*run, "--out", "drawn").status == 0
    done = cli("report", "greedy", "drawn", "--score", saved / "agent.zip", "--out", "report.html")
    assert done.status == 0, done.err
    data = Page((tmp_path / "report.html").read_text()).data()
    names = data["texts"]
    greedy, drawn = data["runs"]
    for episode in (*greedy["episodes"], *drawn["episodes"]):
        assert len(episode["u"]) == 4 and "m" in episode
        for turn in episode["u"]:
            assert [c for c, _, _ in turn["n"]] == turn["a"] and all(0 <= s <= 1 for _, s, _ in turn["n"])
    for turn in (turn for episode in drawn["episodes"] for turn in episode["u"]):
        chances = {c: p for c, _, p in turn["n"]}
        assert sum(chances.values()) == pytest.approx(1, abs=0.01)
        assert chances[turn["c"]] == pytest.approx(turn["p"], abs=2e-4)  # as when it was played
    # The search of prm-greedy and the scores that are added are those of one model.
    for one in greedy["episodes"]:
        first = next(e for e in drawn["episodes"] if e["g"] == one["g"])["u"][0]
        assert [s for _, s, _ in first["n"]] == pytest.approx([s for _, s, _ in one["u"][0]["n"]], abs=2e-4), names[
            one["g"]
        ]
    other = cli("report", "drawn", "--score", saved / "sft.zip", "--out", "other.html")
    assert other.status == 2 and "no process reward model" in other.err
    done = cli("report", "drawn", "--base", "tiny", "--out", "other.html")
    assert done.status == 2 and "--score" in done.err


def test_what_cannot_be_reported_on_is_refused(cli: Cli, games: GameList, tmp_path: Path) -> None:
    write_evaluation(tmp_path / "whole", games, [by_planner(games[0])])
    (tmp_path / "empty").mkdir()
    write_episodes(tmp_path / "part" / "unfinished.jsonl.gz", [by_planner(games[0])])
    write_evaluation(tmp_path / "broken", games, [by_planner(games[0])])
    (tmp_path / "broken" / "result.json").write_text("[1]")
    for words, said in [
        (("whole", "--out", "report.pdf"), ".html"),
        (("nowhere",), "no run 'nowhere'"),
        (("whole", "empty"), "neither curves nor episodes"),
        (("part",), "--resume part"),
        (("broken",), "expected a JSON object, got list"),
        (("whole", "a=whole", "a=whole"), "two runs are called 'a'"),
        (("whole", "--max-episodes", 0), "1 or more"),
    ]:
        done = cli("report", *words)
        assert done.status == 2 and said in done.err, (words, done.err)
    assert not (tmp_path / "runs").exists()
