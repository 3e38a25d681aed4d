"""SAEs written whole and read back bitwise."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import training_sae
from helpers.variants import VARIANTS, activations_for, inference_variant, training_variant
from sae_lens import SAE, TrainingSAE

from hsae_lens import (
    HierarchicalTopKSAE,
    HierarchicalTopKSAEConfig,
    HierarchicalTopKTrainingSAE,
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_save_and_load_are_bitwise_equal(variant: str, tmp_path: Path) -> None:
    sae = inference_variant(variant, default_budget=4)
    sae.save_model(tmp_path / "sae")
    again = SAE.load_from_disk(tmp_path / "sae")
    assert type(again) is HierarchicalTopKSAE
    assert again.budget == 4
    assert again.cfg.to_dict() == sae.cfg.to_dict()
    assert again.dtype == sae.dtype
    assert list(again.state_dict()) == list(sae.state_dict())
    for name, value in sae.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    x = activations_for(sae, 3, 5)
    assert torch.equal(again(x), sae(x))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_sae_saves_whole_and_loads(variant: str, tmp_path: Path) -> None:
    sae = training_variant(
        variant, budgets=[1, 4, 8], budget_weights=[1.0, 2.0, 3.0], default_budget=4
    )
    sae.save_model(tmp_path / "sae")
    again = TrainingSAE.load_from_disk(tmp_path / "sae")
    assert type(again) is HierarchicalTopKTrainingSAE
    assert again.budgets == [1, 4, 8]
    assert again.cfg == sae.cfg
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in sae.state_dict().items())
    x = activations_for(sae, 5)
    assert torch.equal(again(x), sae(x))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["sae"], "nothing half-written is left"


def test_numpys_whole_numbers_become_pythons(tmp_path: Path, x: Any) -> None:
    sizes = {"d_in": np.int64(24), "d_sae": np.int32(96), "k": np.int64(8)}
    sae = HierarchicalTopKSAE(HierarchicalTopKSAEConfig(**sizes, default_budget=np.int16(4)))
    assert sae.budget == 4
    sae.budget = np.int64(3)
    with sae.using_budget(np.int64(2)):
        assert type(sae.budget) is int
    assert type(sae.budget) is int
    stock = sae.at_k(np.int64(3))
    torch.testing.assert_close(stock(x), sae(x))
    sae.decode_budgets(sae.encode_ordered(x), np.array([1, 8]))
    stock.save_model(tmp_path / "stock")
    sae.save_model(tmp_path / "sae")
    assert SAE.load_from_disk(tmp_path / "sae").cfg == sae.cfg

    training = training_sae(
        **sizes,
        default_budget=np.int64(4),
        budgets=np.array([2, 8]),
        budget_weights=np.array([1, 2], dtype=np.float32),
    )
    training.save_model(tmp_path / "training")
    assert TrainingSAE.load_from_disk(tmp_path / "training").cfg == training.cfg
    training.save_inference_model(tmp_path / "inference")
    assert SAE.load_from_disk(tmp_path / "inference").budget == 4


def test_damaged_and_missing_files_say_so(sae: HierarchicalTopKSAE, tmp_path: Path) -> None:
    weights, config = sae.save_model(tmp_path / "broken")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"sae_weights.safetensors is damaged or cut short"):
        HierarchicalTopKSAE.load_from_disk(tmp_path / "broken")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"sae_weights.safetensors missing"):
        HierarchicalTopKSAE.load_from_disk(tmp_path / "broken")
    with pytest.raises(FileNotFoundError, match="No saved SAE at"):
        HierarchicalTopKTrainingSAE.load_from_disk(tmp_path / "nowhere")
    assert json.loads(config.read_text())["architecture"] == "hierarchical_topk"


def test_a_save_that_fails_leaves_the_former_file(sae: Any, tmp_path: Path, monkeypatch) -> None:
    weights, _ = sae.save_model(tmp_path / "sae2")
    before = weights.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("sae_lens.saes.sae.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        sae.save_model(tmp_path / "sae2")
    assert weights.read_bytes() == before
    assert sorted(f.name for f in tmp_path.iterdir()) == ["sae", "sae2"]


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another file system than the test's own, to which nothing can be renamed."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory() as here:
        if not memory.is_dir() or memory.stat().st_dev == Path(here).stat().st_dev:
            pytest.skip("needs a second file system to write to, such as /dev/shm")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.mark.parametrize("kind", ["inference", "training", "training's inference form"])
def test_the_output_folder_may_be_a_link_to_another_file_system(
    kind: str, sae: Any, tmp_path: Path, elsewhere: Path
) -> None:
    linked = tmp_path / "linked"
    linked.symlink_to(elsewhere)
    trained = training_sae()
    save = {
        "inference": sae.save_model,
        "training": trained.save_model,
        "training's inference form": trained.save_inference_model,
    }[kind]
    paths = save(linked)
    assert [path.parent for path in paths] == [linked, linked]
    assert linked.is_symlink()
    assert sorted(f.name for f in elsewhere.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    (TrainingSAE if kind == "training" else SAE).load_from_disk(linked)


@pytest.mark.parametrize("there", [True, False])
def test_an_interrupted_save_leaves_the_folder_as_it_was(
    there: bool, sae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new" / "run"
    if there:
        sae.save_model(folder)
        (folder / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    sae.W_dec.data.zero_()

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sae_lens.saes.sae.json.dump", interrupt)  # the weights are written
    with pytest.raises(KeyboardInterrupt):
        sae.save_model(folder)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert (tmp_path / "new").exists() == there, "an empty folder would look like a saved SAE"
