"""What is usually kept where, by the names that a player reads ("coffeetable", "mug").

The rates are totals over train games (`room_statistics.json`): what one knows who has lived there.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

RECEPTACLES = frozenset(
    (
        "armchair bathtubbasin bed cabinet cart coffeemachine coffeetable countertop desk "
        "diningtable drawer dresser fridge garbagecan handtowelholder laundryhamper microwave "
        "ottoman paintinghanger safe shelf sidetable sinkbasin sofa stoveburner toaster toilet "
        "toiletpaperhanger towelholder tvstand"
    ).split()
)
# Twenty cabinets hold more than one does, but not twenty times as much. Of the exponents 0, 1/4,
# 1/2, 3/4 and 1 this one gives what lies where in the real train games the greatest likelihood.
CROWDING = 0.75
OPENABLE = frozenset({"cabinet", "drawer", "fridge", "microwave", "safe"})


@cache
def _tables() -> tuple[dict[str, dict[str, float]], dict[str, set[str]]]:
    here = Path(__file__).parent
    homes = json.loads((here / "room_statistics.json").read_text(encoding="utf-8"))["homes"]
    fits = json.loads((here / "alfred_tables.json").read_text(encoding="utf-8"))["can_contain"]
    rates = {o.lower(): {r.lower(): n / 1e4 for r, n in table.items()} for o, table in homes.items()}
    return rates, {r.lower(): {o.lower() for o in objects} for r, objects in fits.items()}


@cache
def holding_rate(object_type: str, receptacle_type: str, n: int = 1) -> float:
    """How likely one of n receptacles of this type holds an object of that type.

    Never quite 0, so that the unlikely is searched last and not never; higher where it would fit.
    """
    rates, _ = _tables()
    rate = rates.get(object_type, {}).get(receptacle_type, 0.0)
    return rate / float(n**CROWDING) + (1e-4 if may_hold(object_type, receptacle_type) else 1e-6)


@cache
def may_hold(object_type: str, receptacle_type: str) -> bool:
    """Whether the game lets such an object be put there."""
    return object_type in _tables()[1].get(receptacle_type, ())
