"""The demo as a measurement: ``python -m benchmarks.demo [--quick] [--seeds 0 1 2] [--out FILE]``.

Runs ``agentprm demo`` once a seed (a finished run folder is taken as it is) and writes success of each policy, the paired
difference to SFT in the same mode of acting, and the same pooled over seeds. One seed says how one run went; a claim about
the method needs three or more.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from algorithms.cli.main import main as agentprm
from algorithms.cli.output import PlainConsole, provenance, write_json
from algorithms.common.measure.comparison import mean_interval

RESULTS = Path(__file__).parent / "results"


def run_seed(seed: int, games: str, folder: Path, quick: bool) -> dict[str, Any]:
    """One demo; returns what it wrote to result.json.

    Raises:
        RuntimeError: if the demo did not end well.
    """
    out = folder / f"demo_{games}_{seed}"
    small = ["--n-demos", "20", "--iterations", "1", "--max-games", "24"] if quick else []
    if not (out / "result.json").exists():
        status = agentprm(["demo", "--games", games, "--seed", str(seed), "--out", str(out), *small])
        if status != 0:
            raise RuntimeError(f"agentprm demo ended with status {status}; see the message above")
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    return result


def _over_seeds(figures: dict[str, float], key: str, values: list[float], sign: str = "", scale: float = 100) -> str:
    """Write a mean over seeds, and half its 95 % interval (Student's t) where there are several; returns both as a text."""
    mean, half = mean_interval(np.array(values))
    figures[key] = float(mean)
    if len(values) == 1:
        return f"{scale * mean:{sign}.1f}"
    figures[f"{key}_half_interval"] = float(half)
    return f"{scale * mean:{sign}.1f} ± {scale * half:.1f}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run for a first look")
    parser.add_argument("--games", default="generated", choices=("generated", "alfworld"), help="which games")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run folders are")
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/demo_<games>.json)")
    args = parser.parse_args()
    results = [run_seed(seed, args.games, args.runs, args.quick) for seed in args.seeds]
    figures: dict[str, float] = {}
    how = "mean ± half a 95 % interval over seeds" if len(results) > 1 else "95 % intervals over games"
    table = Table(title=f"success on {args.games} {results[0]['games']['split']}, seeds {args.seeds}, {how}")
    for column in ("policy", "games", "success %", "against SFT, same mode, paired", "mean steps"):
        table.add_column(column)
    for rows in zip(*(result["rows"] for result in results), strict=True):
        name = rows[0]["name"]
        key = name.lower().replace(" ", "_").replace(",", "")
        success = _over_seeds(figures, f"{key}_success", [row["success"] for row in rows])
        steps = _over_seeds(figures, f"{key}_mean_steps", [row["mean_steps"] for row in rows], scale=1)
        against = ""
        if "against_sft" in rows[0]:
            against = _over_seeds(figures, f"{key}_difference", [row["against_sft"]["difference"] for row in rows], "+")
            if len(rows) == 1:
                low, high = (rows[0]["against_sft"][part] for part in ("low", "high"))
                figures |= {f"{key}_low": low, f"{key}_high": high}
                against += f" [{100 * low:+.1f}, {100 * high:+.1f}]"
        table.add_row(name, str(rows[0]["n"]), success, against, steps)
    PlainConsole(width=None if sys.stdout.isatty() else 140).print(table)
    made_with = {key: results[-1][key] for key in ("commit", "machine", "versions")}
    path = args.out or RESULTS / f"demo_{args.games}.json"
    write_json(
        path,
        {
            "name": "demo",
            **made_with,
            "date": datetime.date.today().isoformat(),
            "report": provenance()["commit"],
            "seeds": args.seeds,
            "quick": args.quick,
            "games": results[0]["games"],
            "figures": figures,
            "rows": [row | {"seed": seed} for seed, r in zip(args.seeds, results, strict=True) for row in r["rows"]],
        },
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
