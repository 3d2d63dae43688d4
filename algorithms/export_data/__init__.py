"""Episodes as data sets of other trainers, and back.

=================  =====================================================================================================
``"stepwise"``     TRL's stepwise supervision: ``prompt``, ``completions``, ``labels`` (whether a step can lead to a win)
``"preferences"``  pairs for DPO: ``prompt``, ``chosen``, ``rejected``, as messages
``"values"``       a row for each state: its commands with Q-hat, visits and, where asked for, Q*: soft labels
``"chat"``         conversations for supervised fine-tuning: ``messages``
``"episodes"``     the episodes themselves; they come back as they were
=================  =====================================================================================================

Q-hat is the mean return behind a command in a state (:class:`algorithms.agent_prm.targets.QTable`), Q* that of a player who
knows the whole game. Files are JSON Lines, plain or gzipped, or parquet, which needs ``pip install agentprm-gym[data]``.
"""

from algorithms.export_data.back import episodes_of_chats, episodes_of_rows
from algorithms.export_data.files import check_name, found_episodes, read_rows, write_rows
from algorithms.export_data.rows import (
    FORMATS,
    chat_rows,
    messages,
    optimal_values,
    preference_rows,
    q_table,
    stepwise_rows,
    value_rows,
)

__all__ = [
    "FORMATS",
    "chat_rows",
    "check_name",
    "episodes_of_chats",
    "episodes_of_rows",
    "found_episodes",
    "messages",
    "optimal_values",
    "preference_rows",
    "q_table",
    "read_rows",
    "stepwise_rows",
    "value_rows",
    "write_rows",
]
