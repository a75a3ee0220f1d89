"""Text that somebody else wrote, made inert: nothing in it steers a terminal, hides, or reorders what is read.

`line` is for people and logs, `json_text` for files that keep every character, `name` for messages that go to services
which read markup.
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
_UNSEEN: Final = (
    re.compile(  # nothing is drawn for them, though they are letters or marks: Default_Ignorable, and U+2800
        "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
    )
)
_NOT_PLAIN: Final = re.compile(r"[^\n\x20-\x7e]")
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


def json_text(text: str) -> str:
    """JSON with every character that `line` would change written as an escape: it means the same."""
    return _NOT_PLAIN.sub(lambda found: _escaped(found[0]), text)


def name(text: str) -> str:
    """A short name for messages to chat and mail: letters, digits and a little punctuation."""
    plain = _MARKUP.sub("_", line(text))
    return plain if len(plain) <= _MOST_NAME else f"{plain[: _MOST_NAME - 1]}…"


def _escaped(character: str) -> str:
    if unicodedata.category(character)[0] not in "CZ" and not _UNSEEN.match(character):
        return character
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4))
