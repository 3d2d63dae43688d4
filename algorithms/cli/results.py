"""What ``agentprm eval`` writes beside the episodes: what was evaluated, by which protocol, the rates, and what it took.

A result file has three parts. What was evaluated and how, and what came out, is the same whenever the same evaluation is done
again. Times, and what else belongs to one run on one machine, stand in the last block, ``run``, and nowhere else: two files
without it are equal byte for byte (``docs/protocol.md``).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from algorithms.cli import actors, arguments, output
from algorithms.common.acting.players import is_player

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

    from algorithms.common.measure.evaluation import Rate

#: Version of the protocol; it changes when numbers of two result files could no longer be compared.
PROTOCOL = 1
#: What a sitting of an evaluation has spent so far, for the next one.
SPENT = "spent.json"
#: What the retries of a server and waiting for it took: it belongs to one run.
_OF_ONE_RUN = ("retries", "failures", "seconds")
_HISTORY = (
    "the whole transcript; where it would outgrow the context, the first turn stays and the oldest turns after it are left out "
    "until the rest fills half of the context"
)


class Spent:
    """What an evaluation has spent, over all its sittings: seconds of playing, and what :func:`actors.spent` counts.

    A turn that was under way when a sitting was killed counts, although it is played again.
    """

    def __init__(self, folder: Path, actor: Any, *, resumed: bool) -> None:
        """Begin a sitting.

        Args:
            folder: of the evaluation.
            actor: who plays.
            resumed: whether earlier sittings count; else what they left is deleted.
        """
        self.path, self._actor = folder / SPENT, actor
        if not resumed:
            self.path.unlink(missing_ok=True)
        self._before: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        self._began = time.perf_counter()

    def total(self) -> dict[str, Any]:
        """Everything so far; ``"sittings"`` says how often the evaluation was begun or taken up."""
        now = {"seconds": time.perf_counter() - self._began, "sittings": 1, **actors.spent(self._actor)}
        return actors.add_up(self._before, now)

    def keep(self) -> None:
        """Write down what was spent so far."""
        output.write_json(self.path, self.total())


def about(args: argparse.Namespace, venv: VecEnv, model: str, *, search: str, planned: bool) -> dict[str, Any]:
    """What a result is about: model, games, limits, and how it acts. ``--resume`` compares it.

    Args:
        args: the options.
        venv: the environments.
        model: a zip, a base model, or one on a server.
        search: how a turn's command is found.
        planned: whether that has a depth.
    """
    from algorithms.common.shell.load import chosen_policy_weight

    games = venv.get_attr("games", indices=[0])[0] if venv.has_attr("games") else None
    path = Path(model)
    return {
        "model": args.model_name or model,
        "model_sha256": hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None,
        "env": args.env or "ALFWorld-v0",
        "games": _games_note(games, args.split),
        "max_games": args.max_games,
        "max_steps": args.step_limit,
        "seed": args.seed,
        "temperature": None if is_player(model) else args.temperature,
        "search": search,
        "n": None if search in ("none", "prm-greedy") else args.best_of or args.n,
        "depth": args.depth if planned else None,
        **({"search_options": args.search_options} if args.search_options else {}),
        "policy_weight": chosen_policy_weight(args.policy_weight, model) if search == "best-of-n" else None,
        "prm": args.prm,
        "action_mode": args.action_mode,
        "reason": args.reason,
        "template": args.template,
    }


def _games_note(games: Any, split: str | None) -> dict[str, Any] | None:
    """Which games a result is about; ``None`` where the environment does not list them."""
    if getattr(games, "content_hash", None) is None:
        return None
    return {"source": games.source, "split": split, "content_hash": games.content_hash}


def protocol(
    about: Mapping[str, Any], args: argparse.Namespace, venv: VecEnv, actor: Any, played: Sequence[str]
) -> Any:
    """The conditions of a result, as a paper's appendix names them; see ``docs/protocol.md``.

    Args:
        about: from :func:`about`.
        args: the options.
        venv: the environments.
        actor: who played.
        played: ids of the games that were played, in order; seeds of ``reset`` where they have none.
    """
    games = venv.get_attr("games", indices=[0])[0] if venv.has_attr("games") else None
    is_alfworld = arguments.is_alfworld(args)
    return {
        "version": PROTOCOL,
        "env": about["env"],
        "env_kwargs": args.env_kwargs or {},
        "games": {
            **(about["games"] or {}),
            "n": len(played),
            "played_sha256": hashlib.sha256("".join(f"{game}\n" for game in played).encode()).hexdigest(),
        },
        "grammar": _grammar(games, played) if is_alfworld else None,
        "engine": (args.engine or "native") if is_alfworld else None,
        "step_cap": about["max_steps"] or _step_cap(venv),
        **_reading(actor),
        "sampling": {
            "temperature": about["temperature"],
            "search": about["search"],
            "n": about["n"],
            "depth": about["depth"],
            "policy_weight": about["policy_weight"],
            "options": about.get("search_options", {}),
        },
        "seed": about["seed"],
    }


def _grammar(games: Any, played: Sequence[str]) -> str:
    """The wordings of the games that were played, as releases of ALFWorld."""
    return " and ".join(sorted({games[games.index(game)].grammar for game in played}))


def _step_cap(venv: VecEnv) -> int | None:
    """The step limit with which an environment is registered."""
    spec = venv.get_attr("spec", indices=[0])[0] if venv.has_attr("spec") else None
    return getattr(spec, "max_episode_steps", None)


def _reading(actor: Any) -> dict[str, Any]:
    """What the player reads and how it answers; a process reward model that chooses alone answers nothing."""
    from algorithms.common.acting.actors import PolicyActor
    from algorithms.common.acting.server import ServerActor

    policy = getattr(actor, "policy", actor)  # a search's
    if isinstance(policy, PolicyActor):
        responder = policy.responder
        return {
            "history": {"rule": _HISTORY, "context_tokens": policy.lm.context_length},
            "action_mode": responder.mode,
            "reasons": policy.lm.prompt.reasons,
            "max_new_tokens": responder.max_new_tokens if responder.writes_freely else None,
            "template_sha256": hashlib.sha256(policy.lm.prompt.source.encode()).hexdigest(),
        }
    if isinstance(policy, ServerActor):
        return {
            "history": {"rule": _HISTORY, "context_characters": policy.limit},
            "action_mode": "generate",
            "max_new_tokens": policy.max_new_tokens,
            "template_sha256": hashlib.sha256(policy.prompt.source.encode()).hexdigest(),
        }
    return {"history": {"rule": _HISTORY}, "action_mode": None}


def result(
    about: Mapping[str, Any],
    protocol: Mapping[str, Any],
    rows: Sequence[Rate],
    spent: Mapping[str, Any],
    server: Mapping[str, str],
) -> dict[str, Any]:
    """The whole result file.

    Args:
        about: from :func:`about`.
        protocol: from :func:`protocol`.
        rows: the rates by task type, and of all.
        spent: from :meth:`Spent.total`.
        server: from :func:`actors.server`.
    """
    made = output.provenance()
    run = {
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": spent["seconds"],
        "sittings": spent["sittings"],
        "machine": made.pop("machine"),
        "command": made.pop("command"),
    }
    asked = dict(spent.get("server", {}))
    if asked:
        run["server"] = {key: asked.pop(key) for key in _OF_ONE_RUN}
    tokens = {
        **spent["tokens"],
        **{f"server_{kind}": asked[f"{kind}_tokens"] for kind in ("prompt", "completion") if asked},
    }
    return {
        **made,
        **about,
        "protocol": protocol,
        "rows": [output.rate_row(row) for row in rows],
        "tokens": tokens,
        **({"server": {**server, **asked}} if asked else {}),
        **({"acting": actors.shares(spent["acting"])} if "acting" in spent else {}),
        **({"calls": spent["calls"]} if "calls" in spent else {}),
        "run": run,
    }


def told(rows: Sequence[Rate], result: Mapping[str, Any]) -> str:
    """A line about a result: steps of the games that were won, commands that were not admissible, tokens and seconds."""
    everything, run = rows[-1], result["run"]
    won = "" if math.isnan(everything.mean_steps_won) else f"{everything.mean_steps_won:.1f} steps where won; "
    n_tokens = sum(result["tokens"].values())
    tokens = f"{n_tokens:,} tokens; " if n_tokens else ""
    return (
        f"{won}{100 * everything.inadmissible:.1f} % of the commands inadmissible; {tokens}{run['seconds']:.1f} seconds"
    )
