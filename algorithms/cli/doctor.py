"""``agentprm doctor``: what is installed and found here, and what is missing."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agentprm_gym.games import SPLITS, DataNotFoundError, find_games
from algorithms.cli import arguments, output
from algorithms.common.shell.machine import n_cores

#: Packages that extras install: what they are for, and the extra.
_EXTRAS = {
    "pyarrow": ("parquet files of export-data", "data"),
    "openenv-core": ("agentprm serve", "openenv"),
    "trl": ("agentprm_gym.integrations: TRL", "trl"),
    "skyrl-gym": ("agentprm_gym.integrations: SkyRL", "skyrl"),
    "minari": ("agentprm_gym.integrations: Minari", "minari"),
    "accelerate": ("accelerate launch: training in several processes", "distributed"),
    "ray": ("RayWorkers, train --ray", "ray"),
    "gguf": ("models in GGUF files, smollm2-135m", "gguf"),
    "bitsandbytes": ("quantized base models", "quantized"),
    "wandb": ("train --log wandb", "wandb"),
    "trackio": ("train --log trackio", "trackio"),
    "mlflow-skinny": ("train --log mlflow", "mlflow"),
    "optuna": ("agentprm sweep", "sweep"),
}
#: Files of the user's that would hide a package when Python runs in their folder.
_HIDING = ("algorithms.py", "agentprm_gym.py", "benchmarks.py", "gymnasium.py", "torch.py")
_STYLES = {"ok": "green", "note": "yellow", "fail": "red"}
#: Steps of the trial game.
_STEPS = 200


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        what: what was looked at.
        status: ``"ok"``, ``"note"`` (something is missing that not everybody needs), or ``"fail"``.
        detail: what was found, and what to do.
    """

    what: str
    status: str
    detail: str


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = arguments.add_verb(
        verbs,
        "doctor",
        help="say what is installed and found here, and what is missing",
        description="Looks at versions, devices, games and models, plays a game for a moment, and asks servers whether "
        "they are there. The status is 1 where something does not work.",
    )
    arguments.add_json_option(parser)
    parser.add_argument(
        "--server",
        nargs="+",
        default=[],
        metavar="URL",
        help="also ask these OpenAI-compatible servers, e.g. http://host:8000/v1",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Look around and report."""
    found = [*_packages(), *_machine(), *_games(), *_models(), *_folder(), *map(_server, args.server)]
    if args.json:
        output.show_json(args, [one._asdict() for one in found])
    else:
        table = Table()
        for name in ("", "", "found"):
            table.add_column(name, overflow="fold")
        for one in found:
            table.add_row(escape(one.what), f"[{_STYLES[one.status]}]{one.status}[/]", escape(one.detail))
        console.print(table)
    return int(any(one.status == "fail" for one in found))


def _packages() -> Iterator[Finding]:
    about = output.provenance()
    versions: dict[str, str] = dict(about["versions"])
    python = versions.pop("python")
    yield Finding("python", "ok" if sys.version_info >= (3, 11) else "fail", f"{python}, 3.11 or newer is needed")
    for name, version in versions.items():
        # A checkout that is not installed has no version, and works.
        missing = "note" if name == "agentprm-gym" else "fail"
        yield Finding(name, "ok" if version != "not installed" else missing, version)
    for name, (purpose, extra) in _EXTRAS.items():
        try:
            yield Finding(name, "ok", f"{metadata.version(name)}, for {purpose}")
        except metadata.PackageNotFoundError:
            detail = f"not installed; for {purpose}: pip install 'agentprm-gym[{extra}]'"
            yield Finding(name, "note", detail)


def _machine() -> Iterator[Finding]:
    threads = os.environ.get("OMP_NUM_THREADS")
    yield Finding("CPU", "ok", f"{n_cores()} cores" + (f", OMP_NUM_THREADS={threads}" if threads else ""))
    try:
        import torch
    except ImportError as error:
        yield Finding("GPU", "fail", f"torch cannot be loaded: {error}")
        return
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        sizes = [torch.cuda.get_device_properties(i).total_memory / 2**30 for i in range(len(names))]
        said = ", ".join(f"cuda:{i} {n} ({size:.0f} GiB)" for i, (n, size) in enumerate(zip(names, sizes, strict=True)))
        yield Finding("GPU", "ok", said)
    elif torch.backends.mps.is_available():
        yield Finding("GPU", "ok", "mps")
    else:
        yield Finding("GPU", "note", f"torch {torch.__version__} finds none: models run on the CPU")


def _games() -> Iterator[Finding]:
    for split in SPLITS:
        try:
            games = find_games(split)
        except DataNotFoundError:  # generated games lack this split
            continue
        except (OSError, ValueError) as error:
            yield Finding(f"games {split}", "fail", str(error))
            continue
        detail = f"{len(games)} of {games.source}"
        if games.source == "generated":
            detail += "; ALFWorld's own: alfworld-download, or ALFWORLD_DATA"
        yield Finding(f"games {split}", "ok", detail)
    yield _trial()


def _trial() -> Finding:
    import gymnasium as gym

    import agentprm_gym  # noqa: F401  # registers the environments

    try:
        env = gym.make("ALFWorld-v0", max_episode_steps=_STEPS + 1)
        env.reset(seed=0)
        begin = time.perf_counter()
        for _ in range(_STEPS):
            env.step("look")
        micro = 1e6 * (time.perf_counter() - begin) / _STEPS
        env.close()
    except Exception as error:  # whatever goes wrong is the finding
        return Finding("a game", "fail", f"{type(error).__name__}: {error}")
    return Finding("a game", "ok", f"plays, {micro:.0f} microseconds a step")


def _models() -> Iterator[Finding]:
    try:
        from agentprm_gym.llm.loading import resolve_model
    except ImportError as error:
        yield Finding("model tiny", "fail", f"cannot be loaded: {error}")
    else:
        whole = (Path(resolve_model("tiny")) / "model.safetensors").is_file()
        detail = "bundled" if whole else "its files are missing: install the package again"
        yield Finding("model tiny", "ok" if whole else "fail", detail)
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    names = sorted(path.name.removeprefix("models--").replace("--", "/") for path in hub.glob("models--*"))
    if names:
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        yield Finding("hub models", "ok", ", ".join(names[:10]) + more)
    else:
        yield Finding("hub models", "note", "none on this machine; a hub id is downloaded when it is first used")


def _folder() -> Iterator[Finding]:
    here = Path.cwd()
    hiding = [name for name in _HIDING if (here / name).is_file()]
    if hiding:
        yield Finding("this folder", "fail", f"{', '.join(hiding)} hides a package of the same name: rename it")
    elif not os.access(here, os.W_OK | os.X_OK):
        yield Finding("this folder", "note", "must not be written by this user: choose another --out")
    else:
        yield Finding("this folder", "ok", "can be written")


def _server(url: str) -> Finding:
    import httpx

    try:
        answer = httpx.get(f"{url.rstrip('/')}/models", timeout=10)
        answer.raise_for_status()
        names = [str(one.get("id")) for one in answer.json().get("data", [])]
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        # The key is not sent: a server that wants one is there.
        locked = status in (401, 403)
        detail = f"is there and wants a key ({status})" if locked else f"answers {status} to GET /models"
        return Finding(f"server {url}", "ok" if locked else "fail", detail)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, AttributeError) as error:
        return Finding(f"server {url}", "fail", f"does not answer ({type(error).__name__}: {error}); is it running?")
    return Finding(f"server {url}", "ok", f"serves {', '.join(names) or 'no model'}")
