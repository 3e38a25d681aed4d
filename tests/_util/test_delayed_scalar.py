"""Numbers that are read later than they are computed."""

from __future__ import annotations

import pytest
import torch

from hsae_lens._util import delayed_scalar
from hsae_lens._util.delayed_scalar import DelayedScalar


@pytest.mark.parametrize("delay", [0, 2])
def test_a_number_comes_back_that_many_steps_later(
    delay: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delayed_scalar, "delay_on", lambda device: delay)
    numbers = DelayedScalar()
    given = [numbers.step(torch.tensor(float(n))) for n in range(1, 6)]
    assert given == [0.0] * delay + [1.0, 2.0, 3.0, 4.0, 5.0][: 5 - delay]
    assert given[delay:] + numbers.rest() == [1, 2, 3, 4, 5]
    assert numbers.rest() == []
