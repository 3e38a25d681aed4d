"""Small models, data and SAEs that the tests share."""

from __future__ import annotations

import os

import torch

# Before anything imports Triton: without a GPU its kernels then run on the CPU, like every other
# implementation.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from judge_server import JudgeServer
from tiny import write_gemma2

from hsae_lens import HierarchicalTopKTrainingSAE, HierarchicalTopKTrainingSAEConfig, models
from hsae_lens.models import open_model
from hsae_lens.text import cpython_reference, token_dataset, tokenize


@pytest.fixture(scope="session", autouse=True)
def one_real_model() -> Iterator[None]:
    """SmolLM2 is opened once for a number format and then shared, by commands in tests too.

    Opening it takes ten seconds and half a gigabyte, each time.
    """
    opened: dict[tuple[Any, ...], Any] = {}
    really_open = models._bridge

    def bridge(source: str, device: Any, dtype: torch.dtype) -> Any:
        if not Path(source).name.startswith(models.SMOLLM2):
            return really_open(source, device, dtype)
        key = (source, str(device), dtype)
        if key not in opened:
            opened[key] = really_open(source, device, dtype)
        model = opened[key]
        assert not model.acts_to_saes, "a test left an SAE attached to the model"
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "_bridge", bridge)
        yield


@pytest.fixture(scope="session")
def smollm() -> Any:
    """The real model, in the number format that is fastest here."""
    return open_model("smollm2-135m")


@pytest.fixture(scope="session")
def gemma2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma-2's real code with random weights, two layers of width 32, as a local folder."""
    return write_gemma2(tmp_path_factory.mktemp("tiny-gemma2"))


@pytest.fixture(scope="session")
def tiny_gemma2(gemma2_folder: Path) -> Any:
    return open_model(gemma2_folder, dtype="float32")


@pytest.fixture(scope="session")
def tiny_tokens(tiny_gemma2: Any) -> torch.Tensor:
    return tokenize(cpython_reference()[:10], tiny_gemma2.tokenizer, 32, progress=False)


@pytest.fixture
def tiny_dataset(tiny_tokens: torch.Tensor) -> Dataset:
    return token_dataset(tiny_tokens)


@pytest.fixture
def judge_server() -> Iterator[JudgeServer]:
    server = JudgeServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(cpython_reference()[:10]))
    return path


@contextmanager
def disk_full_at(size: int) -> Iterator[None]:
    """Writing fails in the middle of any file larger than ``size`` bytes.

    Progress bars go nowhere meanwhile: pytest keeps them in a file, and a bar that cannot be drawn
    leaves tqdm's lock taken for good.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def training_sae(**overrides: Any) -> HierarchicalTopKTrainingSAE:
    """A small training SAE with weights that are not symmetric in any way."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"d_in": 24, "d_sae": 96, "k": 8, **overrides}
    sae = HierarchicalTopKTrainingSAE(HierarchicalTopKTrainingSAEConfig(**settings))
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(sae.cfg.d_sae, 1, dtype=sae.dtype) + 0.5)
        sae.b_enc.normal_(std=0.1)
        sae.b_dec.normal_()
    return sae
