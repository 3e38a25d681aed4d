"""Seeded damage to files: bytes, trees of values, tables and folders.

Every function draws from the ``random.Random`` it is given and nothing else, so a seed tells the
whole story.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

ODD: tuple[Any, ...] = (
    None, "", " ", "x", "é€😀", "a\nb", "a\x00b", "\ud800", "$x_1", "../..", "a" * 3000,
    "<script>alert(1)</script>", "nan", "null", "true", "1,x", -1, 0, 1, 2, 7, 10**6, 2**63, 10**30,
    0.5, -0.0, 1e308, float("nan"), float("inf"), True, False, [], {}, [1], [None], {"a": 1},
)  # fmt: skip
"""Values that are seldom what a program expects."""


def change_bytes(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Data as a broken disk, editor or download leaves it, and what was done."""
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((1, 8, 500)))
    some = rng.randbytes(rng.choice((1, 4, 64)))
    changes: dict[str, Callable[[], bytes]] = {
        "cut short": lambda: data[:at],
        "beginning lost": lambda: data[at:],
        "bytes overwritten": lambda: data[:at] + some + data[at + len(some) :],
        "bytes inserted": lambda: data[:at] + some + data[at:],
        "bytes lost": lambda: data[:at] + data[end:],
        "bytes repeated": lambda: data[:end] + data[at:end] + data[end:],
        "zeros": lambda: data[:at] + bytes(end - at) + data[end:],
        "emptied": lambda: b"",
        "Windows line ends": lambda: data.replace(b"\n", b"\r\n"),
        "byte order mark": lambda: b"\xef\xbb\xbf" + data,
        "UTF-16": lambda: data.decode("latin-1").encode("utf-16"),
        "Latin-1": lambda: data[:at] + "é".encode("latin-1") + data[at:],
        "brackets": lambda: data[:at] + rng.choice((b"[", b"{", b'"', b"- ", b"&a")) + data[at:],
        "deep brackets": lambda: data[:at] + b"[" * 20_000 + data[at:],
        "line lost": lambda: b"\n".join(_without_one(rng, data.split(b"\n"))),
    }
    name = rng.choice(list(changes))
    return changes[name](), f"{name} at {at}"


def change_tree(rng: random.Random, tree: Any) -> tuple[Any, str]:
    """A tree of dicts and lists with one node changed, and what was done."""
    path = rng.choice(_paths(tree))
    if not path:
        return rng.choice(ODD), "everything replaced"
    *parents, key = path
    where = "/".join(map(str, path))
    holder = tree
    for step in parents:
        holder = holder[step]
    value = holder[key]
    change = rng.choice(("odd", "odd", "odd", "lost", "renamed", "added", "twice", "text", "near"))
    if change == "lost":
        del holder[key]
    elif change == "renamed" and isinstance(holder, dict):
        del holder[key]
        holder[f"{key}s"] = value
    elif change == "added" and isinstance(holder, dict):
        holder[rng.choice(("new", "é", 3, ""))] = rng.choice(ODD)
    elif change == "twice":
        holder[key] = [value, value]
    elif change == "text":
        holder[key] = str(value)
    elif change == "near" and isinstance(value, int | float):
        holder[key] = rng.choice((value + 1, value - 1, -value, value * 2, value / 2))
    else:
        odd = rng.choice(ODD)
        holder[key] = odd
        change = f"is now {str(odd)[:40]!r} ({type(odd).__name__})"
    return tree, f"{where}: {change}"


def change_files(rng: random.Random, folder: Path) -> str:
    """One file of a folder gone, emptied, swapped or something else, and what was done."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    file = rng.choice(files)
    name = file.relative_to(folder)
    change = rng.choice(("gone", "a folder", "a link to nothing", "another's content", "random"))
    content = rng.choice(files).read_bytes()
    if change == "random":
        file.write_bytes(rng.randbytes(rng.choice((1, 100, 5000))))
    elif change == "another's content":
        file.write_bytes(content)
    else:
        file.unlink()
        if change == "a folder":
            file.mkdir()
        elif change == "a link to nothing":
            file.symlink_to(folder / "nothing")
    return f"{name}: {change}"


def change_file_bytes(rng: random.Random, file: Path) -> str:
    """:func:`change_bytes` of a file."""
    data, change = change_bytes(rng, file.read_bytes())
    file.write_bytes(data)
    return f"{file.name}: {change}"


def _without_one(rng: random.Random, parts: list[bytes]) -> list[bytes]:
    at = rng.randrange(len(parts))
    return parts[:at] + parts[at + 1 :]


def _paths(tree: Any) -> list[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    below = [
        (key, *path)
        for key, value in items
        for path in (_paths(value) if isinstance(value, dict | list) else [()])
    ]
    return [(), *below]
