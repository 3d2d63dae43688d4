"""``agentprm report``: runs and evaluations as one HTML page, with a viewer of their episodes.

:mod:`algorithms.report.sources` reads folders, :mod:`algorithms.report.replay` plays episodes again to know the room and the
planner's values, :mod:`algorithms.report.viewing` writes what the page's script reads, :mod:`algorithms.report.page` draws and
fills the template.
"""
