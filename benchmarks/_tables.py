"""Tables of studies, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figures:
    """A table of figures for people.

    Attributes:
        title: what it shows.
        columns: their names; the first is that of the rows' names.
        rows: cells as text.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]

    def show(self, console: Console) -> None:
        """Print it."""
        table = Table(title=self.title)
        for i, name in enumerate(self.columns):
            table.add_column(name, justify="right" if i else "left")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)

    def markdown(self) -> str:
        """It as Markdown."""
        lines = [f"**{self.title}**", "", *("| " + " | ".join(row) + " |" for row in (self.columns, *self.rows))]
        return "\n".join([*lines[:3], "|---" * len(self.columns) + "|", *lines[3:]]) + "\n"


def percent(figures: Mapping[str, float], name: str, sign: str = "") -> str:
    """A mean in percent with half its interval; empty where there is no such figure.

    Args:
        figures: shares, and half the width of their intervals under ``<name>_half_interval``.
        name: which.
        sign: ``"+"`` shows the sign of a difference.
    """
    if name not in figures:
        return ""
    half = figures.get(f"{name}_half_interval")
    return f"{100 * figures[name]:{sign}.1f}" + ("" if half is None else f" ± {100 * half:.1f}")
