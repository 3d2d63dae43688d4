"""The page of ``agentprm report`` in a real browser: an episode turn by turn, filters, two policies, a phone, hostile texts.

Needs the package playwright (``pip install agentprm-gym[browser]``) and a Chromium of this machine (``apt-get install
chromium``); nothing is downloaded. ``AGENTPRM_CHROMIUM`` names another one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentprm_gym.games import GameList, find_games
from algorithms.report.making import make_report
from tests.report_helpers import by_planner, hostile, idle, with_candidates, write_evaluation

pytestmark = pytest.mark.slow

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install agentprm-gym[browser]")

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = os.environ.get("AGENTPRM_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip(f"needs a Chromium on this machine, none of {', '.join(_NAMES)} is here: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # Root has no sandbox in a container; the pages are the tests' own.
        flags = ["--no-sandbox"] if hasattr(os, "getuid") and os.getuid() == 0 else []
        chromium = driver.chromium.launch(executable_path=path, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def games() -> GameList:
    return find_games("valid_seen", "generated")


@pytest.fixture(scope="module")
def report(games: GameList, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four games: one policy plays the shortest ways, with a PRM that is right or wrong; the other one idles in two of them."""
    folder = tmp_path_factory.mktemp("report")
    chosen = _of_two_types(games)
    good = [with_candidates(by_planner(games[i]), games[i], wrong=k == 3) for k, i in enumerate(chosen)]
    poor = [idle(games[i]) if k < 2 else by_planner(games[i]) for k, i in enumerate(chosen)]
    named = {
        "good": write_evaluation(folder / "good", games, good),
        "poor": write_evaluation(folder / "poor", games, poor),
    }
    path = folder / "report.html"
    path.write_text(make_report(named), encoding="utf-8")
    return path


def _of_two_types(games: GameList) -> list[int]:
    types = [game_id.split("-", 1)[0] for game_id in games.game_ids]
    first, second = list(dict.fromkeys(types))[:2]
    return [i for kind in (first, second) for i in [k for k, t in enumerate(types) if t == kind][:2]]


class Said(list[str]):
    """What a page complained of, asked for over a network, or opened."""


def opened(browser: Any, path: Path, **context: Any) -> tuple[Any, Said]:
    page, said = browser.new_context(**context).new_page(), Said()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append("dialog"), dialog.dismiss()))
    page.on(
        "request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None
    )
    page.goto(path.as_uri())
    return page, said


def texts(page: Any, selector: str) -> list[str]:
    return [str(text) for text in page.locator(selector).all_inner_texts()]


def test_an_episode_turn_by_turn_by_keyboard_and_by_mouse(browser: Any, report: Path, games: GameList) -> None:
    page, said = opened(browser, report, viewport={"width": 1200, "height": 900})
    episode = by_planner(games[_of_two_types(games)[0]])
    n = len(episode.turns)
    for t, turn in enumerate(episode.turns):
        assert texts(page, "#turn") == [f"turn {t + 1} of {n}"]
        assert texts(page, ".command b") == [turn.command]
        assert turn.feedback.split("\n")[-1] in page.locator(".feedback").inner_text()
        # Executed first; the shortest way is the best, so it is the favourite of this PRM, and of the planner.
        assert texts(page, ".commands tbody th")[0] == f"▶★◆ {turn.command}"
        page.keyboard.press("ArrowRight")
    assert texts(page, "#turn") == [f"turn {n} of {n}"]
    target = next(t for t in reversed(episode.turns) if t.command.startswith("take ")).command.split(" from ")[0][5:]
    assert texts(page, ".hand b")[0].startswith(target)
    page.keyboard.press("Home")
    assert texts(page, ".hand b") == ["nothing"]
    page.click("#on")
    first = episode.turns[0].command.removeprefix("go to ")
    here = page.locator("svg.map svg", has=page.locator("rect.here"))
    assert f"● {first}" in "".join(here.all_text_contents())
    page.locator(".values .hit").nth(n - 1).click()
    assert texts(page, "#turn") == [f"turn {n} of {n}"]
    page.keyboard.press("n")
    assert page.locator("#list button[aria-current]").count() == 1 and texts(page, "#turn")[0].startswith("turn 1 of")
    assert page.locator("#list li").nth(1).locator("button[aria-current]").count() == 1
    before = page.locator(".commands tbody tr").count()
    page.keyboard.press("a")
    assert page.locator(".commands tbody tr").count() > before
    assert said == []


