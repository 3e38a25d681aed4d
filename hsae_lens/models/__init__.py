"""Language models and their text: opening, hooks, number format, tokens, which of them count."""

from hsae_lens.models.devices import explain_dtype
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import activations_at, hook_activations, logits_with, run_changed
from hsae_lens.models.opening import open_model
from hsae_lens.models.text_files import cpython_reference, documents_of, hold_out, open_text
from hsae_lens.models.token_mask import TokenMask
from hsae_lens.models.tokenizing import token_dataset, tokenize, tokenize_documents

__all__ = [
    "HookedModel",
    "TokenMask",
    "activations_at",
    "cpython_reference",
    "documents_of",
    "explain_dtype",
    "hold_out",
    "hook_activations",
    "logits_with",
    "open_model",
    "open_text",
    "run_changed",
    "token_dataset",
    "tokenize",
    "tokenize_documents",
]
