"""What the command's flags mean, in the same words for every command."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import pytest

from hsae_lens.circuits.config import CircuitsConfig
from hsae_lens.cli import Parser, main
from hsae_lens.cli.flags import (
    add_flags,
    config_from_flags,
    describe,
    whole_numbers,
)
from hsae_lens.evaluation.config import EvalConfig
from hsae_lens.evaluation.latents.config import LatentsConfig
from hsae_lens.training.demo import DemoConfig


def test_whole_numbers_are_put_in_order(caplog: pytest.LogCaptureFixture) -> None:
    assert whole_numbers("1, 8,32") == [1, 8, 32]
    assert not caplog.records
    assert whole_numbers("8,4,8") == [4, 8]
    assert "Took 8,4,8 as 4,8." in caplog.text


@pytest.mark.parametrize("text", ["1,x", "", "1,,2", "-3", "1.5", "²", "9" * 5000])
def test_what_is_no_whole_number_is_said(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="^whole numbers with commas, as in 1,8,"):
        whole_numbers(text)


@dataclass
class Config:
    steps: int = 3
    """Of training,
    in ``hsae train``: 100%."""
    budgets: list[int] | None = None
    """Some."""
    limit: int | None = None
    """Perhaps."""
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    """Of circuits."""
    saes: list[str] = field(default_factory=list)
    """Again for more."""
    controls: bool = True
    """On."""
    device: str = "cpu"
    """Where."""
    dtype: str = "auto"
    """In what."""


@pytest.fixture
def parse() -> Callable[..., Config]:
    parser = Parser()
    add_flags(parser, Config)
    return lambda *arguments: config_from_flags(parser.parse_args(arguments), Config)


def test_fields_are_flags(parse: Callable[..., Config]) -> None:
    lists = parse("--budgets", "8,4", "--sizes", "0,3", "--saes", "a", "--saes", "b")
    assert lists == Config(budgets=[4, 8], sizes=[0, 3], saes=["a", "b"])
    assert parse("--no-controls", "--steps", "4") == Config(steps=4, controls=False)
    assert parse("--limit", "5") == Config(limit=5)


def test_a_field_is_described_once_below_it() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_flags(parser, Config, "saes")
    text = " ".join(parser.format_help().split())
    assert "--steps STEPS Of training, in hsae train: 100%. (default: 3)" in text
    assert "--sizes 1,8,32 Of circuits. (default: 1,2)" in text
    assert "--saes" not in text


@pytest.mark.parametrize("config", [EvalConfig, LatentsConfig, CircuitsConfig, DemoConfig])
def test_every_setting_of_a_command_is_described(config: Any) -> None:
    assert all(describe(config, field.name) for field in fields(config))


def test_a_config_gets_device_and_dtype(parse: Callable[..., Config]) -> None:
    assert parse() == Config()
    assert parse("--dtype", "bfloat16", "--device", "cpu") == Config(dtype="bfloat16")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--device", "banana"), "argument --device: Unknown device 'banana': take cpu, cuda"),
        (("--device", "cuda:99"), "argument --device: The device 'cuda:99' was asked for, but"),
        (("--dtype", "float99"), "argument --dtype: Unknown dtype 'float99'. Did you mean 'float"),
        (("--dtype", ""), "argument --dtype: Unknown dtype ''"),
        (("--steps", "x"), "argument --steps: invalid int value: 'x'"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_opened(
    arguments: tuple[str, ...], said: str, parse: Callable[..., Config]
) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        parse(*arguments)


def test_every_command_with_a_model_takes_the_device_so(capsys: Any) -> None:
    for command in (["eval", "x"], ["latents", "x", "1"], ["circuits", "--sae", "x"], ["demo"]):
        assert main([*command, "--device", "banana"]) == 1
        assert "argument --device: Unknown device 'banana'" in capsys.readouterr().err
