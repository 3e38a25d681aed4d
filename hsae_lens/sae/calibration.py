"""What an SAE must know of its activations to spend by token: thresholds, and their variance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from sae_lens import SAE
from tqdm.auto import tqdm
from typing_extensions import override

from hsae_lens.models.token_mask import longest_activation
from hsae_lens.objective.budgets import MeanBudget, check_spending
from hsae_lens.sae.normalization import joined_heads

FEWEST_TOKENS = 512  # with fewer a threshold's mean of latents would be off by some per cent

KEPT_BITS = 20  # of a positive float32's 31: latents are counted in steps of 1/4096 of their size

LARGEST_ACTIVATION = 1e38  # of an activation in float32

HOW_TO_CALIBRATE = (
    "Calibrate it with some activations of its hook, hsae_lens.calibrate(sae, activations), or "
    "`hsae calibrate PATH`."
)


@dataclass(frozen=True)
class Calibration:
    """Thresholds of mean budgets, and what error targets are shares of.

    thresholds: for each mean budget 1..k the activation that a latent must exceed, falling.
    variance: mean squared distance of activations from their mean, summed over d_in.  tokens: how
    many activations these are from.
    """

    thresholds: list[float]
    variance: float
    tokens: int

    def threshold(self, budget: MeanBudget) -> float:
        """The threshold of a mean budget; between whole ones on the line that joins theirs.

        Raises:
            ValueError: if it is outside 1..k.
        """
        check_spending(budget, len(self.thresholds))
        below = math.floor(budget.k)
        lower, upper = (self.thresholds[min(k, len(self.thresholds)) - 1]
                        for k in (below, below + 1))  # fmt: skip
        return lower + (budget.k - below) * (upper - lower)


class CalibratedSAE(SAE[Any]):
    """Holds what :func:`calibrate` found in ``cfg.calibration``. A base for an architecture."""

    _read: tuple[Any, Calibration] | None = None

    @property
    def calibration(self) -> Calibration:
        """The thresholds of mean budgets, as :func:`hsae_lens.calibrate` has set them.

        Raises:
            ValueError: if it has not.
        """
        saved = self.cfg.calibration
        if saved is None:
            raise ValueError(
                "This SAE has no thresholds for mean budgets and error targets. " + HOW_TO_CALIBRATE
            )
        if self._read is None or self._read[0] is not saved:  # looked at once, not at each encode
            self._read = saved, check_calibration(saved, self.cfg.k)
        return self._read[1]

    @override
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """As SAELens'; activations are of another size then, and the calibration goes."""
        super().fold_activation_norm_scaling_factor(scaling_factor)
        self._after_folding(lambda x: x / scaling_factor)

    @override
    def fold_activation_whitening(
        self,
        mean: torch.Tensor,
        whitening_matrix: torch.Tensor,
        unwhitening_matrix: torch.Tensor,
    ) -> None:
        """As SAELens'; activations are of another size then, and the calibration goes."""
        super().fold_activation_whitening(mean, whitening_matrix, unwhitening_matrix)
        self._after_folding(lambda z: z @ unwhitening_matrix.to(z) + mean.to(z))

    def _after_folding(self, unscaled: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """``unscaled`` takes the activations that the SAE read before to those it reads now."""
        self.cfg.calibration = None

    def _scaled_pre(self, x: torch.Tensor) -> torch.Tensor:
        """Pre-activations ``[..., d_sae]`` as latents are ordered by them, negative ones too."""
        hidden_pre = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc)
        if self.cfg.rescale_acts_by_decoder_norm:
            hidden_pre = hidden_pre * self.W_dec.norm(dim=-1)
        return hidden_pre


