"""The report's template, its style and its script: one page, without a build and without a network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from agentprm_gym.plain_text import plain


def _read(name: str) -> str:
    return (resources.files("algorithms.report.page") / name).read_text(encoding="utf-8")


def _allowed(content: str) -> str:
    """The source expression that lets a page run, or follow, exactly this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode('ascii')}'"


def _harmless(value: Any) -> Any:
    """What the template writes: a text without characters that a browser obeys; it is escaped after that."""
    return plain(value) if type(value) is str else value


def render(*, data: str, **values: Any) -> str:
    """Fill the template.

    The page's policy (Content-Security-Policy) allows this script, this style and images that stand in the page: no other
    script, and nothing from a network.

    Args:
        data: JSON from :func:`algorithms.report.viewing.embedded`.
        values: the template's other values; texts are escaped.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_harmless)
    script, style = _read("report.js"), _read("report.css")
    rules: Mapping[str, str] = {
        "default-src": "'none'",
        "script-src": _allowed(script),
        "style-src": _allowed(style),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    # These four are marked as safe in the template: the project's own, and JSON without a character that HTML would read.
    policy = "; ".join(f"{name} {source}" for name, source in rules.items())
    template = environment.from_string(_read("report.html.jinja"))
    return template.render(policy=policy, script=script, style=style, data=data, **values)
