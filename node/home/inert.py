"""Text that somebody else wrote, made inert: nothing in it steers a terminal, hides, or reorders what is read.

`line` is for people and logs, `name` for messages that go to services which read markup. JSON keeps every character, as
an escape.
"""

import re
import unicodedata
from typing import Final

_MOST_NAME: Final = 120  # characters; a peer chooses how long its names are
_MOST_MARKS: Final = 6  # on one letter: more than any script needs, fewer than cover the lines above and below
_JOINERS: Final = "\u200c\u200d"  # ZWNJ and ZWJ: Persian and the scripts of India need them
_JOINED: Final = frozenset(("Lo", "Mc", "Mn"))  # what they may follow: Latin letters join nothing
_SPACES: Final = frozenset(("Zl", "Zp", "Zs"))
_DROPPED: Final = frozenset(("Cc", "Cf", "Cs"))  # controls and escape codes, direction marks, halves of surrogate pairs
_UNKNOWN: Final = frozenset(("Cn", "Co"))  # what each font and terminal takes as it likes
# Nothing is drawn for them, though they are letters, marks or symbols: Default_Ignorable_Code_Point, and U+2800.
_UNSEEN: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_MARKUP: Final = re.compile(r"[^\w .,:;/+'()-]|(?<=/)/")  # no mention, link, tag, formatting


def line(text: str) -> str:
    """`text` in one line: line breaks and tabs become spaces, what is not drawn or steers is left out."""
    if text.isascii() and text.isprintable():
        return text
    kept: list[str] = []
    marks = 0
    for character in text:
        category = unicodedata.category(character)
        if category in _SPACES or character in "\t\n\v\f\r\x85":
            category, character = "Zs", " "
        elif category in _UNKNOWN:
            character = "\ufffd"
        elif character in _JOINERS:
            if not kept or unicodedata.category(kept[-1]) not in _JOINED:
                continue
        elif category in _DROPPED or _UNSEEN.match(character):
            continue
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if marks <= _MOST_MARKS:
            kept.append(character)
    return "".join(kept)


def name(text: str) -> str:
    """A short name for messages to chat and mail: letters, digits and a little punctuation."""
    plain = _MARKUP.sub("_", line(text))
    return plain if len(plain) <= _MOST_NAME else f"{plain[: _MOST_NAME - 1]}…"
