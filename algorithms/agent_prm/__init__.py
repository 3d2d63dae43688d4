"""AgentPRM (Choudhury, arXiv 2502.10325, section 2); start reading at :mod:`algorithms.agent_prm.agent_prm`.

:meth:`AgentPRM.paper` is the paper's recipe. The defaults differ from it, and from its released code:

1. Targets discount the return to go, and failures are 0; the released code has ``gamma ** t`` on outcomes of +1 and -1.
2. Some states are branched (section 4.1, resets): ``rollout.n_branch_states``.
3. A relative loss within the state stands beside the soft cross-entropy: ``prm.rank_coef``.
4. Samples are fresh in every update, and pairs under ``improve.margin`` are dropped.
5. Measured returns are weighed in beside the PRM (``improve.prior_visits``), and won episodes are imitated
   (``improve.imitation_coef``): fitted to a few thousand episodes, the scalar PRM ranks the commands of one state hardly
   better than chance.
6. Objectives beside online DPO: ``improve.objective``; ``prm.form="log_prob"`` ranks by log-probabilities.
7. The PRM's data are split by game, not by state; train games that are never rolled out say which iteration is kept, and
   a guard tells where the PRM is fooled (``on_divergence``).
8. The PRM, and the policy that is kept, are means over the iterations (``ema_decay``).
9. Other games can be played by best-of-N with the new PRM, and the won episodes imitated (``improve.n_searched``).
"""

from algorithms.agent_prm.agent_prm import AgentPRM

__all__ = ["AgentPRM"]
