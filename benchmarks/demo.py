"""The demo as a measurement: ``python -m benchmarks.demo [--quick] [--seeds 0 1 2] [--out FILE]``.

Runs ``agentprm demo`` once a seed (a finished run folder is taken as it is) and writes success of each policy, the paired
difference to SFT in the same mode of acting, and the same pooled over seeds. One seed says how one run went; a claim about
the method needs three or more.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from algorithms.cli.common import provenance, write_json
from algorithms.cli.main import main as agentprm

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
    table = Table(title=f"success on {args.games} {results[0]['games']['split']}, mean over seeds {args.seeds}")
    for column in ("policy", "games", "success %", "against SFT, same mode"):
        table.add_column(column)
    for rows in zip(*(result["rows"] for result in results), strict=True):
        name, n = rows[0]["name"], len(rows)
        key = name.lower().replace(" ", "_").replace(",", "")
        figures[f"{key}_success"] = sum(row["success"] for row in rows) / n
        against = ""
        if "against_sft" in rows[0]:
            for part in ("difference", "low", "high"):
                figures[f"{key}_{part}"] = sum(row["against_sft"][part] for row in rows) / n
            low, high = 100 * figures[f"{key}_low"], 100 * figures[f"{key}_high"]
            against = f"{100 * figures[f'{key}_difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
        table.add_row(name, str(rows[0]["n"]), f"{100 * figures[f'{key}_success']:.1f}", against)
    Console().print(table)
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
