"""Benchmark panels on the hub: a data set repository that :func:`~agentprm_gym.bench.panel.read_panel` reads."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from agentprm_gym.bench.panel import panel_file, read_panel
from agentprm_gym.files import write_whole
from agentprm_gym.hub import upload
from agentprm_gym.hub.cards import CARD, NO_NAME, PanelFacts, panel_card
from agentprm_gym.hub.remote import PANEL, parse

#: The rows alone, for ``datasets.load_dataset``.
STATES = "states.jsonl.gz"


def save_panel(
    panel: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    repo_id: str = NO_NAME,
    license: str | None = None,
    games: str | os.PathLike[str] = "alfworld",
) -> Path:
    """Write a panel as the folder of a repository: the panel, its rows alone, and a card.

    Args:
        panel: ``"generated"``, ``"real"``, or a file that :func:`~agentprm_gym.bench.panel.write_panel` wrote.
        folder: where to; made where it is missing.
        repo_id: ``"USER/NAME"``, for the card.
        license: identifier of the panel's licence, as the hub knows it.
        games: where ALFWorld's games are, for a panel without texts.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: the panel is missing, or needs games that are not found.
        PanelError: (a ``ValueError``) the file is not a panel, or is damaged.
        ValueError: ``repo_id`` is not the name of a repository.
    """
    repo_id = parse(repo_id).repo_id
    read = read_panel(panel, games=games)  # refuses what is not whole
    raw, out = panel_file(panel).read_bytes(), Path(folder)
    header, _, body = gzip.decompress(raw).partition(b"\n")
    rows = io.BytesIO()
    # No name and no time in the gzip header.
    with gzip.GzipFile(filename="", mode="wb", fileobj=rows, mtime=0, compresslevel=9) as stream:
        stream.write(body)
    facts = PanelFacts(
        repo_id=repo_id,
        name=read.name,
        version=read.version,
        sha256=read.sha256,
        n_states=len(read.states),
        n_games=len({state.game_id for state in read.states}),
        labels=read.labels,
        players=sorted({state.player for state in read.states}),
        grammar=read.grammar,
        texts=b'"texts":true' in header,
        license=license,
    )
    write_whole(out / PANEL, raw)
    write_whole(out / STATES, rows.getvalue())
    write_whole(out / CARD, panel_card(facts))
    return out


def push_panel(
    panel: str | os.PathLike[str],
    repo_id: str,
    *,
    license: str | None = None,
    games: str | os.PathLike[str] = "alfworld",
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Upload a panel to the hub, as a data set; see :func:`save_panel` for what is in it.

    Args:
        panel: as in :func:`save_panel`.
        repo_id: ``"USER/NAME"``.
        license: as in :func:`save_panel`.
        games: as in :func:`save_panel`.
        private: whether a new repository is private; ``None``: as the account has it.
        token: of the account; ``None``: the one that ``hf auth login`` or ``HF_TOKEN`` set.

    Returns:
        Address of the commit.

    Raises:
        ValueError: as :func:`save_panel`.
        OSError: the hub refused (``PermissionError``), or could not be reached.
    """
    with TemporaryDirectory() as folder:
        save_panel(panel, folder, repo_id=repo_id, license=license, games=games)
        return upload(folder, repo_id, kind="dataset", private=private, token=token)