def check_calibration(saved: Any, k: int) -> Calibration:
    """A config's ``calibration``, read.

    Raises:
        ValueError: if it cannot be one of an SAE with k budgets.
    """
    saved = saved if isinstance(saved, dict) else {}
    thresholds, variance = saved.get("thresholds"), saved.get("variance")
    numbers = thresholds if isinstance(thresholds, list) else []
    fits = len(numbers) == k and all(map(_is_amount, [*numbers, variance, saved.get("tokens")]))
    if not fits or variance == 0:
        raise ValueError(
            f"calibration must hold {k} thresholds, a variance and a number of tokens, all finite "
            "and not negative; this one is damaged. Take it out of the config and calibrate again."
        )
    if any(after > before for before, after in itertools.pairwise(numbers)):
        raise ValueError(
            "calibration is damaged: its thresholds do not fall with the budget, so a larger mean "
            "budget would use fewer latents. Take it out of the config and calibrate again."
        )
    return Calibration(**{field.name: saved[field.name] for field in fields(Calibration)})


def _is_amount(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value < LARGEST_ACTIVATION


@torch.no_grad()
def calibrate(
    sae: Any,
    activations: torch.Tensor | Iterable[torch.Tensor],
    batch_size: int = 1024,
    progress: bool = True,
) -> Calibration:
    """Finds the thresholds at which an SAE's mean budgets 1..k are met; its config keeps them.

    One pass; what is kept of it are counts of latents by activation. A threshold is the activation
    that k · n latents of n tokens exceed, over all latents, not a token's first K. Tokens that are
    longer than the SAE's ``max_norm`` are left out, as everywhere.

    Args:
        sae: a hierarchical SAE, for inference or training. ``sae.cfg.calibration`` is set.
        activations: ``[n, d_in]`` of the hook, or batches of such; best some that it was trained
            on, or text of the kind it will read: thresholds drift with the text.
        batch_size: tokens at a time, of a tensor.

    Raises:
        ValueError: for a stock SAE, activations of another width, fewer than 512 of them, or all
            the same.
        FloatingPointError: for NaN or infinite ones.
    """
    if not hasattr(sae.cfg, "calibration"):
        raise ValueError(f"A {sae.cfg.architecture()!r} SAE has no mean budgets to calibrate.")
    counts = torch.zeros(1 << KEPT_BITS, dtype=torch.int64, device=sae.device)
    moments = _Moments()
    for x in tqdm(_batches(activations, batch_size), "Calibrating", disable=not progress):
        x = _checked(sae, x)
        moments.add(x)
        with joined_heads(sae):
            _count(sae._scaled_pre(x), counts)
    if moments.n < FEWEST_TOKENS:
        raise ValueError(
            f"{moments.n} activations are too few to calibrate mean budgets: give {FEWEST_TOKENS} "
            "or more."
        )
    if not (variance := moments.variance()) > 0:
        raise ValueError("All activations are the same, so no threshold tells tokens apart.")
    coarse = sae.dtype in (torch.bfloat16, torch.float16)
    thresholds = _thresholds(counts.cpu().numpy(), moments.n, sae.cfg.k, coarse)
    calibration = Calibration(thresholds, variance, moments.n)
    sae.cfg.calibration = asdict(calibration)
    _forget_former_figures(sae.cfg.metadata)
    return calibration


def _forget_former_figures(metadata: Any) -> None:
    """Takes what other thresholds gave out of the frontier that a card shows."""
    if isinstance(metadata.frontier, list):
        rows = [row for row in metadata.frontier if isinstance(row, dict)]
        metadata.frontier = [row for row in rows if row.get("rule", "fixed") == "fixed"]


def _batches(
    activations: torch.Tensor | Iterable[torch.Tensor], batch_size: int
) -> Iterable[torch.Tensor]:
    return activations.split(batch_size) if isinstance(activations, torch.Tensor) else activations


def _checked(sae: Any, x: torch.Tensor) -> torch.Tensor:
    """The tokens that count, where the SAE is."""
    if x.ndim != 2 or x.shape[-1] != sae.cfg.d_in:
        raise ValueError(
            f"The SAE reads activations [n, d_in={sae.cfg.d_in}], got "
            f"[{', '.join(['n', *map(str, x.shape[1:])])}]. Are they of another model or hook?"
        )
    x = x.to(sae.device, sae.dtype)
    x = x[~(x.norm(dim=-1) > longest_activation(sae))]
    if not torch.isfinite(x).all():
        raise FloatingPointError("The activations to calibrate with hold NaN or infinity.")
    return x


class _Moments:
    """Running mean and variance of activations ``[n, d_in]``, in float64.

    About the first batch's mean: the squares of a mean that is as long as the activations are would
    drown their differences.
    """

    def __init__(self) -> None:
        self.n, self.square = 0, 0.0
        self.origin = self.sum = torch.zeros(())

    def add(self, x: torch.Tensor) -> None:
        wide = x.cpu().double()  # not every device has float64
        if self.n == 0 and len(x):
            self.origin = wide.mean(0)
        wide = wide - self.origin
        self.n += len(x)
        self.sum = self.sum + wide.sum(0)
        self.square += float(wide.square().sum())

    def variance(self) -> float:
        return self.square / self.n - float((self.sum / self.n).square().sum())


def _count(acts: torch.Tensor, counts: torch.Tensor) -> None:
    """Adds the positive ones to counts by size: the leading bits of a float ascend with it."""
    bits = acts[acts > 0].float().view(torch.int32) >> (31 - KEPT_BITS)
    counts += torch.bincount(bits, minlength=len(counts))


def _thresholds(counts: np.ndarray, n_tokens: int, k: int, coarse: bool) -> list[float]:
    """For each mean budget the activation that so many latents exceed; 0 where fewer are active.

    coarse: whether a bin holds one number only, of a type with few bits: none is between two such,
    and that one is taken which is exceeded by more nearly as many as wanted.
    """
    larger = counts[::-1].cumsum()[::-1]  # in this bin or above
    filled = np.flatnonzero(counts)
    every = n_tokens * np.arange(1, k + 1)
    enough = np.searchsorted(-larger, -every, side="right") - 1  # the last bins with enough
    found = []
    for wanted, at in zip(every.tolist(), enough.tolist(), strict=True):
        if at < 0:
            found.append(0.0)
            continue
        if coarse:
            fewer, more = larger[at] - counts[at], larger[at]  # exceed it, and the number below it
            below = [_edge(int(n)) for n in filled[filled < at][-1:]]
            found.append(_edge(at) if wanted - fewer <= more - wanted else sum(below, 0.0))
            continue
        into = (larger[at] - wanted) / counts[at]  # what part of the bin is too much
        lower, upper = _edge(at), _edge(at + 1)
        found.append(float(lower + into * (upper - lower)))
    return found


def _edge(n: int) -> float:
    """The smallest activation in the n-th bin."""
    return float(np.int32(n << (31 - KEPT_BITS)).view(np.float32))


class RecentActivations:
    """The latest activations of a training run, to calibrate with at its end."""

    def __init__(self, size: int, d_in: int) -> None:
        self.size, self.n = size, 0
        self.kept = torch.empty(0, d_in)

    def add(self, x: torch.Tensor) -> None:
        """Keeps a batch ``[..., d_in]`` in place of the oldest; a copy, so that it can be freed."""
        x = x.detach().reshape(-1, x.shape[-1])[-self.size :]
        if not len(self.kept):
            self.kept = x.new_empty(self.size, x.shape[1])
        start = self.n % self.size
        until_end = x[: self.size - start]
        self.kept[start : start + len(until_end)] = until_end
        self.kept[: len(x) - len(until_end)] = x[len(until_end) :]
        self.n += len(x)

    def change(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Applies to them what has happened to the units of activations since."""
        self.kept = function(self.kept)

    def batches(self, batch_size: int = 1024) -> Iterator[torch.Tensor]:
        """All that are kept."""
        yield from self.kept[: min(self.n, self.size)].split(batch_size)
