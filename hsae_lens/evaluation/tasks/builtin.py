"""Small behavioural tasks from templates, as clean/corrupt pairs.

A pair's two prompts differ in what decides the answer and in nothing else, so that the corrupt
prompt's right answer is the clean one's wrong answer.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hsae_lens._util.did_you_mean import did_you_mean
from hsae_lens.evaluation.tasks.pairs import Pair, TokenizedTask, tokenize_pairs

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


def make_task(name: str, tokenizer: Any, n: int = 64, seed: int = 0) -> TokenizedTask:
    """``n`` different pairs of a task from :data:`TASKS`, all of one length in this tokenizer.

    Papers' names (:data:`ALIASES`) and hyphens are understood.

    Raises:
        ValueError: for an unknown name (the nearest are said), or if the tokenizer leaves fewer
            than ``n`` pairs whose answers are single tokens and whose lengths agree.
    """
    name = task_name(name)
    every = list(TASKS[name]())
    random.Random(seed).shuffle(every)
    different = {pair.clean: pair for pair in every}
    return tokenize_pairs(name, different.values(), tokenizer, n)


def task_name(name: str) -> str:
    """What :data:`TASKS` calls a task.

    Raises:
        ValueError: for an unknown name (the nearest are said).
    """
    name = name.replace("-", "_")
    name = ALIASES.get(name, name)
    if name not in TASKS:
        raise ValueError(f"Unknown task {name!r}.{did_you_mean(name, TASKS)}")
    return name


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

ALIASES = {
    "ioi": "indirect_object",
    "sva": "agreement",
    "gender": "pronoun",
}
"""What papers call some of them."""