def test_filters(browser: Any, report: Path) -> None:
    page, said = opened(browser, report)
    assert texts(page, "#count") == ["4 of 4 episodes"]
    types = texts(page, "#type option")
    assert len(types) == 3
    page.select_option("#type", types[1])
    assert texts(page, "#count") == ["2 of 4 episodes"]
    page.select_option("#type", "")
    page.check("#apart")
    assert texts(page, "#count") == ["1 of 4 episodes"] and "favourite is not the planner's" in page.inner_text(
        "#panes"
    )
    page.uncheck("#apart")
    page.select_option("#outcome", "lost")
    assert texts(page, "#count") == ["0 of 4 episodes"] and "No episode passes" in page.inner_text("#panes")
    page.select_option("#first", label="poor")
    assert texts(page, "#count") == ["2 of 4 episodes"]
    page.select_option("#outcome", "")
    page.fill("#words", "no such words")
    assert texts(page, "#count") == ["0 of 4 episodes"]
    assert said == []


def test_two_policies_beside_each_other_on_one_game(browser: Any, report: Path, games: GameList) -> None:
    page, said = opened(browser, report, viewport={"width": 1400, "height": 900})
    page.select_option("#second", label="poor")
    assert texts(page, ".pane h3") == ["good", "poor"]
    page.select_option("#outcome", "first")
    assert texts(page, "#count") == ["2 of 4 episodes"]
    assert texts(page, ".pane .about > span") == ["won", "lost"]
    n = len(by_planner(games[_of_two_types(games)[0]]).turns)
    assert texts(page, "#turn") == ["turn 1 of 30"]
    page.keyboard.press("w")  # where the one that idles could not win any more
    assert texts(page, "#turn") == [f"turn {30 - n + 1} of 30"]
    assert f"After turn {30 - n + 1} the game could not be won in time" in page.locator(".pane").nth(1).inner_text()
    assert "This episode is over." in page.locator(".pane").nth(0).inner_text()
    left, right = (page.locator(".pane").nth(i).bounding_box() for i in (0, 1))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    page.select_option("#outcome", "second")
    assert texts(page, "#count") == ["0 of 4 episodes"]
    assert said == []


def test_a_phone(browser: Any, report: Path) -> None:
    page, said = opened(browser, report, viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.select_option("#second", label="poor")
    one, other = (page.locator(".pane").nth(i).bounding_box() for i in (0, 1))
    assert one["y"] + one["height"] <= other["y"]  # one below the other
    assert page.locator("#on").bounding_box()["height"] >= 36
    page.tap("#on")
    assert texts(page, "#turn")[0].startswith("turn 2 of")
    page.locator("#list button").nth(1).tap()
    assert page.locator("#list li").nth(1).locator("button[aria-current]").count() == 1
    assert said == []


def test_hostile_texts_are_shown_and_not_run(browser: Any, games: GameList, tmp_path: Path) -> None:
    episodes = [hostile(with_candidates(by_planner(games[0]), games[0], wrong=True)), hostile(idle(games[1]))]
    attack = "</title><script>window.hacked=4</script><img src=http://127.0.0.1:9/x onerror=window.hacked=5>"
    folder = write_evaluation(tmp_path / "a", games, episodes, model=attack, search=attack)
    path = tmp_path / "report.html"
    path.write_text(make_report({attack: folder}, title=attack), encoding="utf-8")
    page, said = opened(browser, path)
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("n")
    page.select_option("#second", index=1)
    assert page.locator(".reason").first.inner_text().startswith("</script><script>window.hacked=1</script><img")
    assert page.title() == attack
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 1  # the chart
    assert said == []


def test_the_policy_of_the_page_stops_a_script_that_got_into_it(browser: Any, report: Path) -> None:
    """As it would be had some text not been escaped."""
    path = report.with_name("broken.html")
    attack = "<script>window.hacked=1</script><img src=x onerror='window.hacked=2'>"
    path.write_text(report.read_text().replace("<h1>", f"{attack}<h1>"), encoding="utf-8")
    page, said = opened(browser, path)
    assert page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in text for text in said)
    assert texts(page, "#turn")[0].startswith("turn 1 of")  # the page's own script still runs
