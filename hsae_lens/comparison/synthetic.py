"""Activations whose true features are known, and how well an SAE finds these at each budget.

The model is SAELens' synthetic one, shaped as SynthSAEBench-16k is (Chanin and Garriga-Alonso,
arXiv 2602.14687) and made small enough for a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE, TopKSAE
from sae_lens.synthetic import (
    FeatureDictionary,
    FoldedNormalMagnitudeConfig,
    HierarchyConfig,
    LinearMagnitudeConfig,
    LowRankCorrelationConfig,
    OrthogonalizationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
    eval_sae_on_synthetic_data,
    mean_correlation_coefficient,
    orthogonal_initializer,
)

from hsae_lens.objective.budgets import Budget, MeanBudget, budget_rows, whole_number
from hsae_lens.sae.codes import largest_budget
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE

# SynthSAEBench-16k's, where size allows; its trees are a level deeper, its rank of correlation is
# this, its most frequent feature fires on 0.4 of the samples and its rarest on an 800th of that.
CHILDREN = 4
IN_TREES = 2 / 3
RANK = 25
RAREST = 1 / 800
MAX_CORRELATION = RANK**-0.5  # above, SAELens would have to cut most features' down

BATCH = 4096  # samples at a time: a seed gives the same activations only if this stays
MEASURED = 8192  # samples of which the true L0 is measured
CLOSE, TRIES = 0.01, 10  # how near to the wanted one, relative: it is nearly a line, two tries

# Seeds of the model, of samples to train on and of samples to judge by lie apart. With one number
# for all, an SAE drawn with it would start near the true dictionary, and be judged by what it saw.
OF_MODEL, OF_JUDGING = 1_000_003, 2_000_003


@dataclass(frozen=True)
class SyntheticSettings:
    """What decides a synthetic model.

    d_in: width of the activations.  n_features: how many directions they are made of; the first
    are the most frequent.  true_l0: how many fire per sample, on average.  correlation: scale of
    their correlations, which features fire together; 0 for none, 0.1 in SynthSAEBench-16k.  depth:
    generations of children below a root, four each, of which at most one fires and only if its
    parent does, as strongly; 0 for features that stand alone.  Trees hold two thirds of the
    features.  seed: of the model, not of its samples.
    """

    d_in: int = 128
    n_features: int = 512
    true_l0: float = 16.0
    correlation: float = 0.1
    depth: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("d_in", 1), ("n_features", 2), ("depth", 0), ("seed", 0)):
            if whole_number(getattr(self, name), name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}.")
        if not 0 <= self.correlation < MAX_CORRELATION:
            raise ValueError(
                f"correlation must be at least 0 and below {MAX_CORRELATION:g}, got "
                f"{self.correlation:g}."
            )
        if self.tree_size * 3 > self.n_features * 2 and self.depth:
            raise ValueError(
                f"A tree of depth {self.depth} has {self.tree_size} features, more than two thirds "
                f"of {self.n_features}: take a smaller depth or more features."
            )

    @property
    def tree_size(self) -> int:
        return sum(CHILDREN**level for level in range(self.depth + 1))

    def config(self, max_prob: float) -> SyntheticModelConfig:
        """SAELens' configuration, with this firing probability of the most frequent feature."""
        hierarchy = HierarchyConfig(
            total_root_nodes=int(self.n_features * IN_TREES) // self.tree_size or 1,
            branching_factor=CHILDREN,
            max_depth=self.depth or 1,
            mutually_exclusive_portion=1.0,
            compensate_probabilities=True,
            scale_children_by_parent=True,
        )
        return SyntheticModelConfig(
            num_features=self.n_features,
            hidden_dim=self.d_in,
            firing_probability=ZipfianFiringProbabilityConfig(0.5, max_prob, max_prob * RAREST),
            hierarchy=hierarchy if self.depth else None,
            orthogonalization=OrthogonalizationConfig(num_steps=100, lr=3e-4),
            correlation=LowRankCorrelationConfig(RANK, self.correlation)
            if self.correlation
            else None,
            mean_firing_magnitudes=LinearMagnitudeConfig(start=5.0, end=4.0),
            std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
            bias=0.5,
            seed=OF_MODEL + self.seed,
        )


def synthetic_model(settings: SyntheticSettings) -> SyntheticModel:
    """SAELens' synthetic model of these settings; two of the same settings are the same.

    How often features fire is scaled until so many do as the settings ask, within a hundredth.

    Raises:
        ValueError: if no scale gives that many.
    """
    features = _feature_dictionary(settings)

    def model(max_prob: float) -> SyntheticModel:
        return SyntheticModel(settings.config(max_prob), feature_dict=features)

    rare, often = 1e-3, 1.0
    few, many = (_mean_firing(model(p)) for p in (rare, often))
    if not few <= settings.true_l0 <= many:
        raise ValueError(
            f"true_l0 {settings.true_l0:g} cannot be had: {settings.n_features} features at depth "
            f"{settings.depth} fire between {few:.2g} and {many:.3g} at a time. Change one of them."
        )
    for _ in range(TRIES):  # false position
        between = rare + (often - rare) * (settings.true_l0 - few) / (many - few)
        found = model(between)
        if abs((firing := _mean_firing(found)) - settings.true_l0) <= CLOSE * settings.true_l0:
            break
        if firing < settings.true_l0:
            rare, few = between, firing
        else:
            often, many = between, firing
    return found


def _feature_dictionary(settings: SyntheticSettings) -> FeatureDictionary:
    """The one that SAELens would make, without its progress bar."""
    cfg = settings.config(1.0)
    assert cfg.orthogonalization is not None
    pushed_apart = orthogonal_initializer(
        cfg.orthogonalization.num_steps, cfg.orthogonalization.lr, show_progress=False
    )
    return FeatureDictionary(
        cfg.num_features, cfg.hidden_dim, cfg.bias, pushed_apart, seed=cfg.seed
    )


