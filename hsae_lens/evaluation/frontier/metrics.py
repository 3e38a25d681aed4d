"""The frontier's arithmetic: losses, sums over tokens by group, tables and standard errors.

Pure tensors in, a table out; where activations and losses come from is ``evaluate``'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from hsae_lens._util.columns import FRONTIER, QUALITIES
from hsae_lens._util.tables import TEXT_COLUMNS
from hsae_lens.objective.budgets import Budget, budget_rows
from hsae_lens.objective.ordered_code import OrderedCode

DENSE = 0.1  # a latent active on a larger share of the tokens is dense

TokenMetric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A number per token ``[n]`` from its activation and reconstruction, both ``[n, d_in]``."""

TAKEN = {*(column for column, _ in FRONTIER), *(f"{quality}_se" for quality in QUALITIES),
         *TEXT_COLUMNS, "active", "square_error", "square_error_before", "predictions",
         "x"}  # fmt: skip
"""Names of columns of tables, of sums from which they are made, and of what is drawn."""

FEWEST_GROUPS = 10  # a bootstrap over fewer says little

SLICE_BYTES = 2 << 20  # of logits in float32


def check_bootstrap(bootstrap: int) -> None:
    """Raises ValueError for a number of resamples that gives no standard error."""
    if bootstrap < 0 or bootstrap == 1:
        raise ValueError(f"bootstrap must be 0 (none) or 2 or more resamples, got {bootstrap}.")


def check_groups(n: int, bootstrap: int) -> None:
    """Raises ValueError if ``bootstrap`` resamples of ``n`` groups give no standard error."""
    check_bootstrap(bootstrap)
    if bootstrap and n < FEWEST_GROUPS:
        raise ValueError(
            f"{n} groups of tokens are too few for a standard error: give {FEWEST_GROUPS} or more "
            "documents or sequences, or bootstrap=0."
        )


def check_metric_names(names: Iterable[str]) -> None:
    """Raises ValueError if one cannot stand beside the other columns, and those of errors."""
    names = {*names}
    errors = {f"{name}_se" for name in names}
    if taken := sorted(names & (TAKEN | errors)):
        raise ValueError(f"The metric name {taken[0]!r} is taken; choose another.")


def token_values(name: str, values: Any, n: int) -> torch.Tensor:
    """What a metric gave for ``n`` tokens, if it is a finite number for each.

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(values, torch.Tensor) or values.shape != (n,) or values.is_complex():
        got = [*values.shape] if isinstance(values, torch.Tensor) else type(values).__name__
        raise ValueError(f"The metric {name!r} must give one number per token, [{n}], got {got}.")
    if bad := int((~torch.isfinite(values)).sum()):
        raise ValueError(
            f"The metric {name!r} is NaN or infinite for {bad} of {n} tokens: their mean would be "
            "too. Let it give a number there."
        )
    return values


def cross_entropies(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Of each next token ``[batch, context - 1]``, from logits ``[batch, context, d_vocab]``."""
    # The last token of a sequence predicts none: what it gets here is left out at the end.
    targets = tokens.to(logits.device).roll(-1, 1).flatten()[:, None].split(_rows_at_once(logits))
    parts = [
        -log_probs.gather(-1, target).squeeze(-1)
        for (log_probs,), target in zip(_log_probs(logits), targets, strict=True)
    ]
    return torch.cat(parts).view_as(tokens)[:, :-1]


