"""Attribution, ablation and edges: against the slow way of doing each, on real model code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
import torch
from sae_lens import (
    AbsTopKSAE,
    AbsTopKSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
)

from hsae_lens import HierarchicalTopKSAE, HierarchicalTopKSAEConfig, load_pretrained
from hsae_lens.circuits import (
    Ablator,
    ablate,
    areas,
    attribute_budgets,
    circuit_curve,
    latent_edges,
    nesting,
    neuron_basis,
    patch_nodes,
)
from hsae_lens.circuits.plots import (
    circuit_figure,
    circuit_svg,
    curve_svg,
    plot_circuit,
    plot_curves,
)
from hsae_lens.circuits.replacement import Replacement
from hsae_lens.circuits.sites import model_order, sites_of
from hsae_lens.evaluation.tasks.behaviour import check_able
from hsae_lens.evaluation.tasks.pairs import (
    LogitDiff,
    Pair,
    TokenizedTask,
    read_pairs,
    tokenize_pairs,
)
from hsae_lens.evaluation.tasks.templates import make_task
from hsae_lens.models.hooks import activations_at, run_changed
from hsae_lens.models.opening import open_model

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
BUDGETS = [1, 3, 8]
N, CONTEXT = 6, 9


@pytest.fixture(scope="module")
def model(gemma2_folder: Path) -> Any:
    return open_model(gemma2_folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def task(model: Any) -> TokenizedTask:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(3, 300, (N, CONTEXT), generator=generator)
    clean[:, 0] = model.tokenizer.bos_token_id
    corrupt = clean.clone()
    corrupt[:, 4] = torch.randint(3, 300, (N,), generator=generator)
    right, wrong = torch.randint(3, 300, (2, N), generator=generator)
    return TokenizedTask("random", clean, corrupt, right, wrong)


def dictionary(model: Any, hook: str, tokens: torch.Tensor, **settings: Any) -> HierarchicalTopKSAE:
    """Random directions with an encoder that makes them a fair fit, float64."""
    x = activations_at(model, tokens, [hook])[hook].flatten(2)[:, 1:].reshape(-1, 32)
    settings = {"rescale_acts_by_decoder_norm": True, **settings}
    cfg = HierarchicalTopKSAEConfig(d_in=32, d_sae=48, k=8, dtype="float64", **settings)
    cfg.metadata.hook_name = hook
    sae = HierarchicalTopKSAE(cfg)
    generator = torch.Generator().manual_seed(len(hook))
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(48, 32, generator=generator, dtype=torch.float64) / 32**0.5)
        sae.W_enc.copy_(0.2 * sae.W_dec.T)
        if settings.get("normalize_activations") != "layer_norm":
            sae.b_dec.copy_(x.mean(0))
    return sae


@pytest.fixture(scope="module")
def saes(model: Any, task: TokenizedTask) -> list[HierarchicalTopKSAE]:
    return [dictionary(model, hook, task.clean) for hook in HOOKS]


def slow_attribution(
    model: Any, saes: Sequence[Any], task: TokenizedTask, k: int, replace: Replacement
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """One budget's attributions by definition: straight-through SAEs, latents and error leaves."""
    leaves: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def splice(sae: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        def change(x: torch.Tensor) -> torch.Tensor:
            y = x.detach().flatten(2)
            f = sae.encode(y).detach().requires_grad_()
            decoded = sae.decode(f)
            e = (y - decoded).detach().requires_grad_()
            leaves[sae.cfg.metadata.hook_name] = (f, e)
            return (decoded + e).reshape(x.shape) + (x - x.detach())

        return change

    for sae in saes:
        sae.budget = k
    changes = {sae.cfg.metadata.hook_name: splice(sae) for sae in saes}
    task.metric(run_changed(model, task.clean, changes)).sum().backward()
    found = {}
    with torch.no_grad():
        for sae in saes:
            name = sae.cfg.metadata.hook_name
            f, e = leaves[name]
            prompts = {"resample": [task.corrupt], "mean": [task.clean, task.corrupt], "zero": []}
            f_other, e_other = torch.zeros_like(f), torch.zeros_like(e)
            if prompts[replace]:
                other = activations_at(model, torch.cat(prompts[replace]), [name])[name].flatten(2)
                f_other, e_other = sae.encode(other), other - sae.decode(sae.encode(other))
            if replace == "mean":
                f_other, e_other = f_other.mean(0), e_other.mean(0)
            assert f.grad is not None
            assert e.grad is not None
            latents, error = (f - f_other) * f.grad, ((e - e_other) * e.grad).sum(-1)
            latents[:, 0], error[:, 0] = 0, 0  # BOS is not judged
            found[name] = (latents, error)
    for sae in saes:
        sae.budget = sae.cfg.k
    return found


@pytest.mark.parametrize("replace", get_args(Replacement))
@pytest.mark.parametrize("n_sites", [1, 2])
@pytest.mark.parametrize("rescale", [True, False])
def test_one_pass_equals_each_budget_alone(
    model: Any, task: TokenizedTask, n_sites: int, replace: Replacement, rescale: bool
) -> None:
    settings = {"rescale_acts_by_decoder_norm": rescale}
    saes = [dictionary(model, hook, task.clean, **settings) for hook in HOOKS[-n_sites:]]
    found = attribute_budgets(
        model, saes, task.clean, task.metric, BUDGETS, task.corrupt, replace=replace,
        batch_size=4, progress=False,
    )  # fmt: skip
    for k in BUDGETS:
        for name, (latents, error) in slow_attribution(model, saes, task, k, replace).items():
            site = found.sites[name]
            torch.testing.assert_close(site.per_pair(k), latents, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(site.mean(k), latents.mean(0), rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(site.error(k), error.mean(0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.metric, task.metric(model(task.clean, prepend_bos=False)))


def test_what_replaces_a_node_unless_it_is_said(model: Any, saes: Any, task: Any) -> None:
    """Corrupt prompts are resampled; without them nodes are zero. Both as they always were."""

    def effects(corrupt: Any, **settings: Any) -> torch.Tensor:
        found = attribute_budgets(
            model, saes[0], task.clean, task.metric, [3], corrupt, progress=False, **settings
        )
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
        found = attribute_budgets(
            model, saes[0], some.clean, some.metric, BUDGETS, some.corrupt, replace="mean",
            progress=False,
        )  # fmt: skip
        site = found.sites[HOOKS[0]]
        assert site.shared is not None
        sizes.append(site.shared.latents.shape)
        means.append(site.mean(3))
        assert site.terms.shape[-1] == BUDGETS[-1]
    assert sizes[0] == sizes[1] == (len(BUDGETS), CONTEXT, 48)
    torch.testing.assert_close(*means)


@pytest.mark.parametrize("mode", ["layer_norm", "constant_norm_rescale"])
def test_normalised_inputs_too(model: Any, task: TokenizedTask, mode: str) -> None:
    sae = dictionary(model, HOOKS[1], task.clean, normalize_activations=mode)
    found = attribute_budgets(model, sae, task.clean, task.metric, BUDGETS, progress=False)
    site, x = found.sites[HOOKS[1]], activations_at(model, task.clean, HOOKS[1:])[HOOKS[1]]
    for k in BUDGETS:
        latents, _ = slow_attribution(model, [sae], task, k, "zero")[HOOKS[1]]
        torch.testing.assert_close(site.per_pair(k), latents, rtol=1e-9, atol=1e-12)
    # With its own latents and rest put together a site gives the activation back.
    for replace in ("resample", "zero"):
        ablator = Ablator(model, sae, task.clean, task.metric, task.corrupt, replace)  # type: ignore[arg-type]
        whole = {name: nodes.complement() for name, nodes in ablator.nothing().items()}
        assert ablator(3, whole) == pytest.approx(ablator(3), abs=1e-9)
        split = ablator.sites[0].split(x, 3)
        torch.testing.assert_close(split.latents @ sae.W_dec + split.rest, x)
        with torch.no_grad(), sae.using_budget(3):
            torch.testing.assert_close(x - split.rest + split.bias, sae(x))


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
            attribute_budgets(model, sae, task.clean, task.metric, progress=False)
    found = attribute_budgets(
        model, sae, task.clean, task.metric, [4, 48], task.corrupt, progress=False
    )
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


def test_ranks_are_by_size() -> None:
    acts = torch.tensor([[3.0, -5.0, 0.0, 1.0]])  # as of AbsTopK
    assert ablate(ranks=(1, 1))(acts).tolist() == [[3, 0, 0, 1]]
    assert ablate(ranks=(2, 9))(acts).tolist() == [[0, -5, 0, 0]]


def test_sites_are_in_the_model_s_order(model: Any, task: TokenizedTask) -> None:
    in_order = ["hook_embed", "blocks.0.hook_resid_pre", "blocks.0.attn.hook_z",
                "blocks.0.hook_attn_out", "blocks.0.hook_resid_mid", "blocks.0.mlp.hook_post",
                "blocks.0.hook_mlp_out", "blocks.0.hook_resid_post", "blocks.1.hook_resid_pre",
                "blocks.10.hook_resid_pre", "ln_final.hook_normalized"]  # fmt: skip
    assert sorted(sorted(in_order), key=model_order) == in_order
    hooks = ["blocks.1.attn.hook_z", "blocks.1.hook_resid_post"]
    saes = [dictionary(model, hook, task.clean) for hook in hooks]
    assert [site.hook_name for site in sites_of(saes[::-1], model)] == hooks
    found = attribute_budgets(model, saes[::-1], task.clean, task.metric, [3], progress=False)
    edges = latent_edges(
        model, saes[::-1], found.nodes(3).head(9), 3, task.clean, task.metric, progress=False
    )
    assert set(edges["to_site"]) == {hooks[1]}


@pytest.mark.parametrize("upper_first", [True, False])
def test_a_graph_stands_the_model_s_way_up(upper_first: bool) -> None:
    """Whichever site contributes more."""
    nodes = pd.DataFrame({"k": 8, "site": HOOKS, "position": 1, "token": "a", "latent": [11, 22],
                          "effect": [1.0, 2.0], "share": 0.5, "first_k": 8})  # fmt: skip
    figure = circuit_figure(nodes[::-1] if upper_first else nodes, ["<bos>", "a"], ["b", "c"])
    heights = {text.get_text(): text.xy[1] for text in figure.axes[0].texts}
    assert heights["11"] < heights["22"]
    assert heights[HOOKS[0]] < heights[HOOKS[1]]
    # Only the last site's nodes lead to the answer.
    (line,) = figure.axes[0].get_lines()
    assert line.get_ydata()[0] == heights["22"]


def test_any_token_can_be_drawn(tmp_path: Path) -> None:
    """matplotlib takes what stands between two dollars for a formula."""
    token, name = r"$\foo$_^{", "runs/$a_$"
    nodes = pd.DataFrame({"k": 8, "site": HOOKS, "position": [0, 1], "token": token,
                          "latent": 1, "effect": 1.0, "share": 0.5, "first_k": 8})  # fmt: skip
    plot_circuit(nodes, [token, token], [token, token], tmp_path / "graph.png")
    assert "foo" in circuit_svg(nodes, [token, token], [token, token])
    curve = pd.DataFrame({"sae": name, "k": 8, "nodes": [1, 2], "faithfulness": [0.1, 0.2],
                          "completeness": [0.9, 0.8]})  # fmt: skip
    plot_curves(curve, tmp_path / "curve.png")
    assert name in curve_svg(curve, "faithfulness")


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
    pairs = (task.clean, task.metric)
    found, exact = (
        attribute_budgets(
            m, saes, *pairs, [3], task.corrupt, replace=replace, steps=2, progress=False
        )
        for m in (half, model)
    )
    assert found.nodes(3)["effect"].dtype == "float32"
    rounded, sites = found.sites[HOOKS[1]].mean(3).double(), exact.sites
    assert (rounded - sites[HOOKS[1]].mean(3)).norm() < 0.3 * sites[HOOKS[1]].mean(3).norm()
    ablator = Ablator(half, saes, *pairs, task.corrupt, replace)
    whole = {name: nodes.complement() for name, nodes in ablator.nothing().items()}
    assert ablator(3, whole) == pytest.approx(ablator(3), abs=1e-6)
    assert abs(ablator(3, ablator.nothing()) - ablator(3)) > 0.005
    edges = latent_edges(
        half, saes, found.nodes(3).head(6), 3, *pairs, task.corrupt, replace=replace, progress=False
    )
    assert edges["effect"].notna().all()


def test_positions_are_settled_by_the_clean_prompts(model: Any, saes: Any, task: Any) -> None:
    """Replacing one site must not change which positions of the next are replaced."""
    lower, upper = dictionary(model, HOOKS[0], task.clean), dictionary(model, HOOKS[1], task.clean)
    upper.cfg.metadata.max_norm = (
        activations_at(model, task.clean, HOOKS)[HOOKS[1]].norm(dim=-1).max().item() + 1e-6
    )
    with torch.no_grad():
        lower.b_dec.mul_(50)  # replaced by it, the next site's norms are all outliers
    ablator = Ablator(model, [lower, upper], task.clean, task.metric, replace="zero")
    nothing = ablator.nothing()
    first = {**nothing, HOOKS[1]: nothing[HOOKS[1]].complement()}
    assert abs(ablator(3, first) - ablator(3, nothing)) > 1e-6


def test_attention_heads_are_joined(model: Any, task: TokenizedTask) -> None:
    hook = "blocks.1.attn.hook_z"
    joined = dictionary(model, hook, task.clean)
    sae = dictionary(model, hook, task.clean, reshape_activations="hook_z")
    found = attribute_budgets(
        model, sae, task.clean, task.metric, BUDGETS, task.corrupt, progress=False
    )
    for k in BUDGETS:
        latents, error = slow_attribution(model, [joined], task, k, "resample")[hook]
        torch.testing.assert_close(found.sites[hook].per_pair(k), latents, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.sites[hook].error(k), error.mean(0), rtol=1e-9, atol=1e-12)
    ablator = Ablator(model, sae, task.clean, task.metric, task.corrupt)
    whole = {name: nodes.complement() for name, nodes in ablator.nothing().items()}
    assert ablator(3, whole) == pytest.approx(ablator(3), abs=1e-9)


@pytest.fixture(scope="module")
def smollm() -> Any:
    return open_model("smollm2-135m", dtype="float32")


@pytest.fixture(scope="module")
def shipped() -> HierarchicalTopKSAE:
    return load_pretrained("smollm2-135m-res-htopk", "blocks.15.hook_resid_post")


def test_the_identity_on_the_real_model(smollm: Any, shipped: Any) -> None:
    task = make_task("agreement", smollm.tokenizer, 4)
    found = attribute_budgets(
        smollm, shipped, task.clean, task.metric, [8, 128], task.corrupt, progress=False
    )
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
            model, saes, task.clean, task.metric, [8], task.corrupt, replace=replace, steps=steps,
            progress=False,
        )  # fmt: skip
        return {
            name: (site.mean(8).sum() + site.error(8).sum()).item()
            for name, site in found.sites.items()
        }

    path, one = contributed(32), contributed(1)
    for sae in saes:  # one site at a time, though both are attributed
        name = sae.cfg.metadata.hook_name
        ablator = Ablator(model, sae, task.clean, task.metric, task.corrupt, replace)
        whole = ablator(8) - ablator(8, ablator.nothing())
        assert path[name] == pytest.approx(whole, rel=3e-3)
        assert abs(one[name] - whole) > 1e-2 * abs(whole)


def test_a_stock_sae_is_cut_to_its_largest(model: Any, saes: Any, task: Any) -> None:
    stock = saes[1].at_k(8)
    arguments = (task.clean, task.metric, BUDGETS, task.corrupt)
    ours = attribute_budgets(model, saes[1], *arguments, progress=False)
    theirs = attribute_budgets(model, stock, *arguments, progress=False)
    for k in BUDGETS:
        mine, other = ours.sites[HOOKS[1]].mean(k), theirs.sites[HOOKS[1]].mean(k)
        torch.testing.assert_close(mine, other)


# --- ablation ---


@pytest.mark.parametrize("replace", ["resample", "mean", "zero"])
def test_everything_kept_and_everything_replaced(
    model: Any, saes: Any, task: TokenizedTask, replace: Any
) -> None:
    ablator = Ablator(model, saes, task.clean, task.metric, task.corrupt, replace, batch_size=4)
    whole = {name: nodes.complement() for name, nodes in ablator.nothing().items()}
    for k in BUDGETS:
        assert ablator(k, whole) == pytest.approx(ablator(k), abs=1e-9)
    names = [site.hook_name for site in ablator.sites]
    clean = activations_at(model, task.clean, names)
    corrupt = activations_at(model, task.corrupt, names)

    def replaced(name: str, sae: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        new = {
            "resample": corrupt[name],
            "mean": torch.cat([clean[name], corrupt[name]]).mean(0).expand(clean[name].shape),
            "zero": sae.b_dec.expand(clean[name].shape),
        }[replace]
        return lambda x: torch.cat([x[:, :1], new[:, 1:]], 1)  # BOS stays

    changes = {name: replaced(name, sae) for name, sae in zip(names, saes, strict=True)}
    with torch.no_grad():
        by_hand = task.metric(run_changed(model, task.clean, changes)).mean().item()
    for k in BUDGETS:
        assert ablator(k, ablator.nothing()) == pytest.approx(by_hand, abs=1e-9)


def test_patching_one_node_by_hand(model: Any, saes: Any, task: TokenizedTask) -> None:
    sae, name, k = saes[1], HOOKS[1], 3
    found = attribute_budgets(
        model, sae, task.clean, task.metric, [k], task.corrupt, progress=False
    )
    nodes = found.nodes(k)
    nodes = nodes[nodes["latent"] >= 0].head(3)
    ablator = Ablator(model, sae, task.clean, task.metric, task.corrupt)
    exact = patch_nodes(ablator, nodes, k, progress=False)["exact"]
    with torch.no_grad():
        x, other = (activations_at(model, t, [name])[name] for t in (task.clean, task.corrupt))
        with sae.using_budget(k):
            f, f_other = sae.encode(x), sae.encode(other)
        whole = task.metric(model(task.clean, prepend_bos=False)).mean()
        for row, value in zip(nodes.itertuples(), exact, strict=True):
            new, change = x.clone(), f_other - f
            rows = change[:, row.position, row.latent, None] * sae.W_dec[row.latent]
            new[:, row.position] += rows / sae.W_dec[row.latent].norm()
            left = task.metric(run_changed(model, task.clean, {name: lambda _, new=new: new}))
            assert value == pytest.approx((whole - left.mean()).item(), abs=1e-9)


@pytest.mark.parametrize("errors", ["default", "keep", "remove"])
def test_the_curve_ends_where_it_must(
    model: Any, saes: Any, task: TokenizedTask, errors: Any
) -> None:
    found = attribute_budgets(
        model, saes, task.clean, task.metric, BUDGETS, task.corrupt, progress=False
    )
    pairs = (task.clean, task.metric, task.corrupt)
    curve = circuit_curve(
        model, saes, found, *pairs, sizes=[0, 1, 4, 10_000], errors=errors, progress=False
    )
    for _, rows in curve.groupby("k"):
        first, last = rows.iloc[0], rows.iloc[-1]
        if errors == "default":
            assert first["faithfulness"] == pytest.approx(0, abs=1e-9)
            assert last["faithfulness"] == pytest.approx(1, abs=1e-9)
            assert last["completeness"] == pytest.approx(0, abs=1e-9)
        elif errors == "keep":
            assert last["faithfulness"] == pytest.approx(1, abs=1e-9)
            assert abs(first["faithfulness"]) > 1e-6
        else:
            assert first["faithfulness"] == pytest.approx(0, abs=1e-9)
            assert abs(last["faithfulness"] - 1) > 1e-6
        # What is in the circuit is not in its complement.
        if errors != "keep":
            assert first["completeness"] == pytest.approx(1, abs=1e-9)
        else:
            assert last["completeness"] == pytest.approx(0, abs=1e-9)
    assert set(areas(curve)["k"]) == set(BUDGETS)


@pytest.mark.parametrize("replace", get_args(Replacement))
def test_circuits_are_judged_as_they_were_found(
    model: Any, saes: Any, task: TokenizedTask, replace: Replacement
) -> None:
    """What attribution predicts for the largest nodes is about what ablation then measures."""
    sae, pairs = saes[1], (task.clean, task.metric, task.corrupt)
    found = attribute_budgets(
        model, sae, task.clean, task.metric, [8], task.corrupt, replace=replace, steps=16,
        progress=False,
    )  # fmt: skip
    curve = circuit_curve(model, sae, found, *pairs, sizes=[0, 4], progress=False)
    ablator = Ablator(model, sae, *pairs, replace)
    assert curve["metric_empty"].iloc[0] == pytest.approx(ablator(8, ablator.nothing()), abs=1e-12)
    nodes = found.nodes(8).head(6)
    exact = patch_nodes(ablator, nodes, 8, progress=False)["exact"]
    assert (exact - nodes["effect"]).abs().max() < 0.3 * nodes["effect"].abs().max()
    assert exact.corr(nodes["effect"]) > 0.9


def test_areas_are_of_one_width() -> None:
    curve = pd.DataFrame(
        {
            "k": [1, 1, 2, 2, 2],
            "nodes": [1, 2, 1, 2, 4],
            "faithfulness": [0.0, 1.0, 0.0, 1.0, 1.0],
            "completeness": [1.0, 0.0, 1.0, 1.0, 1.0],
        }
    )
    table = areas(curve).set_index("k")
    assert table.loc[1, "faithfulness"] == pytest.approx(0.75)
    assert table.loc[2, "faithfulness"] == pytest.approx(0.75)
    assert table.loc[1, "completeness"] == pytest.approx(0.25)
    both = pd.concat([curve.assign(sae="a"), curve[curve["nodes"] < 4].assign(sae="b")])
    by = areas(both).set_index(["sae", "k"])["faithfulness"]
    assert by["a", 2] == by["b", 2] == pytest.approx(0.75)  # over the same sizes
    with pytest.raises(ValueError, match="at least two sizes"):
        areas(curve[curve["nodes"] == 1])


def test_nodes_and_circuits_over_all_positions(model: Any, saes: Any, task: Any) -> None:
    found = attribute_budgets(
        model, saes, task.clean, task.metric, [8], task.corrupt, progress=False
    )
    joined = found.nodes(8, by_position=False)
    summed = found.nodes(8).groupby(["site", "latent"])["effect"].sum()
    for row in joined.head(10).itertuples():
        assert summed[row.site, row.latent] == pytest.approx(row.effect, abs=1e-12)
    curve = circuit_curve(
        model, saes, found, task.clean, task.metric, task.corrupt, sizes=[1, 10_000],
        errors="default", by_position=False, progress=False,
    )  # fmt: skip
    assert curve["faithfulness"].iloc[-1] == pytest.approx(1, abs=1e-9)


def test_halves_share_no_prompt() -> None:
    rows = torch.arange(40).reshape(20, 2)
    clean, corrupt = torch.cat([rows[:10], rows[10:]]), torch.cat([rows[10:], rows[:10]])
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    task = TokenizedTask("swaps", clean[order], corrupt[order], *torch.zeros(2, 20).long())
    one, two = task.halves()
    assert len(one) == len(two) == 10
    prompts = [{tuple(row) for part in (h.clean, h.corrupt) for row in part.tolist()}
               for h in (one, two)]  # fmt: skip
    assert not prompts[0] & prompts[1]
    chain = TokenizedTask("chain", rows[:2], rows[1:3], *torch.zeros(2, 2).long())
    with pytest.raises(ValueError, match="cannot be halved"):
        chain.halves()


def test_circuits_nest_when_effects_do_not_depend_on_the_budget(
    model: Any, saes: Any, task: Any
) -> None:
    one = task[:1]  # a single prompt: no averaging over pairs
    found = attribute_budgets(model, saes, one.clean, one.metric, BUDGETS, progress=False)
    assert (nesting(found)["shared"] == 1).all()


@pytest.mark.parametrize("replace", get_args(Replacement))
def test_edges_add_up_to_the_attribution(
    model: Any, saes: Any, task: TokenizedTask, replace: Replacement
) -> None:
    found = attribute_budgets(
        model, saes, task.clean, task.metric, [3], task.corrupt, replace=replace, progress=False
    )
    upper = found.nodes(3)
    upper = upper[upper["site"] == HOOKS[0]].head(4)
    every = pd.DataFrame(
        [
            {"site": HOOKS[1], "position": p, "latent": latent}
            for p in range(1, CONTEXT)
            for latent in range(-1, 48)
        ]
    )
    edges = latent_edges(
        model,
        saes,
        pd.concat([upper, every]),
        3,
        task.clean,
        task.metric,
        task.corrupt,
        replace=replace,
        progress=False,
    )
    sums = edges.groupby(["site", "position", "latent"])["effect"].sum()
    for row in upper.itertuples():
        # Gemma's norms compute in float32, whatever the model is in.
        assert sums[(row.site, row.position, row.latent)] == pytest.approx(row.effect, rel=1e-5)
    # Whatever the order and the batches are, and however often a node's row is there.
    last = every[every["position"] == CONTEXT - 1]
    again = latent_edges(
        model, saes[::-1], pd.concat([upper, last, upper, last.head(9)]), 3, task.clean,
        task.metric, task.corrupt, replace=replace, batch_size=4, progress=False,
    )  # fmt: skip
    same = edges[edges["to_position"] == CONTEXT - 1].reset_index(drop=True)
    assert len(same)
    pd.testing.assert_frame_equal(again, same)
    with pytest.raises(ValueError, match="No latent .* at 'blocks.5'"):
        latent_edges(model, saes, upper.assign(site="blocks.5"), 3, task.clean, task.metric)
    for wrong in ({"latent": 48}, {"position": CONTEXT}):
        with pytest.raises(ValueError, match="No latent 48|Position 9 is outside"):
            latent_edges(model, saes, every.assign(**wrong), 3, task.clean, task.metric)
    with pytest.raises(ValueError, match="two SAEs or more"):
        latent_edges(model, saes[:1], upper, 3, task.clean, task.metric)


def test_neurons_lose_nothing(model: Any, saes: Any, task: TokenizedTask) -> None:
    x = activations_at(model, task.clean, HOOKS[1:])[HOOKS[1]].flatten(0, 1)
    basis = neuron_basis(saes[1], x.mean(0))
    torch.testing.assert_close(basis(x), x)
    basis.budget = 1
    off = (basis(x) - x).abs()
    assert ((off > 1e-9).sum(-1) == 31).all()
    assert (x - x.mean(0)).abs().argmax(-1).equal(off.argmin(-1))


# --- bad input ---


def test_what_cannot_be_attributed_is_said(model: Any, saes: Any, task: TokenizedTask) -> None:
    ask = attribute_budgets
    with pytest.raises(ValueError, match="outside 1..k=8"):
        ask(model, saes, task.clean, task.metric, [9], progress=False)
    with pytest.raises(ValueError, match="of one shape"):
        ask(model, saes, task.clean, task.metric, [8], task.corrupt[:, 1:], progress=False)
    with pytest.raises(ValueError, match="Leave the mean over sequences out"):
        ask(model, saes, task.clean, lambda logits: logits.mean(), [8], progress=False)
    with pytest.raises(ValueError, match="has no gradient"):
        ask(model, saes, task.clean, lambda z: z[:, -1, 0].detach(), [8], progress=False)
    with pytest.raises(ValueError, match="different hooks"):
        ask(model, [saes[0], saes[0]], task.clean, task.metric, progress=False)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        ask(model, saes, task.clean, task.metric, progress=False)
    with torch.no_grad():  # fine: it asks for its own gradients
        ask(model, saes, task.clean, task.metric, progress=False)
    wide = HierarchicalTopKSAE(HierarchicalTopKSAEConfig(d_in=16, d_sae=48, k=8))
    wide.cfg.metadata.hook_name = HOOKS[0]
    with pytest.raises(ValueError, match="reads width d_in=16, but the model has 32"):
        ask(model, wide, task.clean, task.metric, progress=False)
    lost = dictionary(model, HOOKS[0], task.clean)
    lost.cfg.metadata.hook_name = "blocks.7.hook_resid_post"
    with pytest.raises(ValueError, match="no hook 'blocks.7.hook_resid_post'"):
        ask(model, lost, task.clean, task.metric, progress=False)
    foreign = dictionary(model, HOOKS[0], task.clean)
    with torch.no_grad():
        foreign.W_dec.mul_(-9)
    with pytest.raises(ValueError, match="further from the activations"):
        ask(model, foreign, task.clean, task.metric, progress=False)
    model.add_sae(saes[0])
    try:
        with pytest.raises(ValueError, match="reset_saes"):
            ask(model, saes, task.clean, task.metric, progress=False)
    finally:
        model.reset_saes()
    with pytest.raises(ValueError, match="needs corrupt prompts"):
        Ablator(model, saes, task.clean, task.metric)
    with pytest.raises(ValueError, match="budgets is empty"):
        ask(model, saes, task.clean, task.metric, [], progress=False)
    with pytest.raises(ValueError, match="4 answers for the logits of 6 prompts"):
        ask(model, saes, task.clean, lambda z: task.metric[:4](z), [8], progress=False)
    with pytest.raises(ValueError, match="must be tokens"):
        ask(model, saes, ["The keys"], task.metric, [8], progress=False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size"):
        ask(model, saes, task.clean, task.metric, [8], batch_size=0, progress=False)
    late = dictionary(model, HOOKS[0], task.clean)
    late.cfg.metadata.seqpos_slice = (CONTEXT, None)
    with pytest.raises(ValueError, match="No position of these prompts"):
        ask(model, late, task.clean, task.metric, [8], progress=False)
    ablator = Ablator(model, saes, task.clean, task.metric, task.corrupt)
    with pytest.raises(ValueError, match="Budget 9 is outside 1..8"):
        ablator(9)
    with pytest.raises(ValueError, match="No latent 48"):
        ablator.of(pd.DataFrame([{"site": HOOKS[0], "latent": 48}]))
    with pytest.raises(ValueError, match="Position 9 is outside"):
        ablator.of(pd.DataFrame([{"site": HOOKS[0], "latent": 4, "position": 9}]))
    found = ask(model, saes, task.clean[:, 2:], task.metric, [8], progress=False)
    with pytest.raises(ValueError, match="attributed on 7 tokens, judged on 9"):
        circuit_curve(model, saes, found, task.clean, task.metric, task.corrupt)
    with pytest.raises(ValueError, match="The attribution is of"):
        circuit_curve(model, saes[:1], found, task.clean, task.metric, task.corrupt)
    with pytest.raises(ValueError, match="Budget 5 was not asked for"):
        ask(model, saes, task.clean, task.metric, [8], progress=False).nodes(5)


def test_a_model_that_guesses_has_no_circuit(tiny_gemma2: Any) -> None:
    pairs = [Pair("a b", "b a", "a", "b"), Pair("b a", "a b", "b", "a")] * 8
    with pytest.raises(ValueError, match="guessing might do too"):
        check_able(tokenize_pairs("mine", pairs, tiny_gemma2.tokenizer), tiny_gemma2)


def test_pairs_from_files(tmp_path: Path) -> None:
    pairs = [Pair("The keys", "The key", " are", " is"), Pair("1 2", "1 3", "3", "null")]
    ours = pd.DataFrame([vars(pair) for pair in pairs])
    theirs = ours.set_axis(["clean_prefix", "patch_prefix", "clean_answer", "patch_answer"], axis=1)
    ours.to_csv(tmp_path / "pairs.csv", index=False)
    ours.to_parquet(tmp_path / "pairs.parquet")
    theirs.to_json(tmp_path / "pairs.jsonl", orient="records", lines=True)
    theirs.to_json(tmp_path / "pairs.json", orient="records", lines=True)
    for suffix in ("csv", "parquet", "jsonl", "json"):
        assert read_pairs(tmp_path / f"pairs.{suffix}") == pairs
    ours.assign(wrong=["x", None]).to_parquet(tmp_path / "gap.parquet")
    with pytest.raises(ValueError, match="lacks a prompt or an answer in row 2"):
        read_pairs(tmp_path / "gap.parquet")
    ours.drop(columns="wrong").to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(ValueError, match="columns clean, corrupt, right. Pairs need"):
        read_pairs(tmp_path / "few.csv")
    with pytest.raises(FileNotFoundError, match="No pairs at"):
        read_pairs(tmp_path / "none.csv")
    (tmp_path / "pairs.txt").touch()
    with pytest.raises(ValueError, match="expected .csv"):
        read_pairs(tmp_path / "pairs.txt")


HEADER = b"clean,corrupt,right,wrong\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is damaged, empty, not UTF-8 or not csv: No columns"),
        ("a.csv", HEADER, "has 0 rows"),
        ("a.csv", HEADER + b"caf\xe9,tea,a,b\n", "not UTF-8 or not csv: 'utf-8' codec"),
        ("a.csv", HEADER + b"a,b,c\n", "lacks a prompt or an answer in row 1"),
        ("a.csv", HEADER + b"a,b,c,d\na,b,,d\n", "lacks a prompt or an answer in row 2"),
        ("a.csv", HEADER + b"a,b,c,d\na,b,c,d,e\n", "not csv: .*Expected 4 fields"),
        ("a.csv", HEADER + b"a, b,c,d,e\n", "not csv: "),
        ("a.csv", b"\0\1\2", "columns"),
        ("a.jsonl", b"", "has 0 rows|not jsonl"),
        ("a.jsonl", b'{"clean": "a"', "not jsonl: "),
        ("a.jsonl", b"[1, 2]\n", "not jsonl|has 1 rows with the columns 0"),
        ("a.jsonl", b'{"clean": "a", "corrupt": "b", "right": null, "wrong": "d"}\n', "in row 1"),
        ("a.jsonl", b'{"clean": "a", "corrupt": "b", "right": ["c"], "wrong": "d"}', r"\['c'\]"),
        ("a.jsonl", b'{"clean": "a", "corrupt": "b", "right": true, "wrong": "d"}\n', "not text"),
        ("a.parquet", b"PAR1 and no more", "not parquet: "),
        ("a.parquet", b"", "not parquet: "),
    ],
)
def test_a_damaged_file_of_pairs_is_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_pairs(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_file_of_pairs(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").mkdir()
    with pytest.raises(ValueError, match="is damaged"):
        read_pairs(tmp_path / "pairs.csv")


def test_an_unslicable_metric_sees_all_pairs_at_once(model: Any, saes: Any, task: Any) -> None:
    sliced = attribute_budgets(
        model, saes, task.clean, task.metric, [8], batch_size=2, progress=False
    )
    whole = attribute_budgets(
        model, saes, task.clean, lambda logits: task.metric(logits), [8], progress=False
    )
    for name in HOOKS:
        torch.testing.assert_close(sliced.sites[name].mean(8), whole.sites[name].mean(8))
    assert isinstance(task.metric[:2], LogitDiff)
