"""What cannot be had now: a model, an SAE, a judge. The message says what to do."""

from __future__ import annotations


class ModelUnavailableError(RuntimeError):
    """The model can be had neither here nor from the hub; the message says what to do."""


class SAEUnavailableError(RuntimeError):
    """The SAE's files cannot be reached; the message says what to do."""


class JudgeUnavailableError(RuntimeError):
    """The judge cannot be reached or refuses; the message says what to do."""
