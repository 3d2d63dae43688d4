"""Texts of other people, made harmless: those of games, of models and servers, of files.

:func:`whole` is for texts that come in and are kept: half a character cannot be written to a file. :func:`plain` is for texts
that go out to a terminal: it obeys some characters, and some turn the order of the others around. :func:`cell` is for a cell
of a Markdown table, as TensorBoard shows it.
"""

from __future__ import annotations

import re

#: What stands in place of a character that is taken out.
REPLACEMENT = "\ufffd"

_HALVES = re.compile("[\ud800-\udfff]")
# Control characters but for the tab and the end of a line; escapes (ESC and the 8-bit CSI and OSC) are among them. Then marks
# that change the direction of writing, invisible tags, separators of lines, and halves of characters.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)
# What Markdown and HTML give a meaning. Images and links begin with a bracket.
_MARKDOWN = {
    **{sign: f"\\{sign}" for sign in "\\|*_`"},
    **{"<": "&lt;", "[": "&#91;", "]": "&#93;"},
}
_WRITTEN = str.maketrans(_MARKDOWN)


def whole(text: str) -> str:
    r"""Replace halves of characters (lone surrogates), which no file in UTF-8 can hold.

    Args:
        text: any text.

    Example:
        >>> whole("caf\u00e9 \ud800").encode()
        b'caf\xc3\xa9 \xef\xbf\xbd'
    """
    return _HALVES.sub(REPLACEMENT, text)


def plain(text: str) -> str:
    r"""Replace the characters that a terminal obeys or that hide others; ends of lines and tabs stay.

    Args:
        text: any text.

    Example:
        >>> plain("a mug\x1b[2J\n") == "a mug\ufffd[2J\n"
        True
    """
    return _OBEYED.sub(REPLACEMENT, text)


def cell(text: str) -> str:
    r"""One line of Markdown that shows a text as it is: no image is loaded, no link made, and no cell left.

    Args:
        text: any text.

    Example:
        >>> cell("a|b ![c](http://d)")
        'a\\|b !&#91;c&#93;(http://d)'
    """
    return " ".join(plain(text).split()).translate(_WRITTEN)
