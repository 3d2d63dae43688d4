"""A few turns to read, each with what could have been done there, how likely the policy found it and how good the PRM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from agentprm_gym.episodes import Episode
from agentprm_gym.llm.scoring import Responder, episode_log_probs
from agentprm_gym.plain_text import cell
from agentprm_gym.prm.model import ProcessRewardModel
from algorithms.common.acting.policy import POLICY

#: Turns in a sample, and commands at each.
N_TURNS, N_COMMANDS = 6, 6


@torch.no_grad()
def candidates_markdown(
    prm: ProcessRewardModel,
    responder: Responder,
    episodes: Sequence[Episode],
    rng: np.random.Generator,
) -> str:
    """A Markdown table: turns of different episodes, their likeliest commands, and the PRM's favourites among the rest.

    Args:
        prm: scores the commands.
        responder: how the policy acts, whose adapter is :data:`POLICY`.
        episodes: to draw turns from; those with a choice are drawn.
        rng: draws.

    Returns:
        The text; empty where nothing can be shown: no turn with a choice, or a policy without a distribution over commands.
    """
    if responder.mode == "generate":
        return ""
    drawn: list[tuple[Episode, int]] = []
    for i in rng.permutation(len(episodes)):
        choices = [t for t, turn in enumerate(episodes[int(i)].turns) if len(turn.admissible_commands) > 1]
        if choices:
            drawn.append((episodes[int(i)], int(rng.choice(choices))))
        if len(drawn) == N_TURNS:
            break
    if not drawn:
        return ""
    batch, turns = [e for e, _ in drawn], [[t] for _, t in drawn]
    with responder.lm.active(POLICY):
        log_probs = [row for (row,) in episode_log_probs(responder, batch, turns)]  # (n_commands,) each
    scores = [torch.sigmoid(row) for (row,) in prm.score_all(batch, turns)]  # (n_commands,) each
    lines = ["Q is the PRM's; ▶ what was done, ★ the highest Q of all that was possible.", ""]
    lines += ["| the state, and what could be done | policy | Q |", "| --- | ---: | ---: |"]
    for (episode, t), log_prob, q in zip(drawn, log_probs, scores, strict=True):
        turn = episode.turns[t]
        outcome = "won" if episode.success else "lost"
        lines.append(
            f"| **{cell(episode.task)}** turn {t + 1} of {len(episode.turns)}, {outcome}: {cell(turn.feedback)} | | |"
        )
        likely, good = (torch.argsort(x, descending=True, stable=True).tolist() for x in (log_prob, q))
        commands = list(turn.admissible_commands)
        done = [commands.index(turn.command)] if turn.command in commands else []
        chosen = list(dict.fromkeys([*likely[: N_COMMANDS - 2], *good[:1], *done, *good]))[:N_COMMANDS]
        for i in sorted(chosen, key=good.index):
            marks = ("▶ " if i in done else "") + ("★ " if i == good[0] else "")
            lines.append(f"| {marks}{cell(commands[i])} | {float(log_prob[i].exp()):.1%} | {float(q[i]):.3f} |")
    return "\n".join(lines)
