"""Feature absorption at every budget, by SAEBench's first-letter task (arXiv 2409.14507).

A latent that says "begins with s" may stay silent on "snake" because another one, about snakes, has
absorbed it. SAEBench's functions find such words with a probe on the model's own activations.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from hsae_lens._util.atomic_files import replacing_folder
from hsae_lens.evaluation.checks import budgets_of
from hsae_lens.evaluation.fingerprints import sae_fingerprint, work_name
from hsae_lens.models.fingerprint import model_fingerprint
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import hook_activations
from hsae_lens.objective.budgets import Budget, budget_rows
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE

# SAEBench's settings, but for the batch: few words in its batches of 4096 would be few steps.
SPARSE_BATCH = 256

TEMPLATE, POSITION = "{word} has the first letter:", -6  # the word's last token, from the end

LARGEST_PROBE = 10  # latents in a sparse probe

SPELLED = 0.6  # a letter counts if the probe on the model's activations has this F1

FEWEST_LETTERS = 20

FEWEST_WORDS = 10

INSTALL_SAE_BENCH = (
    "Absorption needs sae-bench, which asks for older numpy and datasets than it needs here: "
    "pip install --no-deps sae-bench==0.6.0 and pip install scikit-learn."
)


def feature_absorption(
    sae: HierarchicalTopKSAE,
    model: HookedModel,
    folder: str | Path,
    budgets: Sequence[Budget] | None = None,
    words: int = 100,
    progress: bool = True,
) -> pd.DataFrame:
    """How often a latent that marks a first letter is silent because others stand in for it.

    SAEBench trains probes for first letters on the model's activations and sparse ones on the SAE's
    latents, then looks at held-out words whose letter the model's probe reads.

    Args:
        sae: of a residual stream, ``blocks.N.hook_resid_post``.
        model: a hooked model in memory, run up to that block; it should know how words are spelled
            (SAEBench recommends 2B parameters or more), which the table says.
        folder: keeps probes and results, each whole or not at all, so that an interrupted run goes
            on; apart for each model and SAE (:mod:`hsae_lens.evaluation.fingerprints`).
        budgets: as :func:`evaluate_budgets` takes them; None for 1, 2, 4, … K.
        words: for each letter, 10 or more, of which a fifth is held out.

    Returns:
        A row per budget: ``k`` (and, if not all are fixed, ``rule`` and ``target``);
        ``absorption`` (mean over letters and words of the share of the
        letter's direction that other latents carry in place of the letter's own) and
        ``full_absorption`` (the share of words where those are all silent and one other carries
        it), both better when small; ``letter_f1`` (of the single latent that marks a letter best:
        where it is low, there is little to absorb); ``latents`` (that mark one letter, mean);
        ``letters`` and ``words`` that count; ``probe_f1`` and ``probe_accuracy`` (of the probe on
        the model's activations, chance 1/26: whether the model spells). Absorption is NaN where
        fewer than 20 letters have a probe with an F1 above 0.6: such a model has no spelling to
        absorb.

    Raises:
        ModuleNotFoundError: if sae-bench is not installed.
        ValueError: for another hook, bad budgets, or too few words.
    """
    resolved = budgets_of(sae, budgets)
    if importlib.util.find_spec("sae_bench") is None:
        raise ModuleNotFoundError(INSTALL_SAE_BENCH)
    hook = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", sae.cfg.metadata.hook_name or "")
    if hook is None:
        raise ValueError(
            "sae-bench measures absorption after a block, blocks.N.hook_resid_post; this SAE is of "
            f"{sae.cfg.metadata.hook_name}."
        )
    if words < FEWEST_WORDS:
        raise ValueError(f"{words} words for a letter are too few: give {FEWEST_WORDS} or more.")
    speller = _Speller(model, sae, words)
    folder = Path(folder) / f"{words}-words" / model_fingerprint(model)
    shared = {
        "model": speller,
        "layer": int(hook[1]),
        "max_k_value": LARGEST_PROBE,
        "prompt_template": TEMPLATE,
        "prompt_token_pos": POSITION,
        "device": str(sae.device),
        "probes_dir": folder / "probes",
    }
    with _quiet():
        _train_probes(shared)
    rows, of_sae = [], folder / sae_fingerprint(sae)
    for budget in tqdm(resolved, "Absorption", disable=not progress):
        with sae.using_budget(budget), _quiet():
            rows.append(_absorption_at_budget(sae, shared, of_sae, work_name(sae, budget)))
    in_table = budget_rows(resolved, sae.cfg.k)
    return pd.DataFrame([budget | row for budget, row in zip(in_table, rows, strict=True)])


def _train_probes(shared: dict[str, Any]) -> None:
    """Probes for letters on the model's activations, in ``probes_dir``."""
    from sae_bench.evals.absorption.common import load_or_train_probe

    if shared["probes_dir"].exists():
        return
    with replacing_folder(shared["probes_dir"]) as fresh, _seeded():
        load_or_train_probe(
            shared["model"],
            shared["prompt_template"],
            shared["prompt_token_pos"],
            shared["layer"],
            fresh,
            device=shared["device"],
        )


def _read_or_make(run: Callable[[Path], pd.DataFrame], folder: Path) -> pd.DataFrame:
    """What ``run`` gives for the folder's parent, where sae-bench reads the folder or makes it."""
    with _seeded():
        if folder.exists():
            return run(folder.parent)
        with replacing_folder(folder) as fresh:
            return run(fresh.parent)


def _absorption_at_budget(
    sae: HierarchicalTopKSAE, shared: dict[str, Any], folder: Path, name: str
) -> dict[str, float]:
    from sae_bench.evals.absorption import feature_absorption, k_sparse_probing

    shared = {**shared, "sae": sae, "sae_name": name}
    probes = _read_or_make(
        lambda place: k_sparse_probing.run_k_sparse_probing_experiment(
            experiment_dir=place,
            k_sparse_probe_batch_size=SPARSE_BATCH,
            precalc_k_sparse_probe_sae_acts=True,
            **shared,
        ),
        folder / "sparse" / name,
    )
    (file,) = (folder / "sparse" / name).glob("*_raw_results.parquet")
    spelled = probes[probes["f1_probe"] > SPELLED]
    row = {
        "absorption": float("nan"),
        "full_absorption": float("nan"),
        "letter_f1": spelled["f1_sparse_sae_1"].mean(),
        "latents": spelled["split_feats"].map(len).mean(),
        "letters": len(spelled),
        "words": 0,
        "probe_f1": probes["f1_probe"].mean(),
        "probe_accuracy": _spelling_accuracy(pd.read_parquet(file)),
    }
    if len(spelled) < FEWEST_LETTERS:
        return row
    found = _read_or_make(
        lambda place: feature_absorption.run_feature_absortion_experiment(
            experiment_dir=place,
            sparse_probing_experiment_dir=folder / "sparse",
            batch_size=64,
            **shared,
        ),
        folder / "absorption" / name,
    )
    found = found[found["letter"].isin(spelled["letter"])]
    of_letter = found.groupby("letter")
    return row | {
        "absorption": of_letter["absorption_fraction"].mean().mean(),
        "full_absorption": of_letter["is_full_absorption"].mean().mean(),
        "words": len(found),
    }


def _spelling_accuracy(raw: pd.DataFrame) -> float:
    """How often the model's activations say the right letter of a held-out word, of all 26."""
    scores = raw.filter(regex="^score_probe_")
    return float((scores.idxmax(axis=1).str[-1] == raw["answer_letter"]).mean())


class _Speller:
    """The model as sae-bench uses it: a few words known, prompts in, one hook's activations out.

    Keeps what it has run, the positions that are read only.
    """

    def __init__(self, model: HookedModel, sae: HierarchicalTopKSAE, words: int) -> None:
        name = str(sae.cfg.metadata.model_name or "model").replace("/", "--")
        self.model, self.hook_name = model, str(sae.cfg.metadata.hook_name)
        self.cfg = SimpleNamespace(model_name=name, d_model=sae.cfg.d_in)
        self.tokenizer = SimpleNamespace(
            vocab=dict.fromkeys(self._words(words)), convert_tokens_to_string="".join
        )
        self.seen: dict[str, torch.Tensor] = {}

    def to_tokens(self, prompts: str | Sequence[str]) -> torch.Tensor:
        tokenizer = self.model.tokenizer
        rows = tokenizer([prompts] if isinstance(prompts, str) else list(prompts))["input_ids"]
        bos = tokenizer.bos_token_id
        return torch.tensor([row if row[0] == bos else [bos, *row] for row in rows])

    def run_with_cache(
        self, prompts: list[str], names_filter: list[str]
    ) -> tuple[None, dict[str, torch.Tensor]]:
        new = [prompt for prompt in prompts if prompt not in self.seen]
        if new:
            acts = hook_activations(self.model, self.to_tokens(new), self.hook_name)
            self.seen |= zip(new, acts[:, POSITION:].float(), strict=True)
        return None, {self.hook_name: torch.stack([self.seen[prompt] for prompt in prompts])}

    def _words(self, n: int) -> list[str]:
        """Up to n words of each letter whose prompts are equally long in tokens."""
        from sae_bench.evals.absorption.vocab import LETTERS, get_alpha_tokens

        everything = sorted(get_alpha_tokens(self.model.tokenizer))
        lines = ["\n" + TEMPLATE.format(word=word) for word in everything]
        lengths = [len(row) for row in self.model.tokenizer(lines)["input_ids"]]
        usual = Counter(lengths).most_common(1)[0][0]
        fitting = [w for w, length in zip(everything, lengths, strict=True) if length == usual]
        rng, chosen = random.Random(0), []
        for letter in LETTERS:
            mine = [word for word in fitting if word.strip().lower().startswith(letter)]
            if len(mine) < FEWEST_WORDS:
                raise ValueError(
                    f"The model's tokenizer has {len(mine)} words of one token that begin with "
                    f"{letter!r}; the first-letter task needs {FEWEST_WORDS}."
                )
            chosen += rng.sample(mine, min(n, len(mine)))
        return chosen


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """sae-bench draws words and examples from the global generators; they are put back.

    So the prompts are the same at every budget, and the speller runs them once.
    """
    before = random.getstate()
    with torch.random.fork_rng():
        random.seed(0)
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """sae-bench reports every file and step, and scikit-learn letters without a held-out word."""
    out = contextlib.redirect_stdout(io.StringIO())
    err = contextlib.redirect_stderr(io.StringIO())
    with out, err, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
