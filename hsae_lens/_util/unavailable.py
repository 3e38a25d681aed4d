"""Exceptions for what cannot be had now: a model, an SAE, a judge."""

from __future__ import annotations


class UnavailableError(RuntimeError):
    """Something from elsewhere cannot be had now; the message says what to do."""


class ModelUnavailableError(UnavailableError):
    """The model can be had neither here nor from the hub."""


class SAEUnavailableError(UnavailableError):
    """The SAE's files cannot be reached."""


class JudgeUnavailableError(UnavailableError):
    """The judge cannot be reached or refuses."""
