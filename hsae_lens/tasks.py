"""Small behavioural tasks from templates: clean/corrupt pairs with a right and a wrong token.

A pair's two prompts differ in what decides the answer and in nothing else, so that the corrupt
prompt's right answer is the clean one's wrong answer.
"""

from __future__ import annotations

import difflib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

NOUNS = [("key", "keys"), ("dog", "dogs"), ("book", "books"), ("tree", "trees"), ("car", "cars"),
         ("friend", "friends"), ("teacher", "teachers"), ("house", "houses"), ("river", "rivers"),
         ("student", "students"), ("doctor", "doctors"), ("picture", "pictures")]  # fmt: skip
MEN = ["John", "James", "David", "Michael", "Robert", "Peter", "Paul", "Mark", "Tom", "Daniel"]
WOMEN = ["Mary", "Sarah", "Anna", "Emma", "Lisa", "Laura", "Alice", "Jane", "Kate", "Susan"]
PLACES = ["store", "park", "school", "office", "station", "garden"]
THINGS = ["drink", "book", "ring", "letter", "present", "computer"]
EVENTS = ["war", "project", "reign", "dispute", "conference", "voyage"]
WORDS = ["apple", "river", "stone", "paper", "green", "music", "table", "north", "silver",
         "bread", "cloud", "horse", "light", "metal", "ocean", "plant", "queen", "sugar", "tower",
         "winter"]  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Two prompts and the next tokens that are right for one and wrong for the other."""

    clean: str
    corrupt: str
    right: str
    wrong: str


@dataclass(frozen=True)
class TokenizedTask:
    """A task in one tokenizer.

    clean, corrupt: int64 ``[n, context]``, BOS first.  right, wrong: int64 ``[n]``.
    """

    name: str
    clean: torch.Tensor
    corrupt: torch.Tensor
    right: torch.Tensor
    wrong: torch.Tensor


def make_task(name: str, tokenizer: Any, n: int = 64, seed: int = 0) -> TokenizedTask:
    """``n`` different pairs of a task from :data:`TASKS`, all of one length in this tokenizer.

    Raises:
        ValueError: for an unknown name (the nearest are said), or if the tokenizer leaves fewer
            than ``n`` pairs whose answers are single tokens and whose lengths agree.
    """
    if name not in TASKS:
        close = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.4)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Unknown task {name!r}.{hint} Known: {', '.join(TASKS)}.")
    every = list(TASKS[name]())
    random.Random(seed).shuffle(every)
    different = {pair.clean: pair for pair in every}
    return tokenize_pairs(name, different.values(), tokenizer, n)


def tokenize_pairs(
    name: str, pairs: Iterable[Pair], tokenizer: Any, n: int | None = None
) -> TokenizedTask:
    """Pairs of the most common length whose answers are single tokens; the first ``n`` of them.

    Raises:
        ValueError: if fewer than ``n`` pairs qualify (None: fewer than all), with an example of
            what does not.
    """
    pairs = list(pairs)
    by_length: dict[int, list[tuple[list[int], list[int], int, int]]] = {}
    refused = ""
    for pair in pairs:
        clean, corrupt = (tokenizer(p, add_special_tokens=False)["input_ids"] for p in
                          (pair.clean, pair.corrupt))  # fmt: skip
        right, wrong = (tokenizer(a, add_special_tokens=False)["input_ids"] for a in
                        (pair.right, pair.wrong))  # fmt: skip
        if len(right) != 1 or len(wrong) != 1:
            refused = f"{pair.right!r} or {pair.wrong!r} is several tokens in this tokenizer"
        elif len(clean) != len(corrupt):
            refused = f"{pair.clean!r} and {pair.corrupt!r} are of different length"
        else:
            by_length.setdefault(len(clean), []).append((clean, corrupt, right[0], wrong[0]))
    chosen = max(by_length.values(), key=len, default=[])
    wanted = len(pairs) if n is None else n
    if len(chosen) < wanted:
        reason = refused or "prompts are of different lengths"
        raise ValueError(
            f"The task {name!r} has {len(chosen)} pairs of one length with single-token answers, "
            f"{wanted} are needed ({reason})."
        )
    clean, corrupt, right, wrong = (list(column) for column in zip(*chosen[:wanted], strict=True))
    bos = [[tokenizer.bos_token_id]] if tokenizer.bos_token_id is not None else [[]]
    return TokenizedTask(
        name,
        torch.tensor([b + row for b, row in zip(itertools.cycle(bos), clean, strict=False)]),
        torch.tensor([b + row for b, row in zip(itertools.cycle(bos), corrupt, strict=False)]),
        torch.tensor(right),
        torch.tensor(wrong),
    )


# Every prompt begins with words that decide nothing: many SAEs are not trained on the first
# positions of a sequence, where models park outlier norms.
def _agreement() -> Iterator[Pair]:
    for (one, many), kind in itertools.product(NOUNS, ("old", "new", "other", "small")):
        for clean, corrupt, right, wrong in _numbers(one, many):
            start = f"As everyone can see, the {kind}"
            yield Pair(f"{start} {clean}", f"{start} {corrupt}", right, wrong)


def _agreement_across_a_clause() -> Iterator[Pair]:
    people, verbs = ("man", "woman", "child"), ("likes", "sees")
    for (one, many), person, verb in itertools.product(NOUNS, people, verbs):
        for clean, corrupt, right, wrong in _numbers(one, many):
            start, clause = "As everyone can see, the", f"that the {person} {verb}"
            yield Pair(f"{start} {clean} {clause}", f"{start} {corrupt} {clause}", right, wrong)


def _numbers(one: str, many: str) -> Sequence[tuple[str, str, str, str]]:
    return (one, many, " is", " are"), (many, one, " are", " is")


def _pronoun() -> Iterator[Pair]:
    endings = ("went home early because", "was so tired that", "had to leave because",
               "could not sleep because")  # fmt: skip
    for man, woman, ending in itertools.product(MEN, WOMEN, endings):
        start = "Late that evening,"
        his, hers = f"{start} {man} {ending}", f"{start} {woman} {ending}"
        yield Pair(his, hers, " he", " she")
        yield Pair(hers, his, " she", " he")


def _indirect_object() -> Iterator[Pair]:
    for a, b, place, thing in itertools.product(MEN, WOMEN, PLACES, THINGS):
        for first, second in ((a, b), (b, a)):
            start = f"Later that day, when {first} and {second} went to the {place},"
            give = f"gave a {thing} to"
            yield Pair(
                f"{start} {second} {give}", f"{start} {first} {give}", f" {first}", f" {second}"
            )


def _greater_than() -> Iterator[Pair]:
    # Forwards and backwards in time, so that neither large nor small digits are right as such.
    for event, century, low in itertools.product(EVENTS, (16, 17, 18), range(2, 8)):
        for year in range(10):
            year_given = f"in the year {century}{low}{year}"
            forwards, backwards = (
                f"The {event} that {one} {year_given} {other} in the year {century}"
                for one, other in (("began", "ended"), ("ended", "began"))
            )
            yield Pair(forwards, backwards, str(low + 1), str(low - 1))
            yield Pair(backwards, forwards, str(low - 1), str(low + 1))


def _induction() -> Iterator[Pair]:
    for seed in range(400):
        *start, b, c, end = random.Random(seed).sample(WORDS, 8)
        again = " ".join(start)
        clean = f" {again} {b} {c} {end} {again}"
        corrupt = f" {again} {c} {b} {end} {again}"
        yield Pair(clean, corrupt, f" {b}", f" {c}")


TASKS: dict[str, Callable[[], Iterator[Pair]]] = {
    "agreement": _agreement,
    "agreement_across_a_clause": _agreement_across_a_clause,
    "pronoun": _pronoun,
    "indirect_object": _indirect_object,
    "greater_than": _greater_than,
    "induction": _induction,
}
"""Tasks by name; a task yields all its pairs."""
