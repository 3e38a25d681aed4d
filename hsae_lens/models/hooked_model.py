"""HookedModel, a Protocol: the few methods that are asked of a language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch


class HookedModel(Protocol):
    """SAELens' ``HookedSAETransformer`` or ``SAETransformerBridge``, or anything that can do this.

    Attributes:
        cfg: its sizes; ``cfg.d_model`` and ``cfg.d_vocab`` are read.
        tokenizer: Hugging Face's.
        hook_dict: its hook points by their own names.
        ln_final, W_U: final norm and unembedding ``[d_model, d_vocab]``; only what latents do to
            logits needs them.

    And ``acts_to_saes``, where it can have SAEs attached: those that are.
    """

    cfg: Any
    tokenizer: Any

    @property
    def hook_dict(self) -> dict[str, Any]: ...

    @property
    def ln_final(self) -> Callable[[torch.Tensor], torch.Tensor]: ...

    @property
    def W_U(self) -> torch.Tensor: ...

    def __call__(self, tokens: torch.Tensor, /, *, prepend_bos: bool | None = ...) -> Any:
        """Logits ``[batch, context, d_vocab]``."""

    def run_with_cache(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """As TransformerLens': takes ``names_filter`` and ``stop_at_layer``."""

    def run_with_hooks(self, *args: Any, **kwargs: Any) -> Any:
        """As TransformerLens': takes ``fwd_hooks``."""

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]: ...
