"""Attribution against the slow way: one budget at a time, by definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from helpers.circuits import (
    BUDGETS,
    BY_TOKEN,
    CONTEXT,
    HOOKS,
    assert_close,
    calibrated,
    dictionary,
    slow_attribution,
    variant_on_model,
)
from helpers.variants import VARIANTS
from sae_lens import (
    AbsTopKSAE,
    AbsTopKSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
)

from hsae_lens import ErrorTarget, HierarchicalTopKSAE, MeanBudget, load_pretrained
from hsae_lens.circuits import (
    Ablator,
    Attribution,
    Prompts,
    attribute_budgets,
    circuit_curve,
    complement,
    latent_edges,
)
from hsae_lens.circuits.replacement import Replacement
from hsae_lens.circuits.sites import sites_of
from hsae_lens.evaluation.tasks.builtin import make_task
from hsae_lens.evaluation.tasks.pairs import TokenizedTask
from hsae_lens.models.hooks import activations_at, run_changed
from hsae_lens.models.opening import open_model
from hsae_lens.objective.budgets import Budget


@pytest.mark.parametrize("replace", get_args(Replacement))
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_pass_equals_each_budget_alone(
    model: Any, task: TokenizedTask, variant: str, replace: Replacement
) -> None:
    """Of an SAE of any kind, and one at an earlier site."""
    saes = [dictionary(model, HOOKS[0], task.clean), variant_on_model(variant)]
    found = attribute_budgets(
        model, saes, task, BUDGETS, replace=replace, batch_size=4, progress=False
    )
    for k in BUDGETS:
        slow = slow_attribution(model, saes, task, k, replace)
        for sae in saes:
            site = found.sites[sae.cfg.metadata.hook_name]
            latents, error = slow[site.hook_name]
            assert_close(site.per_pair(k), latents, sae)
            assert_close(site.mean(k), latents.mean(0), sae)
            if sae.dtype != torch.bfloat16:  # its decode rounds by as much as the prompts differ
                assert_close(site.error(k), error.mean(0), sae)
    torch.testing.assert_close(found.metric, task.metric(model(task.clean, prepend_bos=False)))


@pytest.mark.parametrize("replace", get_args(Replacement))
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_pass_serves_budgets_of_every_rule(
    model: Any, task: TokenizedTask, variant: str, replace: Replacement
) -> None:
    """Own and corrupt prompts have lengths of their own, and batches differ in their longest."""
    saes = calibrated(model, dictionary(model, HOOKS[0], task.clean), variant_on_model(variant))
    budgets = [*BUDGETS, *BY_TOKEN]
    rounds = saes[1].dtype == torch.bfloat16  # another batch or code may order latents otherwise
    asked: Any = {"replace": replace, "batch_size": 6 if rounds else 4, "progress": False}
    found = attribute_budgets(model, saes, task, budgets, **asked)
    assert found.budgets == budgets
    for k in BY_TOKEN:
        slow = slow_attribution(model, saes, task, k, replace)
        alone = attribute_budgets(model, saes, task, [k], **asked)
        for sae in saes:
            site = found.sites[sae.cfg.metadata.hook_name]
            latents, error = slow[site.hook_name]
            assert_close(site.per_pair(k), latents, sae)
            assert_close(alone.sites[site.hook_name].per_pair(k), latents, sae)
            torch.testing.assert_close(site.mean(k), site.per_pair(k).mean(0))
            if sae.dtype != torch.bfloat16:  # its decode rounds by as much as the prompts differ
                assert_close(site.error(k), error.mean(0), sae)
    fixed = attribute_budgets(model, saes, task, BUDGETS, **asked)
    for name, site in found.sites.items():
        wholes = [site.per_pair(k).sum(-1) + site.errors[n] for n, k in enumerate(budgets)]
        for whole in wholes:  # of latents and error, at each position of each pair
            torch.testing.assert_close(whole, wholes[0])
        for k in [] if rounds else BUDGETS:  # as if no others had been asked for
            assert fixed.sites[name].mean(k).equal(site.mean(k))
    lengths = found.sites[HOOKS[0]].lengths
    assert (lengths[:3] == torch.tensor(BUDGETS)[:, None, None, None]).all()
    assert lengths[4].max() > BUDGETS[-1]  # no cap
    if replace == "resample":
        assert (lengths[3:, ..., 0] != lengths[3:, ..., 1]).flatten(1).any(1).all()


def test_a_budget_that_asks_tokens_is_refused_before_work(
    model: Any, task: TokenizedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = dictionary(model, HOOKS[0], task.clean)
    found = attribute_budgets(model, calibrated(model, sae), task, BY_TOKEN, progress=False)
    nodes = found.nodes(BY_TOKEN[0]).head(3)

    def worked(*arguments: Any) -> None:
        raise AssertionError("the model was run")

    for module in ("replacement", "ablation"):
        monkeypatch.setattr(f"hsae_lens.circuits.{module}.activations_at", worked)
    plain = dictionary(model, HOOKS[0], task.clean)
    upper = dictionary(model, HOOKS[1], task.clean)
    for other, message in (
        (plain, f"{HOOKS[0]}: This SAE has no thresholds for mean budgets .* hsae_lens.calibrate"),
        (sae.at_k(8), f"{HOOKS[0]}: A 'topk' SAE is cut to a fixed .* needs a hierarchical SAE"),
        (sae.at_mean_k(8), f"{HOOKS[0]}: A 'jumprelu' SAE is cut to a fixed number"),
    ):
        for k in (MeanBudget(2), ErrorTarget(0.5)):
            with pytest.raises(ValueError, match=message):
                attribute_budgets(model, other, task, [8, k])
            with pytest.raises(ValueError, match=message):
                latent_edges(model, [other, upper], nodes, k, task)
        with pytest.raises(ValueError, match=message):
            circuit_curve(model, other, found, task)
    with pytest.raises(ValueError, match="mean budget of 9 is outside 1..8"):
        attribute_budgets(model, sae, task, [MeanBudget(9)])
    with pytest.raises(ValueError, match="one rule must be ascending"):
        attribute_budgets(model, sae, task, [MeanBudget(4), MeanBudget(2)])
    with pytest.raises(ValueError, match="Budget mean-3 was not asked for"):
        found.nodes(MeanBudget(3))


def test_what_replaces_a_node_unless_it_is_said(model: Any, saes: Any, task: Any) -> None:
    """Corrupt prompts are resampled; without them nodes are zero. Both as they always were."""

    def effects(corrupt: Any, **settings: Any) -> torch.Tensor:
        prompts = Prompts(task.clean, task.metric, corrupt)
        found = attribute_budgets(model, saes[0], prompts, [3], progress=False, **settings)
        return found.sites[HOOKS[0]].mean(3)

    assert effects(task.corrupt).equal(effects(task.corrupt, replace="resample"))
    assert effects(None).equal(effects(None, replace="zero"))
    assert effects(None).equal(effects(task.corrupt, replace="zero"))
    assert not torch.allclose(effects(None), effects(task.corrupt))
    for replace in ("resample", "mean"):
        with pytest.raises(ValueError, match="needs corrupt prompts"):
            effects(None, replace=replace)
    with pytest.raises(ValueError, match="replace must be one of"):
        effects(None, replace="nothing")


def test_a_mean_does_not_grow_with_the_prompts(model: Any, saes: Any, task: Any) -> None:
    """It holds one latent's mean per position, whatever it was taken over."""
    many = TokenizedTask("many", *(torch.cat([part] * 4) for part in
                                   (task.clean, task.corrupt, task.right, task.wrong)))  # fmt: skip
    sizes, means = [], []
    for some in (task, many):
        found = attribute_budgets(model, saes[0], some, BUDGETS, replace="mean", progress=False)
        site = found.sites[HOOKS[0]]
        assert site.means is not None
        sizes.append(site.means.latents.shape)
        means.append(site.mean(3))
        assert site.terms.shape[-1] == BUDGETS[-1]
    assert sizes[0] == sizes[1] == (len(BUDGETS), CONTEXT, 48)
    torch.testing.assert_close(*means)


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "abstopk"])
def test_saelens_other_architectures(model: Any, task: TokenizedTask, kind: str) -> None:
    ours = dictionary(model, HOOKS[1], task.clean)
    if kind == "standard":
        sae: Any = StandardSAE(StandardSAEConfig(d_in=32, d_sae=48, dtype="float64"))
    elif kind == "abstopk":
        settings: Any = {"k": 48, "rescale_acts_by_decoder_norm": False}
        sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=32, d_sae=48, dtype="float64", **settings))
    else:
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=32, d_sae=48, dtype="float64"))
        sae.threshold.data.fill_(0.1)
    sae.cfg.metadata.hook_name = HOOKS[1]
    with torch.no_grad():
        for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            getattr(sae, name).copy_(getattr(ours, name))
    if kind != "abstopk":
        with pytest.raises(ValueError, match="needs budgets"):
            attribute_budgets(model, sae, task, progress=False)
    found = attribute_budgets(model, sae, task, [4, 48], progress=False)
    # Every latent at budget d_sae: the SAE itself.
    leaves: list[torch.Tensor] = []

    def splice(x: torch.Tensor) -> torch.Tensor:
        f = sae.encode(x.detach()).detach().requires_grad_()
        leaves.append(f)
        return sae.decode(f) + (x - sae.decode(f)).detach()

    value = task.metric(run_changed(model, task.clean, {HOOKS[1]: splice})).sum()
    (gradient,) = torch.autograd.grad(value, leaves)
    with torch.no_grad():
        other = sae.encode(activations_at(model, task.corrupt, HOOKS[1:])[HOOKS[1]])
        expected = (leaves[0] - other) * gradient
    expected[:, 0] = 0
    torch.testing.assert_close(found.sites[HOOKS[1]].per_pair(48), expected.detach())
    split = sites_of(sae, model)[0].split(activations_at(model, task.clean, HOOKS[1:])[HOOKS[1]], 4)
    assert (split.latents < 0).any() == (kind == "abstopk")
    sizes = split.code.values.abs()
    assert (sizes.diff(dim=-1) <= 0).all()
    assert sizes[..., -1].equal(sae.encode(split.x).detach().abs().sort(descending=True)[0][..., 3])


