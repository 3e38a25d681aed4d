"""What an error about an unknown name adds."""

from __future__ import annotations

from hsae_lens._util.did_you_mean import did_you_mean


def test_the_nearest_names_are_asked_for_and_few_are_all_listed() -> None:
    few = ["resample", "mean", "zero"]
    assert did_you_mean("resampl", few) == (
        " Did you mean 'resample'? Known: resample, mean, zero."
    )
    assert did_you_mean("xyz", few) == " Known: resample, mean, zero."
    assert did_you_mean("name-7x", [f"name-{n}" for n in range(9)]).startswith(" Did you mean")
    assert did_you_mean("xyz", [f"name-{n}" for n in range(9)]) == ""
