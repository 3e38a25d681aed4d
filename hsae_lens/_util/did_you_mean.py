"""What an error about an unknown name adds: the names it may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names as a question, and all of them if they are few."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return hint + (f" Known: {', '.join(names)}." if len(names) <= 8 else "")
