"""The leaderboard of the benchmark: ``python -m benchmarks.leaderboard [--quick] [--out FILE]``.

Measures rankers on the panel ``generated``, against ``fair`` and against ``oracle`` labels, and writes
``results/leaderboard.json`` and the table ``results/bench.md``. The models are made where they are missing, each in a folder
below ``--work``: process reward models of both forms and an InversePRM, by one iteration from the panel's own policy ``sft_v1``
on generated train games. Nothing is trained against the process reward models before they are measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from algorithms.cli.main import main as agentprm
from algorithms.cli.output import provenance, write_json, write_text
from benchmarks.bench_panel import POLICIES

RESULTS = Path(__file__).parent / "results"
# Result files name what was run, so not by a path of this machine.
SFT, BETTER = (os.path.relpath(POLICIES / f"{name}_v1.zip") for name in ("sft", "better"))
#: Sizes of an iteration that were AgentPRM's default when this was measured.
SIZES = ("improve.n_updates=1", "rollout.n_games=600", "rollout.n_trunks=200", "rollout.n_branch_states=250")
#: Four rollouts of six commands each at 600 states, and the loss over lists.
BRANCHES = ("rollout.n_games=600", "rollout.n_trunks=600", "rollout.n_branch_states=600", "rollout.n_branch_candidates=6",
            "rollout.n_branch_rollouts=4", "prm.rank_loss=list")  # fmt: skip
#: The options of ``agentprm train`` that make each model.
MODELS: Mapping[str, Sequence[str]] = {
    "scalar": ("--algo", "agentprm", "--set", *SIZES, "prm.form=scalar"),
    "log_prob": ("--algo", "agentprm", "--set", *SIZES, "prm.form=log_prob"),
    "scalar_branches": ("--algo", "agentprm", "--set", "improve.n_updates=1", "prm.form=scalar", *BRANCHES),
    "log_prob_branches": ("--algo", "agentprm", "--set", "improve.n_updates=1", "prm.form=log_prob", *BRANCHES),
    "inverse": ("--algo", "inverseprm", "--n-demos", "100"),
}
COLUMNS = (
    "pair_accuracy",
    "top1",
    "regret",
    "normalised_regret",
    "auc",
    "pooled_auc",
    "dead_end_auc",
    "first_bad_step_f1",
)


def run(*words: object) -> None:
    """Run ``agentprm``.

    Raises:
        RuntimeError: it did not end well.
    """
    status = agentprm([str(word) for word in words])
    if status:
        raise RuntimeError(f"agentprm {' '.join(map(str, words))} ended with status {status}; see the message above")


def rankers(work: Path) -> list[str]:
    """The rankers, by the names that ``agentprm bench`` takes."""
    saves = {name: work / name / "model.zip" for name in MODELS}
    return [
        "planner=oracle",
        "fair_player=labels:fair",
        *(f"noise_{s}=noise:{s}@fair" for s in (0.02, 0.05, 0.1, 0.2)),
        "uniform",
        "length",
        "shuffled",
        "base=policy:tiny",
        f"sft_100=policy:{SFT}",
        f"sft_1000=policy:{BETTER}",
        f"implicit_1000_to_100=implicit:{BETTER}@{SFT}",
        *(
            f"agentprm_{form}=prm:{saves[form]}"
            for form in ("scalar", "log_prob", "scalar_branches", "log_prob_branches")
        ),
        f"inverse_prm=prm:{saves['inverse']}",
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few states, and no model that has to be trained")
    parser.add_argument("--work", type=Path, default=Path("runs/leaderboard"), help="where the models are")
    parser.add_argument("--out", type=Path, default=RESULTS / "leaderboard.json", help="result file")
    args = parser.parse_args()
    for name, options in {} if args.quick else MODELS.items():
        out = args.work / name
        if not (out / "model.zip").exists():
            shared = (
                "--policy",
                SFT,
                "--games",
                "generated",
                "--iterations",
                1,
                "--seed",
                0,
                "--threads",
                1,
                "--out",
                out,
            )
            run("train", *options, *shared)
    names = [r for r in rankers(args.work) if not (args.quick and "prm:" in r)]
    found: dict[str, Any] = {}
    for labels in ("fair", "oracle"):
        out = args.work / f"bench_{labels}"
        few = ("--max-states", 60) if args.quick else ()
        run("bench", *names, "--panel", "generated", "--labels", labels, "--draws-from", f"policy:{SFT}",
            "--out", out, "--overwrite", *few)  # fmt: skip
        found[labels] = json.loads((out / "result.json").read_text(encoding="utf-8"))
    figures = {}
    for labels, result in found.items():
        for row in result["rows"]:
            for column in COLUMNS:
                value = row["metrics"][column]["value"]
                if value is not None:
                    figures[f"{labels}/{row['name']}/{column}"] = value
    panel = {key: found["fair"][key] for key in ("panel", "labels") if key in found["fair"]}
    write_json(
        args.out,
        {"name": "leaderboard", **provenance(), "date": datetime.date.today().isoformat(), "seeds": [0],
         "quick": args.quick, "panel": panel, "figures": figures, "rows": found},
    )  # fmt: skip
    if not args.quick:
        write_text(args.out.with_name("bench.md"), markdown(args.work))
    print(f"written to {args.out}")


def markdown(work: Path) -> str:
    """The leaderboard as a page, made of the rows that ``agentprm bench`` writes."""
    head = "# Leaderboard: panel `generated`, version 1\n\n`python -m benchmarks.leaderboard` makes this file; docs/bench.md "
    head += "explains rankers, labels and metrics. Intervals are 95 %, over games.\n"
    parts = [
        f"\n## `{k}` labels\n\n" + (work / f"bench_{k}" / "rows.md").read_text("utf-8") for k in ("fair", "oracle")
    ]
    return head + "".join(parts)


if __name__ == "__main__":
    main()
