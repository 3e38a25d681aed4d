"""A small model with a task and dictionaries, and what the command needs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.circuits import CONTEXT, HOOKS, PAIRS, dictionary, save_small

from hsae_lens import HierarchicalTopKSAE
from hsae_lens.evaluation.tasks.pairs import TokenizedTask
from hsae_lens.models.opening import open_model


@pytest.fixture(scope="session")
def model(gemma2_folder: Path) -> Any:
    return open_model(gemma2_folder, dtype=torch.float64)


@pytest.fixture(scope="session")
def task(model: Any) -> TokenizedTask:
    n, generator = 6, torch.Generator().manual_seed(0)
    clean = torch.randint(3, 300, (n, CONTEXT), generator=generator)
    clean[:, 0] = model.tokenizer.bos_token_id
    corrupt = clean.clone()
    corrupt[:, 4] = torch.randint(3, 300, (n,), generator=generator)
    right, wrong = torch.randint(3, 300, (2, n), generator=generator)
    return TokenizedTask("random", clean, corrupt, right, wrong)


@pytest.fixture(scope="session")
def saes(model: Any, task: TokenizedTask) -> list[HierarchicalTopKSAE]:
    return [dictionary(model, hook, task.clean) for hook in HOOKS]


@pytest.fixture(scope="session")
def pairs_file(tiny_gemma2: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs that a model of random weights is right about, because it was asked first."""
    tokenizer = tiny_gemma2.tokenizer
    words = [" " + letter for letter in "abcdefghijklmnopqrstuvwxyz$"]
    ids = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in words}
    single = {word: id[0] for word, id in ids.items() if len(id) == 1}
    letters = random.Random(0).choices([w.strip() for w in single if w != " $"], k=4 * PAIRS)
    clean = [f"{'$'.join(letters[4 * n : 4 * n + 3])} {letters[n]}" for n in range(PAIRS)]
    corrupt = [f"{'$'.join(letters[4 * n + 1 : 4 * n + 4])} {letters[-n]}" for n in range(PAIRS)]
    rows = []
    for one, other in zip(clean, corrupt, strict=True):
        tokens = [tokenizer.bos_token_id, *tokenizer(one, add_special_tokens=False)["input_ids"]]
        logits = tiny_gemma2(torch.tensor([tokens]), prepend_bos=False)[0, -1]
        liked = sorted(single, key=lambda word: float(logits[single[word]]))
        rows.append([one, other, liked[-1], liked[0]])
    path = tmp_path_factory.mktemp("pairs") / "made.csv"
    pd.DataFrame(rows, columns=["clean", "corrupt", "right", "wrong"]).to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def small_sae(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small(tmp_path_factory.mktemp("saes") / "$small_$")


@pytest.fixture(scope="session")
def calibrated_sae(tiny_gemma2: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small(tmp_path_factory.mktemp("saes") / "calibrated", model=tiny_gemma2)


@pytest.fixture(scope="session")
def settings(
    gemma2_folder: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    return {
        "sae": [save_small(tmp_path_factory.mktemp("saes") / "$stock_$", stock=True)],
        "beside": [],
        "task": str(pairs_file),
        "model": str(gemma2_folder),
        "pairs": PAIRS,
        "steps": 1,
        "budgets": [4, 40],
        "sizes": [1, 4, 100000],
        "dtype": "float32",
    }
