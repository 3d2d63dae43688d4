"""Licences and known weaknesses of what is installed with this package: ``make audit``, or ``python -m benchmarks.audit``.

* The licence of every package that ``pip install agentprm-gym`` brings, as the installed packages' own metadata say it, is
  written to benchmarks/results/licences.md. This works offline. A package that names none is marked, and so is one whose
  licence asks more of those who pass the package on than its notice (GPL, AGPL, LGPL, MPL, NVIDIA's for CUDA).
* ``pip-audit`` looks the pinned versions of constraints.txt up in a service of known weaknesses. Without a network, or behind
  an index without that service, it cannot; then this says so, and nothing is known about weaknesses. Packages that it skips
  are named: by itself it calls a result clean in which nothing was looked up.

The exit status is 1 where a weakness is known, else 0, also where pip-audit cannot run.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "licences.md"
PACKAGE = "agentprm-gym"
UNKNOWN = "not said"

# A licence that reaches beyond the package itself. The Lesser GPL and the MPL reach as far as its own files.
_RECIPROCAL = re.compile(r"\b(?:A|L)?GPL|\bMPL|Mozilla Public|GNU .*General Public|EUPL|Proprietary", re.IGNORECASE)
# Beginnings of licence texts, for packages that keep the text alone.
_TEXTS = (
    ("Apache-2.0", re.compile(r"Apache License\s+Version 2\.0")),
    ("MIT", re.compile(r"MIT License|Permission is hereby granted, free of charge, to any person obtaining a copy")),
    ("BSD", re.compile(r"Redistribution and use in source and binary forms")),
    ("GPL-3.0", re.compile(r"GNU GENERAL PUBLIC LICENSE\s+Version 3")),
    ("GPL-2.0", re.compile(r"GNU GENERAL PUBLIC LICENSE\s+Version 2")),
)


@dataclass(frozen=True)
class Licence:
    """A package that is installed.

    Attributes:
        name: of the package.
        version: that is installed; empty where it is not.
        licence: as its metadata say, or ``UNKNOWN``.
        source: where that was read: "expression", "classifier", "field" or "file".
        direct: whether this package asks for it itself.
    """

    name: str
    version: str
    licence: str
    source: str
    direct: bool

    @property
    def is_reciprocal(self) -> bool:
        """Whether the licence asks more than to keep a notice."""
        return bool(_RECIPROCAL.search(self.licence))


def requirements(package: str, extras: Sequence[str] = ()) -> Iterator[Requirement]:
    """Yield what a package needs on this machine.

    Args:
        package: an installed one.
        extras: of the package, that are wanted, too.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    for text in metadata.requires(package) or []:
        requirement = Requirement(text)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in ("", *extras)):
            yield requirement


