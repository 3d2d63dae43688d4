"""Process reward models, and improvement against them, for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from agentprm_gym.episodes import Episode
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.prm.model import ProcessRewardModel
from algorithms.common.prm.bandit import Bandit, ImproveStats
from algorithms.common.prm.improve import ImproveStage
from tests.llm_helpers import randomise


def random_prm(lm: LanguageModel, form: str, scale: float = 0.05) -> ProcessRewardModel:
    """A process reward model with random weights."""
    prm = ProcessRewardModel(lm, form=form)
    randomise(lm, prm.adapter, scale)
    with torch.no_grad():
        prm.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return prm


def passes_of_any_size(stage: ImproveStage, bandit: Bandit, episodes: Sequence[Episode], least: int) -> ImproveStats:
    """Check that an improvement does not depend on how many episodes a forward pass takes.

    Args:
        stage: the improvement; it imitates the first three episodes.
        bandit: of the adapters "policy" and "reference", from which each begins.
        episodes: whose turns are the states.
        least: how many states at least are to be learnt from.

    Returns:
        What happened.
    """
    lm, after, series = bandit.lm, [], []
    for size in (1, 4, 6):
        lm.copy_adapter("reference", "policy")
        stats = stage(
            bandit,
            [(e, range(len(e.turns))) for e in episodes],
            [(e, 0) for e in episodes[:3]],
            learning_rate=1e-3,
            micro_batch_size=size,
            rng=np.random.default_rng(0),
        )
        after.append(torch.cat([p.detach().flatten() for p in lm.adapter_parameters("policy")]))
        series.append((stats.n_pairs, stats.losses, stats.kl, stats.scores, stats.gaps))
    before = torch.cat([p.detach().flatten() for p in lm.adapter_parameters("reference")])
    assert stats.n_pairs >= least and not torch.equal(before, after[0])
    for other, numbers in zip(after[1:], series[1:], strict=True):
        torch.testing.assert_close(other, after[0], atol=1e-4, rtol=0)
        assert numbers[0] == series[0][0]
        for a, b in zip(numbers[1:], series[0][1:], strict=True):
            assert a == pytest.approx(b, abs=1e-4)
    return stats
