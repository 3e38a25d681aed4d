"""The ordered code: a token's largest activations, largest first."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hsae_lens.objective.budgets import check_budget, check_k


@dataclass(frozen=True)
class OrderedCode:
    """The K largest activations of each token with their latents, in descending order.

    Attributes:
        values: activations, shape ``[..., K]``, descending along the last axis (in absolute value,
            where an SAE has negative ones).
        indices: int64 latent indices, same shape. Latents of one token are distinct.

    A code made by :meth:`HierarchicalTopKSAE.encode_ordered` is never negative: where a token
    has fewer than K positive pre-activations its last values are zero, as in SAELens' TopK.
    """

    values: torch.Tensor
    indices: torch.Tensor

    def __post_init__(self) -> None:
        if self.values.shape != self.indices.shape:
            raise ValueError(
                f"OrderedCode needs values and indices of one shape, got "
                f"{tuple(self.values.shape)} and {tuple(self.indices.shape)}."
            )
        if self.values.ndim == 0:
            raise ValueError("OrderedCode needs at least one axis, the K latents of a token.")
        if self.indices.dtype != torch.int64:
            raise TypeError(f"OrderedCode.indices must be int64, got {self.indices.dtype}.")

    @property
    def k(self) -> int:
        """How many latents the code holds per token."""
        return self.values.shape[-1]

    def prefix(self, k: int) -> OrderedCode:
        """The first ``k`` latents of each token: the code at budget ``k``, without a copy.

        Raises:
            ValueError: if ``k`` is not in 1..K.
        """
        k = check_budget(k, self.k, "Budget", "the latents this code holds")
        return OrderedCode(self.values[..., :k], self.indices[..., :k])

    def prefixes(self, lengths: torch.Tensor) -> OrderedCode:
        """The first ``lengths`` ``[...]`` latents of each token, each its own number, 0..K.

        The result is as long as the longest of them (1 at least); shorter ones end in zeros.
        """
        longest = max(1, int(lengths.max())) if lengths.numel() else 1
        values, indices = self.values[..., :longest], self.indices[..., :longest]
        used = torch.arange(longest, device=values.device) < lengths[..., None]
        return OrderedCode(values * used, indices)

    def followed_by(self, other: OrderedCode) -> OrderedCode:
        """A longer code: this one's latents, and then the other's, none of which is larger."""
        return OrderedCode(
            torch.cat([self.values, other.values], -1), torch.cat([self.indices, other.indices], -1)
        )

    def to_dense(self, d_sae: int) -> torch.Tensor:
        """The code as SAELens' ``feature_acts``: shape ``[..., d_sae]``, zero elsewhere."""
        dense = self.values.new_zeros(*self.values.shape[:-1], d_sae)
        return dense.scatter(-1, self.indices, self.values)

    def to_sparse(self, d_sae: int) -> torch.Tensor:
        """``to_dense`` as a COO tensor; values that are exactly zero stay stored."""
        *batch, k = self.values.shape
        position = torch.arange(self.values.numel(), device=self.values.device) // k
        grid = torch.unravel_index(position, batch) if batch else ()
        return torch.sparse_coo_tensor(
            torch.stack([*grid, self.indices.reshape(-1)]),
            self.values.reshape(-1),
            (*batch, d_sae),
            check_invariants=False,
        )

    @classmethod
    def from_pre_activations(cls, pre: torch.Tensor, k: int) -> OrderedCode:
        """TopK then ReLU of pre-activations ``[..., d_sae]``, keeping the order.

        Prefixes of the result nest by construction, ties included: SAELens' TopK at each k would
        choose anew among equal values.
        """
        values, indices = pre.topk(check_k(k, pre.shape[-1]), dim=-1, sorted=True)
        return cls(values.relu(), indices)

    @classmethod
    def from_activations(cls, acts: torch.Tensor, k: int) -> OrderedCode:
        """The k largest of any SAE's feature activations ``[..., d_sae]``, signs kept.

        Largest in absolute value, as SAEs with negative activations (AbsTopK) choose them.
        """
        indices = acts.abs().topk(check_k(k, acts.shape[-1]), dim=-1, sorted=True).indices
        return cls(acts.gather(-1, indices), indices)
