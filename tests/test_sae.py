"""The inference SAE: SAELens' TopK plus an order and a budget."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import training_sae
from sae_lens import SAE, TopKSAE, TrainingSAE
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

import hsae_lens
from hsae_lens import HierarchicalTopKSAE, HierarchicalTopKSAEConfig, HierarchicalTopKTrainingSAE


def inference_sae(tmp_path: Path, **overrides: Any) -> HierarchicalTopKSAE:
    training_sae(**overrides).save_inference_model(tmp_path / "sae")
    return SAE.load_from_disk(tmp_path / "sae")


@pytest.fixture
def sae(tmp_path: Path) -> HierarchicalTopKSAE:
    return inference_sae(tmp_path)


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 5, 24)


def test_encode_keeps_the_budget(sae: HierarchicalTopKSAE, x: torch.Tensor) -> None:
    assert sae.k == 8
    whole = sae.encode_ordered(x)
    assert (whole.values.diff(dim=-1) <= 0).all()
    for k in (1, 3, 8):
        with sae.budget(k) as same:
            acts = same.encode(x)
        assert ((acts != 0).sum(-1) <= k).all()
        assert torch.equal(acts, whole.prefix(k).to_dense(96))
    assert sae.k == 8
    sae.k = 2
    assert sae.encode_ordered(x).k == 8, "an ordered code always holds every latent"
    with pytest.raises(RuntimeError), sae.budget(5):
        raise RuntimeError
    assert sae.k == 2


def test_decode_budgets_equals_decode(sae: HierarchicalTopKSAE, x: torch.Tensor) -> None:
    budgets = [1, 2, 5, 8]
    stack = sae.decode_budgets(sae.encode_ordered(x), budgets)
    assert stack.shape == (4, 3, 5, 24)
    for k, reconstruction in zip(budgets, stack, strict=True):
        with sae.budget(k):
            torch.testing.assert_close(reconstruction, sae(x))


@pytest.mark.parametrize("mode", ["layer_norm", "constant_norm_rescale"])
def test_decode_budgets_undoes_normalisation_once(mode: str, tmp_path: Path, x: Any) -> None:
    sae = inference_sae(tmp_path, normalize_activations=mode)
    code = sae.encode_ordered(x)
    first = sae.decode_budgets(code, [2, 8])
    assert torch.equal(first, sae.decode_budgets(code, [2, 8])), "it can be called again"
    torch.testing.assert_close(first[1], sae(x))
    with pytest.raises(RuntimeError, match="Call encode_ordered again"):
        sae.decode_budgets(code, [2])


def test_hook_z_joins_and_splits_heads(tmp_path: Path) -> None:
    sae = inference_sae(tmp_path, reshape_activations="hook_z")
    z = torch.randn(2, 5, 4, 6)
    assert sae.decode_budgets(sae.encode_ordered(z), [1, 8]).shape == (2, 2, 5, 4, 6)
    assert sae(z).shape == z.shape
    torch.testing.assert_close(sae.at_k(8)(z), sae(z))


@pytest.mark.parametrize("rescale", [True, False])
def test_at_k_is_a_stock_sae_on_the_same_weights(rescale: bool, tmp_path: Path, x: Any) -> None:
    sae = inference_sae(tmp_path, rescale_acts_by_decoder_norm=rescale)
    stock = sae.at_k(3)
    assert type(stock) is TopKSAE
    assert stock.cfg.architecture() == "topk"
    assert stock.cfg.k == 3
    assert all(getattr(stock, n) is getattr(sae, n) for n in ("W_enc", "W_dec", "b_enc", "b_dec"))
    assert set(stock.hook_dict) == set(sae.hook_dict)
    assert not set(map(id, stock.hook_dict.values())) & set(map(id, sae.hook_dict.values()))
    stock.cfg.metadata.note = "own"
    assert "note" not in sae.cfg.metadata
    with sae.budget(3):
        torch.testing.assert_close(stock(x), sae(x))
    stock.save_model(tmp_path / "stock")
    torch.testing.assert_close(SAE.load_from_disk(tmp_path / "stock")(x), stock(x))


def test_an_exported_sae_needs_no_plugin(sae: HierarchicalTopKSAE, x: Any, tmp_path: Path) -> None:
    sae.at_k(3).save_model(tmp_path / "stock")
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch; from sae_lens import SAE\n"
        f"sae = SAE.load_from_disk({str(tmp_path / 'stock')!r})\n"
        f"torch.save(sae(torch.load({str(tmp_path / 'x.pt')!r})), {str(tmp_path / 'y.pt')!r})\n"
        "assert 'hsae_lens' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    with sae.budget(3):
        torch.testing.assert_close(torch.load(tmp_path / "y.pt"), sae(x))


def test_save_and_load_are_bitwise_equal(sae: HierarchicalTopKSAE, x: Any, tmp_path: Path) -> None:
    sae.cfg.default_budget = 4
    sae.save_model(tmp_path / "again")
    again = SAE.load_from_disk(tmp_path / "again")
    assert type(again) is HierarchicalTopKSAE
    assert again.k == 4
    assert again.cfg.to_dict() == sae.cfg.to_dict()
    for name, value in sae.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    with sae.budget(4):
        assert torch.equal(again(x), sae(x))


def test_a_training_sae_saves_whole_and_loads(tmp_path: Path) -> None:
    sae = training_sae(budgets=[1, 4, 8], budget_weights=[1.0, 2.0, 3.0], default_budget=4)
    sae.save_model(tmp_path / "sae")
    again = TrainingSAE.load_from_disk(tmp_path / "sae")
    assert type(again) is HierarchicalTopKTrainingSAE
    assert again.budgets == [1, 4, 8]
    assert again.cfg.budget_weights == [1.0, 2.0, 3.0]
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in sae.state_dict().items())
    assert sorted(f.name for f in tmp_path.iterdir()) == ["sae"], "nothing half-written is left"


@pytest.mark.parametrize("rescale", [True, False])
def test_the_inference_form_computes_the_same(rescale: bool, tmp_path: Path, x: Any) -> None:
    trained = training_sae(rescale_acts_by_decoder_norm=rescale, dtype="float64")
    trained.save_inference_model(tmp_path / "sae")
    sae = SAE.load_from_disk(tmp_path / "sae")
    assert sae.cfg.metadata.training_architecture == "hierarchical_topk"
    torch.testing.assert_close(sae.encode(x), trained.encode(x))
    torch.testing.assert_close(sae(x), trained(x))


def test_folding_decoder_norms(tmp_path: Path, x: torch.Tensor) -> None:
    sae = HierarchicalTopKSAE(
        HierarchicalTopKSAEConfig(
            d_in=24, d_sae=96, k=8, rescale_acts_by_decoder_norm=True, dtype="float64"
        )
    )
    before_acts, before = sae.encode(x), sae(x)
    sae.fold_W_dec_norm()
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(96, dtype=torch.float64))
    torch.testing.assert_close(sae.encode(x), before_acts)
    torch.testing.assert_close(sae(x), before)

    folded = inference_sae(tmp_path)  # its norms are 1
    weights = folded.W_dec.clone()
    folded.fold_W_dec_norm()
    assert torch.equal(folded.W_dec, weights)
    unfoldable = inference_sae(tmp_path, rescale_acts_by_decoder_norm=False)
    with pytest.raises(NotImplementedError, match="change the order"):
        unfoldable.fold_W_dec_norm()


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("b_dec_in", [True, False])
def test_folding_whitening_and_scaling(rescale: bool, b_dec_in: bool, x: torch.Tensor) -> None:
    sae = training_sae(
        dtype="float64", rescale_acts_by_decoder_norm=rescale, apply_b_dec_to_input=b_dec_in
    )
    torch.manual_seed(3)
    mean, M = torch.randn(24).double(), torch.randn(24, 24).double() / 5
    before = sae((x.double() - mean) @ M) @ M.inverse() + mean
    sae.fold_activation_whitening(mean, M, M.inverse())
    torch.testing.assert_close(sae(x.double()), before)

    sae = training_sae(dtype="float64", apply_b_dec_to_input=b_dec_in)
    before = sae(x.double() * 3) / 3
    sae.fold_activation_norm_scaling_factor(3.0)
    torch.testing.assert_close(sae(x.double()), before)


def test_hooks_fire_and_interventions_hold(sae: HierarchicalTopKSAE, x: torch.Tensor) -> None:
    _, cache = sae.run_with_cache(x)
    assert torch.equal(cache["hook_sae_acts_post"], sae.encode(x))

    def keep_none(acts: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.zeros_like(acts)

    out = sae.run_with_hooks(x, fwd_hooks=[("hook_sae_acts_post", keep_none)])
    torch.testing.assert_close(out, sae.b_dec.expand_as(x))


def test_registration_is_idempotent() -> None:
    hsae_lens.register()
    importlib.reload(hsae_lens.sae)
    importlib.reload(hsae_lens.training)
    importlib.reload(hsae_lens.registry)
    reloaded = importlib.reload(hsae_lens)
    try:
        assert SAE_CLASS_REGISTRY["hierarchical_topk"][0] is reloaded.HierarchicalTopKSAE
        training = SAE_TRAINING_CLASS_REGISTRY["hierarchical_topk"][0]
        assert training is reloaded.HierarchicalTopKTrainingSAE
    finally:  # the other tests hold the first classes
        from conftest import HierarchicalTopKTrainingSAEConfig

        SAE_CLASS_REGISTRY["hierarchical_topk"] = (HierarchicalTopKSAE, HierarchicalTopKSAEConfig)
        SAE_TRAINING_CLASS_REGISTRY["hierarchical_topk"] = (
            HierarchicalTopKTrainingSAE,
            HierarchicalTopKTrainingSAEConfig,
        )


def test_another_packages_class_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAE_CLASS_REGISTRY, "hierarchical_topk", SAE_CLASS_REGISTRY["topk"])
    with pytest.raises(ValueError, match="already registered"):
        hsae_lens.register()
    assert SAE_CLASS_REGISTRY["hierarchical_topk"] is SAE_CLASS_REGISTRY["topk"]


def test_bad_budgets_and_widths(sae: HierarchicalTopKSAE, x: torch.Tensor) -> None:
    for k in (0, 9, 2.5, True):
        with pytest.raises(ValueError, match="budget"):
            sae.k = k
        with pytest.raises(ValueError, match="budget"):
            sae.at_k(k)
    with pytest.raises(ValueError, match="outside 1..k=8"):
        sae.decode_budgets(sae.encode_ordered(x), [4, 9])
    with pytest.raises(ValueError, match="width d_sae=96"):
        sae.decode(torch.zeros(2, 95))
    with pytest.raises(ValueError, match="width d_in=24"):
        sae.encode(torch.zeros(2, 23))
    with pytest.raises(ValueError, match="k must be in 1..d_sae=4, got 5"):
        HierarchicalTopKSAEConfig(d_in=2, d_sae=4, k=5)
    with pytest.raises(ValueError, match="default_budget 5 is outside 1..4"):
        HierarchicalTopKSAEConfig(d_in=2, d_sae=8, k=4, default_budget=5)


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


def test_loading_without_the_import_fails_as_documented(sae: Any, tmp_path: Path) -> None:
    sae.save_model(tmp_path / "sae")
    code = f"from sae_lens import SAE; SAE.load_from_disk({str(tmp_path / 'sae')!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "KeyError: 'hierarchical_topk'" in run.stderr
