"""Which targets the PRM is fitted to, out of the options of :class:`~algorithms.agent_prm.options.FitOptions`.

Three steps, each of which the defaults leave out but the first:

1. ``target``: Monte Carlo (:mod:`~algorithms.agent_prm.targets`), TD or GAE (:mod:`~algorithms.agent_prm.target_td`), or
   entropic (:mod:`~algorithms.agent_prm.target_entropic`).
2. ``shaping_coef``: the advantage of a reference policy mixed in (:mod:`~algorithms.agent_prm.target_reference`).
3. ``centre``: each command against its siblings (:mod:`~algorithms.agent_prm.target_siblings`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from algorithms.agent_prm.options import FitOptions
from algorithms.agent_prm.rollout import Experience
from algorithms.agent_prm.target_entropic import entropic_table
from algorithms.agent_prm.target_reference import Reference, shaped_table
from algorithms.agent_prm.target_siblings import sibling_table
from algorithms.agent_prm.target_td import td_table
from algorithms.agent_prm.targets import QTable, turn_returns
from algorithms.agent_prm.values import ValueOptions, Values, fit_value, predict_values
from algorithms.common.acting.policy import POLICY
from algorithms.common.learning.value import VALUE, ValueModel

if TYPE_CHECKING:
    from algorithms.agent_prm.agent_prm import AgentPRM


@dataclass(frozen=True, slots=True)
class Notes:
    """What was made of an experience before its targets: see :attr:`Experience.notes`.

    Attributes:
        values: V of the policy that played, by state key; empty where no target needs it.
        reference: V of the reference policy; ``None`` without shaping.
    """

    values: Values = field(default_factory=dict)
    reference: Reference | None = None


def make_targets(options: FitOptions, experience: Experience, gamma: float) -> QTable:
    """The targets of what a policy played.

    Args:
        options: which targets.
        experience: what was played; with notes, where the targets need values.
        gamma: discount a turn, in (0, 1].

    Raises:
        ValueError: the targets need values, and the experience has no notes.
    """
    notes = experience.notes
    if needs_notes(options) and notes is None:
        raise ValueError(
            f"the targets {options.target!r} with shaping_coef={options.shaping_coef} need values of states: call "
            "Labels.prepare(experience) first"
        )
    played = [*experience.trunks, *experience.others, *experience.branches]
    table = QTable(gamma, options.discount, options.reward_range)
    if options.target in ("td", "gae"):
        assert notes is not None
        gae_lambda = options.gae_lambda if options.target == "gae" else 0.0
        table = td_table(played, experience.peeks, notes.values, gamma, gae_lambda)
    elif options.target == "entropic":
        table = entropic_table(
            [r.episode for r in played],
            [r.n_history for r in played],
            lambda e: turn_returns(e, gamma, options.discount, options.reward_range).tolist(),
            gamma,
            options.eta,
        )
    else:
        experience.add_visits(table)
    if notes is not None and notes.reference is not None:
        table = shaped_table(table, played, experience.peeks, notes.reference, gamma)
    return sibling_table(table) if options.centre == "siblings" else table


def needs_notes(options: FitOptions) -> bool:
    """Whether targets need values of states."""
    return options.target in ("td", "gae") or options.shaping_coef > 0


class Labels:
    """Fits the value models that targets need, and keeps that of the reference policy."""

    def __init__(self, algorithm: AgentPRM) -> None:
        """Begin without a reference.

        Args:
            algorithm: whose policy, options and random streams are used.
        """
        self.algorithm = algorithm
        self._reference: dict[str, Any] | None = None

    def prepare(self, experience: Experience) -> None:
        """Write the notes of an experience, where targets need them and it has none.

        The result is a function of the experience, of the policy as it is before its improvement, and of the seed, so that a
        run that was killed between the fit and the improvement goes on with the same targets.

        Args:
            experience: what the policy played.
        """
        if not needs_notes(self.algorithm.fit) or experience.notes is not None:
            return
        with torch.random.fork_rng():  # heads are made at random before they are set: other streams must not notice
            experience.notes = self._notes(experience)

    def _notes(self, experience: Experience) -> Notes:
        model, fit = self.algorithm, self.algorithm.fit
        options = ValueOptions(fit.learning_rate, fit.batch_size, fit.value_epochs, model.micro_batch_size)
        # The first own turn of a branch was chosen for the policy, so its return says nothing about V of the state before it.
        own = [(r.episode, 0) for r in (*experience.trunks, *experience.others)]
        own += [(r.episode, r.n_history + 1) for r in experience.branches]
        parts = (experience.trunks, experience.others, experience.branches, experience.peeks)
        episodes = [r.episode for rollouts in parts for r in rollouts]
        values: Values = {}
        first = fit.shaping_coef > 0 and self._reference is None
        if first or fit.target in ("td", "gae"):
            rng = model.streams.rng("values")
            value = fit_value(model.policy.responder, own, model.gamma, options, rng, POLICY)
            values = predict_values(value, episodes, model.micro_batch_size)
            if first:  # mu is the policy that learning began with
                self._reference = {"adapter": model.lm.adapter_state(VALUE), "head": _on_cpu(value)}
        reference = None
        if fit.shaping_coef > 0:
            alpha = fit.shaping_coef * fit.shaping_decay**model.iteration
            known = values  # of the same model in the first iteration
            if alpha > 0 and not first:
                known = predict_values(self._reference_model(), episodes, model.micro_batch_size)
            reference = Reference(known, alpha)
        if VALUE in model.lm.adapters:
            model.lm.remove_adapter(VALUE)
        return Notes(values, reference)

    def _reference_model(self) -> ValueModel:
        assert self._reference is not None
        lm = self.algorithm.lm
        lm.copy_adapter(POLICY, VALUE)
        lm.load_adapter_state(VALUE, self._reference["adapter"])
        value = ValueModel(self.algorithm.policy.responder, VALUE)
        value.head.load_state_dict(self._reference["head"])
        return value

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of the reference; nothing without one."""
        return {} if self._reference is None else {"reference_value": self._reference}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` told."""
        self._reference = state.get("reference_value")


def _on_cpu(value: ValueModel) -> dict[str, Any]:
    return {name: tensor.detach().cpu().clone() for name, tensor in value.head.state_dict().items()}