def test_a_stock_sae_is_cut_to_its_largest(model: Any, saes: Any, task: Any) -> None:
    stock = saes[1].at_k(8)
    ours = attribute_budgets(model, saes[1], task, BUDGETS, progress=False)
    theirs = attribute_budgets(model, stock, task, BUDGETS, progress=False)
    for k in BUDGETS:
        mine, other = ours.sites[HOOKS[1]].mean(k), theirs.sites[HOOKS[1]].mean(k)
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("replace", get_args(Replacement))
@pytest.mark.parametrize("of_sae", ["bfloat16", "float32"])
def test_a_bfloat16_model(
    gemma2_folder: Path, model: Any, task: TokenizedTask, of_sae: str, replace: Replacement
) -> None:
    half = open_model(gemma2_folder, dtype=torch.bfloat16)
    saes = [dictionary(model, hook, task.clean) for hook in HOOKS]
    for sae in saes:
        sae.to(getattr(torch, of_sae))
        sae.cfg.dtype = of_sae
    found, exact = (
        attribute_budgets(m, saes, task, [3], replace=replace, steps=2, progress=False)
        for m in (half, model)
    )
    assert found.nodes(3)["effect"].dtype == "float32"
    rounded, sites = found.sites[HOOKS[1]].mean(3).double(), exact.sites
    assert (rounded - sites[HOOKS[1]].mean(3)).norm() < 0.3 * sites[HOOKS[1]].mean(3).norm()
    ablator = Ablator(half, saes, task, replace)
    whole = complement(ablator.empty_circuit())
    assert ablator(3, whole) == pytest.approx(ablator(3), abs=1e-6)
    assert abs(ablator(3, ablator.empty_circuit()) - ablator(3)) > 0.005
    edges = latent_edges(
        half, saes, found.nodes(3).head(6), 3, task, replace=replace, progress=False
    )
    assert edges["effect"].notna().all()


