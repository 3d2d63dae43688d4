"""A panel's labels as padded arrays, and what the order of the commands in each state is.

S states have up to A commands. Arrays are padded to (S, A); ``mask`` says which places hold a command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentprm_gym.bench.states import LABELS, BenchState
from agentprm_gym.checks import check_choice, check_float

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Signs = NDArray[np.int8]

#: Labels that differ by less are equal: powers of a discount are not exact in binary.
EQUAL = 1e-9
#: States whose pairs are compared at once.
CHUNK = 256


@dataclass(frozen=True, slots=True)
class Table:
    """Labels of S states with up to A commands each.

    Attributes:
        kind: the labels, one of :data:`~agentprm_gym.bench.states.LABELS`.
        values: (S, A) the value of each command, in [0, 1]; 0 in padded places.
        mask: (S, A) which places hold a command.
        order: (S, A, A) 1 where the first command is better than the second by enough to count, -1 where it is worse by
            enough, 0 else; see :func:`make_table`.
        dead: (S, A) which commands lead into a dead end; ``None`` where the states do not tell it.
        policy_values: (S, A) the ``on_policy`` values, and their standard errors; ``None`` where a state has no such label.
        policy_stderr: see ``policy_values``; 0 where they are exact.
        games: (S,) index of each state's game in ``game_ids``.
        types: (G,) index of each game's task type in ``type_names``.
        game_ids: names of the G games.
        type_names: names of the task types.
    """

    kind: str
    values: Floats
    mask: Bools
    order: Signs
    dead: Bools | None
    policy_values: Floats | None
    policy_stderr: Floats | None
    games: Ints
    types: Ints
    game_ids: tuple[str, ...]
    type_names: tuple[str, ...]

    @property
    def n_commands(self) -> Ints:
        """(S,) number of commands of each state."""
        counts: Ints = self.mask.sum(axis=1)
        return counts

    @property
    def best(self) -> Bools:
        """(S, A) which commands no other command of the state beats by enough to count."""
        return self.mask & ~(self.order < 0).any(axis=2)

    @property
    def has_choice(self) -> Bools:
        """(S,) which states have a pair of commands that counts."""
        found: Bools = np.asarray((self.order > 0).any(axis=(1, 2)))
        return found

    def padded(self, rows: Sequence[Any], what: str) -> Floats:
        """Put one row of numbers for each state into an array, with 0 in padded places.

        Args:
            rows: for each state one number a command.
            what: what the numbers are, for messages.

        Returns:
            (S, A).

        Raises:
            ValueError: the number of rows or of numbers in a row does not fit.
        """
        if len(rows) != len(self.mask):
            raise ValueError(f"{what}: expected one row for each of {len(self.mask)} states, got {len(rows)}")
        return _pad(rows, self.mask, what)


def make_table(states: Sequence[BenchState], kind: str = "oracle", *, gap: float = 0.0, z: float = 2.0) -> Table:
    """Read the labels of states.

    A pair of commands counts where their labels differ by ``max(gap, z * sqrt(se_i^2 + se_j^2))`` or more, and by more than
    1e-9 in any case. Exact labels have no standard error, so every difference counts unless ``gap`` says otherwise. Where the
    labels are estimates, a difference that may well be noise says nothing about a ranker. The two errors are taken as
    independent. Labels that were estimated with common random numbers have a smaller error of the difference; then the rule is
    stricter than it says.

    Args:
        states: the states.
        kind: which labels, one of :data:`~agentprm_gym.bench.states.LABELS`.
        gap: the least difference of labels that counts, 0 or more.
        z: the least difference of estimated labels in standard errors of the difference, 0 or more.

    Returns:
        The table.

    Raises:
        ValueError: there are no states, a state has no such labels or another number of them than commands, or one of its
            numbers is not finite.
    """
    check_choice("labels", kind, LABELS)
    gap, z = check_float("gap", gap, 0.0), check_float("z", z, 0.0)
    if not states:
        raise ValueError("expected a panel with states to measure on, got none")
    values, errors = _read(states, kind)
    width = max(len(s.commands) for s in states)
    mask = np.arange(width)[None] < np.array([len(s.commands) for s in states])[:, None]
    padded, stderr = _pad(values, mask, f"{kind} labels"), _pad(errors, mask, f"standard errors of {kind}")
    policy, policy_stderr = None, None
    if all("on_policy" in s.labels for s in states):
        found, found_errors = _read(states, "on_policy")
        policy, policy_stderr = _pad(found, mask, "on_policy labels"), _pad(found_errors, mask, "standard errors")
    dead = None
    if all(len(s.steps_to_go) == len(s.commands) for s in states):
        dead = _pad([[float(d) for d in s.dead_end] for s in states], mask, "dead ends") > 0
    game_ids = tuple(dict.fromkeys(s.game_id for s in states))
    game_of = {name: i for i, name in enumerate(game_ids)}
    type_names = tuple(sorted({s.task_type for s in states}))
    types = np.zeros(len(game_ids), dtype=np.int64)
    for state in states:
        types[game_of[state.game_id]] = type_names.index(state.task_type)
    return Table(
        kind=kind,
        values=padded,
        mask=mask,
        order=_order(padded, stderr, mask, gap, z),
        dead=dead,
        policy_values=policy,
        policy_stderr=policy_stderr,
        games=np.array([game_of[s.game_id] for s in states], dtype=np.int64),
        types=types,
        game_ids=game_ids,
        type_names=type_names,
    )


def _read(states: Sequence[BenchState], kind: str) -> tuple[list[Floats], list[Floats]]:
    """Values and standard errors of one kind of labels, one array a state."""
    values, errors = [], []
    for state in states:
        labels = state.labels.get(kind)
        if labels is None:
            raise ValueError(
                f"state {state.state_id!r} has no {kind!r} labels, only {sorted(state.labels)}: choose other labels, or a "
                "panel that has these"
            )
        n = len(state.commands)
        here = np.asarray(labels.values, dtype=np.float64)
        error = np.zeros(n) if labels.stderr is None else np.asarray(labels.stderr, dtype=np.float64)
        if here.shape != (n,) or error.shape != (n,):
            raise ValueError(
                f"state {state.state_id!r}: expected {n} {kind!r} labels, one a command, got {here.shape} and standard errors "
                f"{error.shape}; the panel is broken, build it again"
            )
        if not (np.isfinite(here).all() and np.isfinite(error).all()):
            raise ValueError(f"state {state.state_id!r}: {kind!r} labels must be finite; build the panel again")
        values.append(here)
        errors.append(error)
    return values, errors


def _pad(rows: Sequence[Any], mask: Bools, what: str) -> Floats:
    out = np.zeros(mask.shape)
    for i, (row, n) in enumerate(zip(rows, mask.sum(axis=1).tolist(), strict=True)):
        if len(row) != n:
            raise ValueError(f"{what}: expected {n} numbers for state {i}, one a command, got {len(row)}")
        out[i, :n] = np.asarray(row, dtype=np.float64)
    return out


def _order(values: Floats, stderr: Floats, mask: Bools, gap: float, z: float) -> Signs:
    """(S, A, A) signs of the differences that count."""
    out = np.zeros((*mask.shape, mask.shape[1]), dtype=np.int8)
    for start in range(0, len(mask), CHUNK):
        part = slice(start, start + CHUNK)
        v, e, m = values[part], stderr[part] ** 2, mask[part]
        difference = v[:, :, None] - v[:, None, :]  # (s, A, A)
        least = np.maximum(gap, z * np.sqrt(e[:, :, None] + e[:, None, :]))
        size = np.abs(difference)
        # A gap of exactly 0.05 must not be missed because 0.95 - 0.9 is a little less.
        counts = (size > EQUAL) & (size >= least - EQUAL) & m[:, :, None] & m[:, None, :]
        out[part] = np.sign(difference) * counts
    return out
