"""The language model's device and number format."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from hsae_lens.models import devices
from hsae_lens.models.devices import explain_dtype, model_device, model_dtype

HERE = torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()


def in_a_process(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    return done.stdout


@pytest.mark.skipif(not HERE, reason="this processor has no bfloat16 units")
@pytest.mark.skipif("ATEN_CPU_CAPABILITY" in os.environ, reason="told to do without them")
def test_bfloat16_is_chosen_where_the_processor_multiplies_it() -> None:
    assert model_dtype() == torch.bfloat16
    assert "bfloat16 on cpu: a product takes" in explain_dtype()


def test_float32_is_chosen_where_bfloat16_is_not_faster() -> None:
    # What PyTorch does on a processor without such units: its own loop instead of oneDNN's.
    code = """
import torch
torch.backends.mkldnn.enabled = False
from hsae_lens.models.devices import explain_dtype, model_dtype
print(model_dtype(), explain_dtype(), torch.get_num_threads(), sep="|")
"""
    dtype, why, threads = in_a_process(code, ATEN_CPU_CAPABILITY="avx2").strip().split("|")
    assert dtype == "torch.float32"
    assert why.startswith("float32 on cpu: a product takes")
    assert int(threads) == torch.get_num_threads()  # timed on one, and put back


def test_a_named_format_is_taken_as_it_is() -> None:
    assert model_dtype("float16") == torch.float16
    assert model_dtype(torch.float64) == torch.float64
    assert model_dtype("torch.bfloat16") == torch.bfloat16


def test_the_choice_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    devices._say.cache_clear()
    with caplog.at_level("INFO", logger="hsae_lens"):
        model_dtype()
        model_dtype()
    assert len(caplog.messages) == 1
    assert "a product takes" in caplog.text


def test_the_choice_does_not_depend_on_torchs_defaults() -> None:
    devices._choose.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        assert model_dtype() in (torch.float32, torch.bfloat16)
    finally:
        torch.set_default_dtype(torch.float32)


def test_an_unknown_format_is_an_error_with_the_near_ones() -> None:
    with pytest.raises(ValueError, match="Did you mean 'float32'"):
        model_dtype("flaot32")


@pytest.mark.parametrize("name", ["banana", "cuda:x", ""])
def test_an_unknown_device_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="Unknown device"):
        model_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_here_is_an_error() -> None:
    with pytest.raises(ValueError, match="sees none here"):
        model_device("cuda")


def test_a_missing_gpu_of_several_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert model_device("cuda:1").index == 1
    with pytest.raises(ValueError, match="only 2 here"):
        model_device("cuda:2")
