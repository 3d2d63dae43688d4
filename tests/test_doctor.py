"""``agentprm doctor`` finds what is there, and says what is not; JSON and colours of the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from agentprm_gym.games import find_games
from tests.cli_helpers import Cli
from tests.game_files import write_games


def findings(cli: Cli, *words: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = cli("doctor", "--json", *words)
    rows = json.loads(done.out)
    return done.status, {row["what"]: row for row in rows}


def test_it_finds_what_is_here(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub" / "models--Qwen--Qwen2.5-0.5B").mkdir(parents=True)
    status, found = findings(cli)
    assert status == 0
    assert found["torch"] == {"what": "torch", "status": "ok", "detail": version("torch")}
    assert found["numpy"]["detail"] == numpy.__version__
    games = find_games("valid_unseen", "generated")
    assert found["games valid_unseen"]["detail"].startswith(f"{len(games)} of generated")
    assert found["a game"]["status"] == found["model tiny"]["status"] == "ok"
    assert found["hub models"]["detail"] == "Qwen/Qwen2.5-0.5B"
    assert (found["GPU"]["status"] == "ok") == (torch.cuda.is_available() or torch.backends.mps.is_available())


def test_games_of_ones_own_are_found(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    write_games(tmp_path, range(2))
    _, found = findings(cli)
    assert found["games train"]["detail"] == "2 of alfworld"


def test_a_file_that_hides_a_package_is_named(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "algorithms.py").touch()
    status, found = findings(cli)
    assert (status, found["this folder"]["status"]) == (1, "fail")
    assert "algorithms.py" in found["this folder"]["detail"]


class Models(BaseHTTPRequestHandler):
    """Answers as a server with one model, and as one that wants a key."""

    def do_GET(self) -> None:
        locked = self.path.startswith("/locked")
        body = b"{}" if locked else b'{"data": [{"id": "small"}]}'
        self.send_response(401 if locked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Models) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def test_servers_are_asked(cli: Cli, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    silent = "http://127.0.0.1:9"
    status, found = findings(cli, "--server", f"{server}/v1", f"{server}/locked/", silent)
    assert status == 1
    assert found[f"server {server}/v1"]["detail"] == "serves small"
    assert "wants a key" in found[f"server {server}/locked/"]["detail"]
    assert found[f"server {server}/locked/"]["status"] == "ok"
    assert found[f"server {silent}"]["status"] == "fail"


def test_the_table_says_the_same(cli: Cli) -> None:
    done = cli("doctor")
    assert torch.__version__ in done.out
    assert "microseconds a step" in done.out


def test_games_as_json(cli: Cli) -> None:
    (row,) = json.loads(cli("games", "--games", "generated", "--split", "valid_seen", "--json").out)
    games = find_games("valid_seen", "generated")
    assert (row["games"], row["content_hash"], row["from"]) == (len(games), games.content_hash, "generated")
    assert sum(row["task_types"].values()) == len(games)


@pytest.mark.parametrize(
    ("variables", "coloured"), [({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)]
)
def test_no_colour_where_it_is_not_wanted(variables: dict[str, str], coloured: bool) -> None:
    words = [sys.executable, "-m", "algorithms.cli.main", "train", "--algo", "nosuch"]
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")} | variables
    done = subprocess.run(words, capture_output=True, text=True, env={**env, "TERM": "xterm-256color"}, check=False)
    assert "error:" in done.stderr
    assert ("\x1b[3" in done.stderr) == coloured