def _mean_firing(model: SyntheticModel) -> float:
    with seeded(0):
        return float((model.activation_generator.sample(MEASURED) > 0).sum(-1).double().mean())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """PyTorch's random state starts at ``seed`` inside and is as it was after."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def activations(model: SyntheticModel, n: int, seed: int) -> torch.Tensor:
    """``n`` samples ``[n, d_in]``; those of one seed are the same, and independent of another's.

    Raises:
        ValueError: if n is no whole number above 0.
    """
    if whole_number(n, "n") < 1:
        raise ValueError(f"n must be 1 or more, got {n}.")
    with seeded(seed):
        sizes = [BATCH] * (n // BATCH) + [n % BATCH] * (n % BATCH > 0)
        return torch.cat([model.sample(size) for size in sizes])


@torch.no_grad()
def truth_at(
    sae: SAE[Any],
    model: SyntheticModel,
    budgets: Sequence[Budget],
    n_samples: int = 20_000,
    seed: int = 0,
) -> pd.DataFrame:
    """How well an SAE finds a synthetic model's features at each budget, by SAELens' evaluation.

    Args:
        sae: for inference, on the CPU. A hierarchical one has any budget, a stock one its own
            alone: TopK its k; any other, such as a JumpReLU saved from BatchTopK, the mean number
            for which it was trained, or d_sae, all it has.
        n_samples: the same at every budget.  seed: of these, apart from :func:`activations`'.

    Returns:
        A row per budget: ``k``, ``rule`` and ``target`` as :func:`budget_rows` has them, and
        ``mcc``: mean |cosine| of decoder rows and features matched one to one. It sees the decoder
        alone, so it is one SAE's at every budget.
        ``mcc_used``: the same of the latents that any sample uses at this budget. It says how pure
        they are, not how many: see ``dead``.
        ``precision``, ``recall``, ``f1``: of a latent for the feature that is nearest by |cosine|,
        mean over all latents; a dead one counts 0.
        ``uniqueness``: different nearest features per latent; of the decoder alone too.
        ``explained_variance``; ``l0``, ``true_l0``: latents, features per sample; ``dead``: share
        of latents that no sample uses.

    Raises:
        ValueError: for budgets that the SAE has not, an SAE of another width or device, or
            no budgets or samples.
    """
    _check_fit(sae, model)
    if whole_number(n_samples, "n_samples") < 1:
        raise ValueError(f"n_samples must be 1 or more, got {n_samples}.")
    if not budgets:
        raise ValueError("There are no budgets: name some.")
    if isinstance(sae, HierarchicalTopKSAE):
        budgets, k = [sae.check_budget(budget) for budget in budgets], sae.cfg.k
    else:
        budgets, k = [_only_budget(sae, budgets)], 0
    rows = []
    for budget in budgets:
        with _spending(sae, budget):
            rows.append(_figures(sae, model, n_samples, seed))
    places = pd.DataFrame(budget_rows(budgets, k))
    return pd.concat([places, pd.DataFrame(rows)], axis=1)


def _check_fit(sae: SAE[Any], model: SyntheticModel) -> None:
    if sae.cfg.d_in != model.cfg.hidden_dim:
        raise ValueError(
            f"The SAE reads activations of width {sae.cfg.d_in}, the synthetic model makes "
            f"{model.cfg.hidden_dim}: use one that was trained on it."
        )
    if sae.device.type != "cpu":
        raise ValueError(
            f"The SAE is on {sae.device}, the synthetic model on the CPU: load the SAE with "
            "device='cpu'."
        )


def _only_budget(sae: SAE[Any], budgets: Sequence[Budget]) -> Budget:
    """A stock SAE's budget, if it is the one that was asked for."""
    own = largest_budget(sae)
    for budget in budgets if len(budgets) == 1 else ():
        if budget == own or (isinstance(budget, MeanBudget) and not isinstance(sae, TopKSAE)):
            return budget
    raise ValueError(
        f"A {sae.cfg.architecture()!r} SAE has one budget, {own}, or the mean one that it was "
        f"trained for if it is not TopK; asked for {', '.join(map(str, budgets))}."
    )


@contextmanager
def _spending(sae: SAE[Any], budget: Budget) -> Iterator[None]:
    """A hierarchical SAE at this budget; a stock one as it is."""
    if not isinstance(sae, HierarchicalTopKSAE):
        yield
        return
    with sae.using_budget(budget):
        yield


def _figures(sae: SAE[Any], model: SyntheticModel, n: int, seed: int) -> dict[str, float]:
    """A row of :func:`truth_at`, at the SAE's present budget."""
    used = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=sae.device)

    def note(acts: torch.Tensor, hook: Any) -> torch.Tensor:
        used.logical_or_((acts != 0).any(0))
        return acts

    with seeded(OF_JUDGING + seed), sae.hooks(fwd_hooks=[("hook_sae_acts_post", note)]):
        found = eval_sae_on_synthetic_data(
            sae, model.feature_dict, model.activation_generator, n, batch_size=BATCH
        )
    true = model.feature_dict.feature_vectors
    return {
        "mcc": found.mcc,
        "mcc_used": mean_correlation_coefficient(sae.W_dec[used], true),
        "precision": found.classification.precision,
        "recall": found.classification.recall,
        "f1": found.classification.f1_score,
        "uniqueness": found.uniqueness,
        "explained_variance": found.explained_variance,
        "l0": found.sae_l0,
        "true_l0": found.true_l0,
        "dead": found.dead_latents / sae.cfg.d_sae,
    }
