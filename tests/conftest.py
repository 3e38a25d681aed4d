"""Small models, data and SAEs that the tests share."""

from __future__ import annotations

import os

import torch

# Before anything imports Triton: without a GPU its kernels then run on the CPU, like every other
# implementation.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from helpers.judge_server import JudgeServer
from helpers.tiny import write_gemma2

from hsae_lens.models import opening
from hsae_lens.models.opening import open_model
from hsae_lens.models.smollm2 import SMOLLM2
from hsae_lens.models.text_files import cpython_reference
from hsae_lens.models.tokenizing import token_dataset, tokenize


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest comes first: two workers then end at about the same time."""
    items.sort(key=lambda item: item.path.stem != "test_notebooks")


@pytest.fixture(scope="session", autouse=True)
def one_real_model() -> Iterator[None]:
    """SmolLM2 is opened once for a number format and then shared, by commands in tests too.

    Opening it takes ten seconds and half a gigabyte, each time.
    """
    opened: dict[tuple[Any, ...], Any] = {}
    really_open = opening._bridge

    def bridge(source: str, device: Any, dtype: torch.dtype) -> Any:
        if not Path(source).name.startswith(SMOLLM2):
            return really_open(source, device, dtype)
        key = (source, str(device), dtype)
        if key not in opened:
            opened[key] = really_open(source, device, dtype)
        model = opened[key]
        assert not model.acts_to_saes, "a test left an SAE attached to the model"
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "_bridge", bridge)
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