@pytest.fixture(scope="module")
def smollm() -> Any:
    return open_model("smollm2-135m", dtype="float32")


@pytest.fixture(scope="module")
def shipped() -> HierarchicalTopKSAE:
    return load_pretrained("smollm2-135m-res-htopk", "blocks.15.hook_resid_post")


def test_the_identity_on_the_real_model(smollm: Any, shipped: Any) -> None:
    task = make_task("agreement", smollm.tokenizer, 4)
    found = attribute_budgets(smollm, shipped, task, [8, 128], progress=False)
    site = found.sites["blocks.15.hook_resid_post"]
    for k in (8, 128):
        latents, error = slow_attribution(smollm, [shipped], task, k, "resample")[site.hook_name]
        latents[:, :4], error[:, :4] = 0, 0  # not trained on
        scale = latents.abs().max().item()
        torch.testing.assert_close(site.per_pair(k), latents, rtol=0, atol=1e-5 * scale)
        torch.testing.assert_close(site.error(k), error.mean(0), rtol=0, atol=1e-5 * scale)
    # One latent tells plural from singular, and comes first.
    for nodes in (found.nodes(8), found.nodes(128)):
        assert nodes[nodes["latent"] >= 0].iloc[0]["latent"] == 3307


@pytest.mark.parametrize("replace", get_args(Replacement))
def test_integrated_gradients_add_up_to_the_whole(
    model: Any, saes: Any, task: TokenizedTask, replace: Replacement
) -> None:
    def contributed(steps: int) -> dict[str, float]:
        found = attribute_budgets(
            model, saes, task, [8], replace=replace, steps=steps, progress=False
        )
        return {
            name: (site.mean(8).sum() + site.error(8).sum()).item()
            for name, site in found.sites.items()
        }

    path, one = contributed(32), contributed(1)
    for sae in saes:  # one site at a time, though both are attributed
        name = sae.cfg.metadata.hook_name
        ablator = Ablator(model, sae, task, replace)
        whole = ablator(8) - ablator(8, ablator.empty_circuit())
        assert path[name] == pytest.approx(whole, rel=3e-3)
        assert abs(one[name] - whole) > 1e-2 * abs(whole)


def test_what_cannot_be_attributed_is_said(model: Any, saes: Any, task: TokenizedTask) -> None:
    def ask(prompts: Any, budgets: list[Budget] | None = None) -> Attribution:
        return attribute_budgets(model, saes, prompts, budgets, progress=False)

    with pytest.raises(ValueError, match="outside 1..k=8"):
        ask(task, [9])
    with pytest.raises(ValueError, match="budgets is empty"):
        ask(task, [])
    with pytest.raises(ValueError, match="Budget 5 was not asked for"):
        ask(task, [8]).nodes(5)
    with pytest.raises(ValueError, match="has no gradient"):
        ask(Prompts(task.clean, lambda z: z[:, -1, 0].detach()))
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        ask(task)
    with torch.no_grad():  # fine: it asks for its own gradients
        ask(task)
