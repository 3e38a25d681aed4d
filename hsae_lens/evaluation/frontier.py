"""The frontier: reconstruction and model behaviour at every budget, on the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE
from sae_lens.evals import ExplainedVarianceCalculator
from sae_lens.util import get_special_token_ids
from tqdm.auto import tqdm

from hsae_lens.budgets import powers_of_two, resolve_budgets
from hsae_lens.models import hook_activations, input_device, missing_hook
from hsae_lens.ordered_code import OrderedCode
from hsae_lens.sae import HierarchicalTopKSAE


@torch.no_grad()
def evaluate_budgets(
    sae: SAE[Any],
    model: Any,
    tokens: torch.Tensor,
    budgets: Sequence[int] | None = None,
    *,
    seqpos_slice: tuple[int | None, ...] | None = None,
    max_norm: float | None = None,
    cross_entropy: bool = True,
    batch_size: int = 16,
    progress: bool = True,
) -> pd.DataFrame:
    """Evaluates an SAE at every budget on the same tokens; one clean and one ablated pass in all.

    Definitions are SAELens' ``run_evals``'. Special tokens (BOS, EOS, PAD, …), positions outside
    ``seqpos_slice`` and activations longer than ``max_norm`` are left out of every mean and keep
    their activation when the reconstruction is spliced in.

    Args:
        sae: a HierarchicalTopK SAE, or any SAE with a ``k``: it is then truncated to its largest
            activations at each budget.
        model: a hooked model with the hook ``sae.cfg.metadata.hook_name``.
        tokens: int64 ``[n_sequences, context_size]``.
        budgets: ascending within 1..k; None for 1, 2, 4, … k.
        seqpos_slice: positions to judge; None for those the SAE was trained on (its metadata).
        max_norm: longest activation to judge: a few tokens park norms 50 times the usual there, and
            squared errors would see little else. None for the SAE's metadata, or no limit.
        cross_entropy: whether to splice the reconstruction into the model; without it only the
            layers up to the hook are run, once.
        batch_size: sequences per forward pass.

    Returns:
        One row per budget: ``k``, ``tokens`` (judged), ``l0`` (mean active latents),
        ``explained_variance`` (1 − Σ‖x−x̂‖² / Σ‖x−mean x‖², pooled over tokens and dimensions),
        ``mse`` (mean over tokens of ‖x−x̂‖², summed over d_in), ``dead`` (share of the latents that
        no token used within this budget); and with ``cross_entropy``: ``ce_score``
        ((ablated − with SAE) / (ablated − clean)), ``ce_with_sae``, ``ce_clean``, ``ce_ablated``
        (nats per token; ablated is zero).

    Raises:
        ValueError: for bad budgets, a hook the model lacks, a width that does not match, no token
            left to judge, or an error term left on (it would make every budget perfect).
        FloatingPointError: if the model's activations hold NaN or infinity.
    """
    if sae.use_error_term:
        raise ValueError("Turn use_error_term off: with it the output equals the input at every k.")
    largest = sae.cfg.k if hasattr(sae.cfg, "k") else sae.cfg.d_sae
    resolved = resolve_budgets(budgets or powers_of_two(largest), largest)
    positions = slice(*(seqpos_slice or sae.cfg.metadata.seqpos_slice or (None,)))
    limit = max_norm or sae.cfg.metadata.max_norm or float("inf")
    frontier = _Frontier(sae, model, resolved, positions, limit, cross_entropy)
    for batch in tqdm(tokens.split(batch_size), desc="Evaluating", disable=not progress):
        frontier.add(batch)
    return frontier.table()


class _Frontier:
    """Running sums over batches, one set per budget."""

    def __init__(
        self,
        sae: SAE[Any],
        model: Any,
        budgets: list[int],
        positions: slice,
        max_norm: float,
        cross_entropy: bool,
    ) -> None:
        self.sae, self.model, self.budgets = sae, model, budgets
        self.positions, self.max_norm, self.splice = positions, max_norm, cross_entropy
        self.hook_name: str = sae.cfg.metadata.hook_name
        if not self.hook_name:
            raise ValueError("sae.cfg.metadata.hook_name is not set: which hook is this SAE for?")
        self.special = torch.tensor(get_special_token_ids(model.tokenizer))
        self.variance = [ExplainedVarianceCalculator() for _ in budgets]
        self.active = [0] * len(budgets)
        self.used = torch.zeros(len(budgets), sae.cfg.d_sae, dtype=torch.bool)
        self.ce_sums = dict.fromkeys(["clean", "ablated", *budgets], 0.0)
        self.n_predictions = 0

    def add(self, tokens: torch.Tensor) -> None:
        tokens = tokens.to(input_device(self.model))
        original, clean = self._clean_pass(tokens)
        x = original.flatten(2)  # attention heads joined
        if not torch.isfinite(x).all():
            raise FloatingPointError(f"The model's {self.hook_name} holds NaN or infinity.")
        keep = torch.zeros_like(tokens, dtype=torch.bool)
        keep[:, self.positions] = True
        keep &= ~torch.isin(tokens, self.special.to(tokens.device))
        keep &= x.norm(dim=-1) <= self.max_norm
        if clean is not None:
            self._add_loss("clean", clean, keep)
            self._add_loss("ablated", self._loss(tokens, torch.zeros_like), keep)
            self.n_predictions += int(keep[:, :-1].sum())
        for n, (code, x_hat) in enumerate(self._reconstructions(original)):
            x_hat = x_hat.flatten(2).to(x.device)
            here = keep.to(code.values.device)
            fired = code.values[here] != 0
            self.active[n] += int(fired.sum())
            self.used[n, code.indices[here][fired].cpu()] = True
            self.variance[n].add_batch(x_hat[keep].float(), x[keep])
            if self.splice:
                spliced = torch.where(keep[..., None], x_hat.to(x.dtype), x).reshape(original.shape)

                def replaced(_: torch.Tensor, by: torch.Tensor = spliced) -> torch.Tensor:
                    return by

                self._add_loss(self.budgets[n], self._loss(tokens, replaced), keep)

    def _clean_pass(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The hook's activations and, if they will be spliced, the model's own loss per token."""
        if not self.splice:
            return hook_activations(self.model, tokens, self.hook_name), None
        seen: list[torch.Tensor] = []
        loss = self._loss(tokens, seen.append)
        if not seen:  # a hook that never fires would score perfectly at every budget
            raise ValueError(missing_hook(self.hook_name))
        return seen[0], loss

    def _reconstructions(
        self, original: torch.Tensor
    ) -> Iterator[tuple[OrderedCode, torch.Tensor]]:
        """Yields (ordered code, x̂) for each budget, never two at a time."""
        sae = self.sae
        sae_in = (original if sae.hook_z_reshaping_mode else original.flatten(2)).to(sae.device)
        if isinstance(sae, HierarchicalTopKSAE):
            code = sae.encode_ordered(sae_in)
            for k in self.budgets:
                prefix = code.prefix(k)
                yield prefix, sae.decode_budgets(prefix, [k])[0]
            return
        for k in self.budgets:
            # Encoded for every budget: some normalisations are undone by one decode only.
            prefix = OrderedCode.from_pre_activations(sae.encode(sae_in), k)
            yield prefix, sae.decode(prefix.to_dense(sae.cfg.d_sae))

    def _loss(self, tokens: torch.Tensor, change: Callable[[torch.Tensor], Any]) -> torch.Tensor:
        """Loss per token with the hook's activations changed (to None: left as they are)."""
        loss: torch.Tensor = self.model.run_with_hooks(
            tokens,
            return_type="loss",
            loss_per_token=True,
            prepend_bos=False,
            fwd_hooks=[(self.hook_name, lambda acts, hook: change(acts))],
        )
        return loss

    def _add_loss(self, name: str | int, loss: torch.Tensor, keep: torch.Tensor) -> None:
        self.ce_sums[name] += float(loss.double()[keep[:, :-1]].sum())

    def table(self) -> pd.DataFrame:
        if not self.variance[0].num_samples:
            raise ValueError(
                "No token is left to judge: all are special, outside seqpos_slice, or longer than "
                f"max_norm={self.max_norm}."
            )
        rows = []
        ce = {name: total / max(self.n_predictions, 1) for name, total in self.ce_sums.items()}
        for n, k in enumerate(self.budgets):
            calculator = self.variance[n]
            row = {
                "k": k,
                "tokens": calculator.num_samples,
                "l0": self.active[n] / calculator.num_samples,
                "explained_variance": calculator.compute(),
                "mse": calculator.sum_squared_residual / calculator.num_samples,
                "dead": 1 - self.used[n].double().mean().item(),
            }
            if self.splice:
                row |= {
                    "ce_score": (ce["ablated"] - ce[k]) / (ce["ablated"] - ce["clean"]),
                    "ce_with_sae": ce[k],
                    "ce_clean": ce["clean"],
                    "ce_ablated": ce["ablated"],
                }
            rows.append(row)
        return pd.DataFrame(rows)
