"""What every SAE of a comparison is trained and judged on: collected once, then read from disk."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from sae_lens.synthetic import SyntheticModel
from safetensors.torch import load_file, save_file

from hsae_lens._util.atomic_files import replacing_file
from hsae_lens.comparison.config import CompareConfig
from hsae_lens.comparison.synthetic import activations
from hsae_lens.evaluation.frontier.metrics import FEWEST_GROUPS
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import sequences_at_once
from hsae_lens.models.text_files import (
    cpython_reference,
    documents_of,
    hold_out,
    standard_library,
)
from hsae_lens.models.token_mask import TokenMask, kept_activations
from hsae_lens.models.tokenizing import tokenize_documents
from hsae_lens.sae.calibration import FEWEST_TOKENS
from hsae_lens.sae.training_sae import HierarchicalTopKTrainingSAEConfig

logger = logging.getLogger(__name__)

HELD_OUT_SHARE = 0.2  # of the text
VALIDATION = 4096  # tokens of the training text on which learning rates are chosen
OUTLIER = HierarchicalTopKTrainingSAEConfig.outlier_factor or math.inf  # as our trainer has it
LOOKED_AT = 2048  # tokens whose norms say what the median is
CHARACTERS = 8  # that give a token of any text; what is too much is not tokenized
FEW_DOCUMENTS = 200  # or fewer: of long ones a part is read, so that there are many
MOST_EPOCHS = 20  # more, and SAEs are compared by what they remember

SAME_KIND, OTHER_KIND, FRESH = "same kind", "other kind", "fresh samples"


@dataclass(frozen=True)
class HeldOut:
    """Text of a kind that no SAE was trained on.

    activations: ``[n, d_in]``, float32, and of which document each is ``[n]``, numbered without
    gaps.  tokens: ``[n_sequences, context]``, for the model's cross-entropy; empty where there is
    no model.
    """

    activations: torch.Tensor
    documents: torch.Tensor
    tokens: torch.Tensor

    @property
    def n_documents(self) -> int:
        return len(self.documents.unique())


@dataclass(frozen=True)
class Material:
    """train, validation: activations ``[n, d_in]``, as the model has them.  held: by kind of text.
    max_norm: longer activations were left out of all of these."""

    train: torch.Tensor
    validation: torch.Tensor
    held: Mapping[str, HeldOut]
    max_norm: float

    def batches(self, size: int, seed: int) -> Iterator[torch.Tensor]:
        """Training batches ``[size, d_in]`` without end, epoch by epoch in another random order.

        They depend on the seed alone, so that every family sees the same.
        """
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(self.train), generator=generator)
            for rows in order[: len(order) // size * size].view(-1, size):
                yield self.train[rows].float()


def collect(cfg: CompareConfig, model: HookedModel) -> Material:
    """Runs the model over the texts.

    Raises:
        ValueError: if there are too few tokens to train on, or too few documents for intervals.
        FloatingPointError: if an activation that counts is NaN or infinite.
    """
    documents = documents_of(cfg.text) if cfg.text else standard_library()
    kept, held = hold_out(documents, HELD_OUT_SHARE)
    other = documents_of(cfg.other_text) if cfg.other_text else cpython_reference()
    train_tokens, _ = _sequences(cfg, model, kept, cfg.train_tokens + VALIDATION)
    held_out = {
        SAME_KIND: _sequences(cfg, model, held, cfg.eval_tokens),
        OTHER_KIND: _sequences(cfg, model, other, cfg.eval_tokens),
    }
    n_documents = {kind: len(of.unique()) for kind, (_, of) in held_out.items()}
    check_enough(cfg, train_tokens.numel() - VALIDATION, n_documents)
    mask = _without_outliers(cfg, model, train_tokens)
    train, _ = _activations(cfg, model, train_tokens, mask)
    held_parts = {
        kind: _held_out(cfg, model, tokens, of, mask) for kind, (tokens, of) in held_out.items()
    }
    n_documents = {kind: part.n_documents for kind, part in held_parts.items()}
    check_enough(cfg, len(train) - VALIDATION, n_documents)  # now of what counts
    shuffled = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))]
    validation, rest = shuffled[:VALIDATION], shuffled[VALIDATION:]
    return Material(rest, validation, held_parts, mask.max_norm)


def _held_out(
    cfg: CompareConfig, model: HookedModel, tokens: torch.Tensor, of: torch.Tensor, mask: TokenMask
) -> HeldOut:
    """Of the sequences of a kind of text ``[n_sequences, context]``; ``of``: their documents."""
    x, sequences = _activations(cfg, model, tokens, mask)
    n_ce = -(-cfg.ce_tokens // cfg.context_size)
    some = torch.linspace(0, len(tokens) - 1, min(n_ce, len(tokens))).long()
    here = of[sequences].unique(return_inverse=True)[1]  # numbered without gaps
    return HeldOut(x.float(), here, tokens[some])


def is_stored(folder: Path) -> bool:
    """Whether :func:`store_material` has written all of it there."""
    return (folder / "train.safetensors").exists()


def read_material(folder: Path) -> Material:
    """What :func:`store_material` wrote."""
    kinds = [kind for kind in (SAME_KIND, OTHER_KIND, FRESH) if _file(folder, kind).exists()]
    held = {kind: HeldOut(**load_file(_file(folder, kind))) for kind in kinds}
    train = load_file(folder / "train.safetensors")
    return Material(train["train"], train["validation"], held, float(train["max_norm"]))


def store_material(material: Material, folder: Path) -> None:
    """Writes it where :func:`read_material` reads it; last the part by which it is known."""
    for kind, held in material.held.items():
        _write(vars(held), _file(folder, kind))
    train = {"train": material.train, "validation": material.validation}
    _write(train | {"max_norm": torch.tensor(material.max_norm)}, folder / "train.safetensors")


def check_enough(cfg: CompareConfig, n_train: int, documents: Mapping[str, int]) -> None:
    """Raises ValueError for too little to train on, or to say how sure the figures are."""
    seen, n_train = cfg.steps * cfg.batch_size, max(0, n_train)
    if n_train < (fewest := max(cfg.batch_size, FEWEST_TOKENS)):
        raise ValueError(
            f"{n_train:,} tokens are left to train on: a batch is of {cfg.batch_size:,}, and "
            f"thresholds of mean budgets take {FEWEST_TOKENS}. Give more text, or train_tokens of "
            f"{fewest:,} or more."
        )
    if n_train < seen / MOST_EPOCHS:
        raise ValueError(
            f"{n_train:,} tokens are left to train on: {seen:,} would be seen in {cfg.steps} steps "
            f"of {cfg.batch_size}, each token {seen / n_train:.0f} times. Give more text, or fewer "
            f"steps; {MOST_EPOCHS} times is the most."
        )
    for kind, n in documents.items():
        if n < FEWEST_GROUPS:
            raise ValueError(
                f"Held-out text of the {kind} has {n} documents; intervals need {FEWEST_GROUPS}. "
                "Give a folder of files, or a row for each document (JSONL, parquet), or more "
                "eval_tokens."
            )


def synthesize(cfg: CompareConfig, model: SyntheticModel) -> Material:
    """Samples of a synthetic model, all different from each other.

    Raises:
        ValueError: if there are too few to train on.
    """
    check_enough(cfg, cfg.train_tokens, {})
    train = activations(model, cfg.train_tokens + VALIDATION, seed=0)
    fresh = activations(model, cfg.eval_tokens, seed=1)
    n_groups = min(FEWEST_GROUPS * 10, len(fresh))  # samples are drawn one by one: any will do
    groups = torch.arange(len(fresh)) * n_groups // len(fresh)
    held = HeldOut(fresh, groups, torch.empty(0, 2, dtype=torch.int64))
    return Material(train[VALIDATION:], train[:VALIDATION], {FRESH: held}, math.inf)


def _sequences(
    cfg: CompareConfig, model: HookedModel, documents: list[str], n: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """About n tokens, evenly from all of the documents, and the document of each sequence."""
    documents = some_documents(documents, CHARACTERS * n)
    tokens, of = tokenize_documents(documents, model.tokenizer, cfg.context_size)
    evenly = torch.linspace(0, len(tokens) - 1, min(len(tokens), -(-n // cfg.context_size))).long()
    return tokens[evenly], of[evenly]


def some_documents(documents: list[str], characters: int) -> list[str]:
    """Documents, evenly from all, of about so many characters together.

    Whole ones, unless that would leave few: then of each the middle.
    """
    share = characters / sum(map(len, documents))
    n = min(len(documents), max(FEW_DOCUMENTS, math.ceil(share * len(documents))))
    chosen = [documents[i * len(documents) // n] for i in range(n)]
    if n > FEW_DOCUMENTS:
        return chosen
    aside = max(0.0, 1 - characters / sum(map(len, chosen))) / 2
    return [text[int(aside * len(text)) : len(text) - int(aside * len(text))] for text in chosen]


def _without_outliers(cfg: CompareConfig, model: HookedModel, tokens: torch.Tensor) -> TokenMask:
    """The model's tokens but special ones and those whose norm is far beyond the usual."""
    everything = TokenMask.from_model(model)
    some = tokens[:: max(1, len(tokens) * cfg.context_size // LOOKED_AT)]
    norms = _activations(cfg, model, some, everything)[0].float().norm(dim=-1)
    limit = OUTLIER * float(norms.median())
    logger.info(
        "%.2g%% of activations at %s are longer than %.4g, %g times the median norm: they are "
        "neither trained on nor judged.",
        100 * float((norms > limit).double().mean()),
        cfg.hook_name,
        limit,
        OUTLIER,
    )
    return TokenMask.from_model(model, max_norm=limit)


def _activations(
    cfg: CompareConfig, model: HookedModel, tokens: torch.Tensor, mask: TokenMask
) -> tuple[torch.Tensor, torch.Tensor]:
    size = sequences_at_once(model, cfg.context_size)
    return kept_activations(model, tokens, cfg.hook_name, mask, size, "Activations")


def _file(folder: Path, kind: str) -> Path:
    return folder / f"held-out-{kind.replace(' ', '-')}.safetensors"


def _write(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    with replacing_file(path) as fresh:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, fresh)