def installed(package: str = PACKAGE) -> list[Licence]:
    """The packages that a package brings, and those that they bring, by name.

    Args:
        package: an installed one, which is left out itself.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    direct = {canonicalize_name(r.name) for r in requirements(package)}
    waiting = list(requirements(package))
    seen: set[tuple[str, tuple[str, ...]]] = set()
    found: dict[str, Licence] = {}
    while waiting:
        requirement = waiting.pop()
        name, extras = str(canonicalize_name(requirement.name)), tuple(sorted(requirement.extras))
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            waiting += requirements(name, extras)
            found[name] = Licence(name, metadata.version(name), *licence_of(name), name in direct)
        except metadata.PackageNotFoundError:
            found[name] = Licence(name, "", "not installed here", "", name in direct)
    return [found[name] for name in sorted(found)]


def licence_of(package: str) -> tuple[str, str]:
    """The licence of an installed package, and where it was read.

    Args:
        package: its name.
    """
    info = metadata.metadata(package)
    if expression := info.get("License-Expression"):
        return str(expression), "expression"
    classifiers = [str(c) for c in info.get_all("Classifier") or [] if str(c).startswith("License ::")]
    named = [c.rpartition("::")[2].strip() for c in classifiers if c.count("::") > 1]
    if named:
        return ", ".join(named), "classifier"
    field = str(info.get("License") or "").strip()
    if field and "\n" not in field and len(field) < 80 and field.lower() not in ("unknown", "none"):
        return field, "field"
    texts = [field, *(_text(package, name) for name in info.get_all("License-File") or [])]
    if not any(texts):
        files = metadata.files(package) or []
        texts = [_text(package, f.name) for f in files if re.match(r"(?i)(licen[cs]e|copying)", f.name)]
    for name, pattern in _TEXTS:
        if any(pattern.search(text) for text in texts):
            return name, "file"
    return UNKNOWN, ""


def _text(package: str, name: str) -> str:
    for path in metadata.files(package) or []:
        if path.name == Path(name).name:
            try:
                return path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                return ""
    return ""


def table(rows: Sequence[Licence]) -> str:
    """The licences as a page.

    Args:
        rows: the packages.
    """
    asks = [row for row in rows if row.is_reciprocal]
    unknown = [row for row in rows if row.licence == UNKNOWN]
    told = [
        "# Licences of what is installed with this package",
        "",
        "Made by `python -m benchmarks.audit` (`make audit`) from the metadata of the installed packages; no legal advice. "
        f"{len(rows)} packages, {sum(row.direct for row in rows)} of them named in pyproject.toml (bold).",
        "",
        "Licences that ask more than to keep a notice: "
        + (", ".join(f"{row.name} ({row.licence})" for row in asks) or "none")
        + ".",
        "",
        "Licence not found: " + (", ".join(row.name for row in unknown) or "none") + ".",
        "",
        "| package | version | licence | read from |",
        "|---|---|---|---|",
    ]
    for row in rows:
        name = f"**{row.name}**" if row.direct else row.name
        told.append(f"| {name} | {row.version} | {row.licence} | {row.source} |")
    return "\n".join(told) + "\n"


def weaknesses(command: Sequence[str], pins: Path) -> tuple[int, str]:
    """Let pip-audit look pinned versions up.

    Args:
        command: that runs it.
        pins: a file of ``name==version`` lines.

    Returns:
        1 where it knows of a weakness, else 0; and what it said, or why nothing is known.
    """
    words = [*command, "--requirement", str(pins), "--no-deps", "--disable-pip", "--progress-spinner", "off"]
    try:
        done = subprocess.run([*words, "--format", "json"], capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 0, f"pip-audit did not run ({error}): nothing is known about weaknesses of these versions"
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        return 0, f"pip-audit could not look anything up, so nothing is known about weaknesses. It said: {last}"
    # It calls the result clean where no package was found, such as behind a mirror that has files and no descriptions.
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    known = [
        f"{one['name']} {one['version']}: {weak['id']}, mended in {', '.join(weak['fix_versions']) or 'no version'}"
        for one in packages
        for weak in one.get("vulns", [])
    ]
    n = len(packages)
    told = [f"pip-audit looked up {n - len(skipped)} of {n} packages, and knows {len(known)} weaknesses"]
    if skipped:
        told.append(f"not looked up, so nothing is known about them: {', '.join(skipped)}")
    return int(bool(known)), "\n".join([*told, *known])


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument(
        "--pip-audit",
        nargs="+",
        default=[sys.executable, "-m", "pip_audit"],
        metavar="WORD",
        help="the command that runs pip-audit (default: that of this Python)",
    )
    parser.add_argument("--pins", type=Path, default=ROOT / "constraints.txt", help="versions that are looked up")
    parser.add_argument("--licences-only", action="store_true", help="do not run pip-audit")
    args = parser.parse_args()
    rows = installed()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(table(rows), encoding="utf-8")
    unknown = [row.name for row in rows if row.licence == UNKNOWN]
    print(f"licences of {len(rows)} packages: {args.out}" + (f"; not found: {', '.join(unknown)}" if unknown else ""))
    if args.licences_only:
        return 0
    status, said = weaknesses(args.pip_audit, args.pins)
    print(said)
    return status


if __name__ == "__main__":
    sys.exit(main())
