"""What ``agentprm eval`` asks an actor about: whether its adapter can be folded in, how it answers, and what that took."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

#: What may be wrong with a free text, and is counted.
_ANSWERS = ("malformed", "repaired", "inadmissible", "cut")


def merged(actor: Any) -> AbstractContextManager[None]:
    """Fold a local policy's adapter into a small base, where no other adapter has to run in between."""
    from algorithms.common.acting.actors import PolicyActor

    if isinstance(actor, PolicyActor) and actor.adapter is not None:
        return actor.lm.merged(actor.adapter)
    return nullcontext()


def server(actor: Any) -> dict[str, str]:
    """URL and model of a server that an actor asks; empty for others."""
    client = getattr(getattr(actor, "policy", actor), "client", None)  # a search's
    return {} if client is None else {"url": client.base_url, "model": client.model}


def spent(actor: Any) -> dict[str, Any]:
    """What an actor did so far, as numbers that add up over the sittings of an evaluation (see :func:`add_up`).

    Returns:
        ``"acting"``: counts of a local policy's turns and free texts; ``"tokens"``: tokens fed to local models; ``"server"``:
        what a server was asked for and how its answers were read; ``"calls"``: how often a search asked each model. What an
        actor does not count is left out.
    """
    from algorithms.common.acting.actors import PolicyActor
    from algorithms.common.acting.server import ServerActor

    policy, prm_rows = getattr(actor, "policy", actor), getattr(actor, "prm_rows", None)
    found: dict[str, Any] = {"tokens": {}}
    if isinstance(policy, PolicyActor):
        found["acting"] = dict(policy.counts)
        found["tokens"]["policy"] = policy.rows.decoder.n_fed
    if isinstance(policy, ServerActor):
        found["server"] = {**policy.client.usage.to_dict(), "counts": dict(policy.counts)}
    if prm_rows is not None:
        found["tokens"]["prm"] = prm_rows.n_fed
    if hasattr(actor, "calls"):
        found["calls"] = dict(actor.calls)
    return found


def add_up(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Add the numbers of two nested mappings, key by key; what is ``None`` or missing in one is taken from the other.

    Example:
        >>> add_up({"a": 1, "b": {"c": 2}, "d": None}, {"b": {"c": 3, "e": 4}, "d": None})
        {'a': 1, 'b': {'c': 5, 'e': 4}, 'd': None}
    """
    total = dict(one)
    for key, value in other.items():
        before = total.get(key)
        if isinstance(value, Mapping):
            total[key] = add_up(before or {}, value)
        elif value is not None:
            total[key] = value if before is None else before + value
    return total


def shares(counts: Mapping[str, int]) -> dict[str, float]:
    """How often transcripts were shortened, and a local policy's free text was no well-formed command; shares."""
    found = {"transcripts shortened": counts.get("shortened", 0) / max(1, counts.get("turns", 0))}
    if counts.get("responses"):
        found |= {what: counts.get(what, 0) / counts["responses"] for what in _ANSWERS}
    return found


def told(server: dict[str, Any]) -> str:
    """A line about a server's answers."""
    counts = server["counts"]
    said = max(counts.get("responses", 0), 1)
    shares = ", ".join(f"{100 * counts.get(k, 0) / said:.1f} % {k}" for k in _ANSWERS)
    cost = "" if server["cost"] is None else f", cost {server['cost']:.4f}"
    return (
        f"{server['requests']} requests ({server['retries']} retries), {server['prompt_tokens']} prompt and "
        f"{server['completion_tokens']} completion tokens{cost}; answers: {shares}; "
        f"{counts.get('shortened', 0)} transcripts shortened"
    )