def kl_divergences(clean: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(clean ‖ other) of next-token distributions ``[batch, context]``, from their logits."""
    parts = [(p.exp() * (p - q)).sum(-1) for p, q in _log_probs(clean, other)]
    return torch.cat(parts).view(clean.shape[:-1])


def _log_probs(*logits: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Log-probabilities in float32, some tokens at a time.

    A float32 copy of all logits would be the largest tensor of an evaluation; slices that fit a
    processor's cache are also two to four times faster.
    """
    for parts in zip(*(x.flatten(0, 1).split(_rows_at_once(x)) for x in logits), strict=True):
        yield [part.float().log_softmax(-1) for part in parts]


def _rows_at_once(logits: torch.Tensor) -> int:
    return max(1, SLICE_BYTES // (4 * logits.shape[-1]))


class TokenSums:
    """Running sums over tokens that count, of what no SAE has a part in, kept apart by group.

    Tokens of one group (a document, a sequence) are not independent of each other; groups are, so
    that they can be resampled.

    Args:
        n_groups: groups are numbered 0..n_groups-1.
        d_in: width of the activations.
    """

    def __init__(self, n_groups: int, d_in: int) -> None:
        self.tokens = torch.zeros(n_groups, dtype=torch.float64)
        self.sum_x = torch.zeros(n_groups, d_in, dtype=torch.float64)
        self.sum_square = torch.zeros(n_groups, dtype=torch.float64)
        self.sums: dict[str, torch.Tensor] = {}

    def add_activations(self, x: torch.Tensor, groups: torch.Tensor) -> None:
        """The activations ``[n, d_in]`` of n tokens that count and their groups ``[n]``."""
        wide, groups = x.float(), groups.cpu()
        self.tokens.index_add_(0, groups, torch.ones(len(groups), dtype=torch.float64))
        # Summed in float64: the variance is a small difference of large numbers.
        self.sum_x.index_add_(0, groups, wide.double().cpu())
        self.sum_square.index_add_(0, groups, wide.square().sum(-1).double().cpu())

    def add(self, name: str, values: torch.Tensor, groups: torch.Tensor) -> None:
        """One number per token."""
        sums = self.sums.setdefault(name, torch.zeros(len(self.tokens), dtype=torch.float64))
        sums.index_add_(0, groups.cpu(), values.double().cpu())


class FrontierSums:
    """Running sums of one SAE for each budget, kept apart by group.

    Args:
        shared: the sums over the same tokens without an SAE.
        budgets: in the order of the table's rows.
        k: the SAE's largest budget.
        d_sae: number of latents.
        extra: metrics of the user's own, by column name; their mean over tokens is reported.
    """

    def __init__(
        self,
        shared: TokenSums,
        budgets: Sequence[Budget],
        k: int,
        d_sae: int,
        extra: Mapping[str, TokenMetric] | None = None,
    ) -> None:
        self.shared, self.budgets, self.k = shared, list(budgets), k
        self.fired = torch.zeros(len(self.budgets), d_sae, dtype=torch.int64)
        zeros = torch.zeros(len(self.budgets), len(shared.tokens), dtype=torch.float64)
        self.sums: dict[str, torch.Tensor] = {"square_error_before": zeros}
        self.extra = dict(extra or {})
        check_metric_names(self.extra)

    def add_reconstruction(
        self, n: int, code: OrderedCode, x: torch.Tensor, x_hat: torch.Tensor, groups: torch.Tensor
    ) -> None:
        """The same tokens' code and reconstruction ``[n, d_in]`` at the n-th budget."""
        x, x_hat = x.float(), x_hat.float()
        active = code.values != 0
        self.fired[n] += torch.bincount(code.indices[active], minlength=self.fired.shape[1]).cpu()
        lengths = x.norm(dim=-1).clamp(min=1e-4), x_hat.norm(dim=-1)
        cosine = (x * x_hat).sum(-1) / (lengths[0] * lengths[1].clamp(min=1e-12))
        self.add("active", n, active.sum(-1), groups)
        self.add("square_error", n, (x - x_hat).square().sum(-1), groups)
        self.add("cosine", n, cosine, groups)
        self.add("l2_ratio", n, lengths[1] / lengths[0], groups)
        for name, metric in self.extra.items() if len(x) else ():
            self.add(name, n, token_values(name, metric(x, x_hat), len(x)), groups)

    def add(self, name: str, n: int, values: torch.Tensor, groups: torch.Tensor) -> None:
        """One number per token, at the n-th budget."""
        shape = len(self.budgets), len(self.shared.tokens)
        sums = self.sums.setdefault(name, torch.zeros(shape, dtype=torch.float64))
        sums[n].index_add_(0, groups.cpu(), values.double().cpu())

    def table(self, bootstrap: int = 0, seed: int = 0) -> pd.DataFrame:
        """One row per budget; with ``bootstrap`` resamples of the groups, standard errors too.

        Raises:
            ValueError: if there are no tokens, or too few groups for a standard error.
        """
        once = torch.ones(1, len(self.shared.tokens), dtype=torch.float64)
        columns = {name: value[0] for name, value in self._metrics(once).items()}
        if bootstrap:
            errors = self._standard_errors(bootstrap, seed)
            columns |= {f"{name}_se": errors[name] for name in errors}
        alive = self.fired.double()
        columns["dead"] = (alive == 0).double().mean(-1)
        columns["dense"] = (alive > DENSE * self.shared.tokens.sum()).double().mean(-1)
        columns["adds"] = columns["adds"].where(self._fixed(), torch.nan)
        table = pd.DataFrame(budget_rows(self.budgets, self.k))
        table["tokens"] = int(self.shared.tokens.sum())
        return table.assign(**{name: column.tolist() for name, column in columns.items()})

    def _fixed(self) -> torch.Tensor:
        """Where the budget is a fixed one: only there a k-th latent adds something."""
        return torch.tensor([isinstance(budget, int) for budget in self.budgets])

    def _standard_errors(self, bootstrap: int, seed: int) -> dict[str, torch.Tensor]:
        present = self.shared.tokens > 0
        n = int(present.sum())
        check_groups(n, bootstrap)
        generator = torch.Generator().manual_seed(seed)
        drawn = present.double().expand(bootstrap, -1).multinomial(n, True, generator=generator)
        weights = torch.zeros(bootstrap, len(present), dtype=torch.float64)
        weights.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))
        metrics = self._metrics(weights)
        shown = (*QUALITIES, *self.extra)
        return {name: metrics[name].std(0) for name in shown if name in metrics}

    def _metrics(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every metric ``[n_weightings, n_budgets]`` with each group counted ``weights`` times."""
        shared = self.shared
        tokens = weights @ shared.tokens
        if not tokens.all():
            raise ValueError("No token is left to judge.")

        def mean(name: str, count: torch.Tensor = tokens) -> torch.Tensor:
            return weights @ self.sums[name].T / count[:, None]

        centre = weights @ shared.sum_x / tokens[:, None]
        variance = weights @ shared.sum_square / tokens - centre.square().sum(-1)
        fvu = mean("square_error") / variance[:, None]
        metrics = {
            "l0": mean("active"),
            "explained_variance": 1 - fvu,
            "fvu": fvu,
            "adds": mean("square_error_before") / variance[:, None] - fvu,
            "mse": mean("square_error"),
            "cosine": mean("cosine"),
            "l2_ratio": mean("l2_ratio"),
            **{name: mean(name) for name in self.extra},
        }
        if "ce_with_sae" not in self.sums:
            return metrics
        predictions = weights @ shared.sums["predictions"]
        ce = {"with_sae": mean("ce_with_sae", predictions)}
        for name in ("clean", "ablated"):
            of_model = weights @ shared.sums[f"ce_{name}"] / predictions
            ce[name] = of_model[:, None].expand_as(ce["with_sae"])
        metrics["ce_score"] = (ce["ablated"] - ce["with_sae"]) / (ce["ablated"] - ce["clean"])
        return metrics | {f"ce_{name}": value for name, value in ce.items()} | {"kl": mean("kl")}
