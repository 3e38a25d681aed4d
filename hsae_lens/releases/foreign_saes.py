"""SAEs that sparsify and dictionary_learning saved, read as stock SAELens SAEs.

What is read computes what the library's own ``forward`` does, in float32, on the CPU. Tensors are
checked under the names that the library gave them: an error is about the file that the user has.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from safetensors import SafetensorError
from safetensors.torch import load_file

from hsae_lens.sae.saved_files import COPY_AGAIN, is_finite, read_json

logger = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]

ONE_THRESHOLD = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")

DICT_CLASSES = ("AutoEncoderTopK", *ONE_THRESHOLD, "JumpReluAutoEncoder")
"""The classes of dictionary_learning that say which latents a token uses."""

HOOKPOINT = re.compile(
    r"(?:(?:model|gpt_neox|transformer)\.)?(?:layers|h)\.(\d+)(?:\.(mlp|self_attn|attn|attention))?"
)
SUBMODULE = re.compile(r"(resid_pre|resid_mid|resid_post|mlp_out|attn_out)(?:_layer_?\d+)?")

# These normalise what a layer's parts write, and TransformerLens' hook_mlp_out and hook_attn_out
# come after that; the modules that the other libraries hook, before.
NORMALISED_PARTS = re.compile(r"gemma-?[23]|olmo-?2", re.IGNORECASE)


def read_sparsify(config: Path, weights: Path) -> TopKSAE:
    """A TopK SAE of EleutherAI's sparsify.

    Args:
        config, weights: its ``cfg.json`` and ``sae.safetensors``. The ``config.json`` of the whole
            run, beside the hookpoint's folder, says model and text.

    Raises:
        ValueError: if the files are damaged, or it is no TopK SAE; says why.
    """
    # Not by SAELens' loader: it transposes W_dec, rounds to bfloat16 and may not subtract b_dec.
    cfg = _read_object(config)
    if why := _why_not(cfg):
        raise ValueError(f"{config}: {why}.")
    d_in = _whole(config, cfg, "d_in")
    if cfg.get("num_latents"):
        d_sae = _whole(config, cfg, "num_latents")
    else:
        d_sae = d_in * _whole(config, cfg, "expansion_factor")
    tensors = _read_safetensors(weights)
    if "W_dec" not in tensors:
        raise ValueError(
            f"{weights} has no W_dec: it holds an encoder only, which reconstructs nothing."
        )
    shapes = {"encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,)}
    shapes |= {"W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    tensors = _checked(weights, tensors, shapes)
    return _stock(
        # The largest raw activations are kept, whatever their decoder norms.
        TopKSAEConfig(k=_k(config, cfg, d_sae), **_sizes(d_in, d_sae, _sparsify_metadata(config))),
        W_enc=tensors["encoder.weight"].T,
        b_enc=tensors["encoder.bias"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
    )


def read_dictionary_learning(config: Path, weights: Path) -> TopKSAE | JumpReLUSAE:
    """A TopK, BatchTopK, Matryoshka BatchTopK or JumpReLU SAE of dictionary_learning.

    Args:
        config, weights: its ``config.json`` and ``ae.safetensors`` or ``ae.pt``. That is a pickle,
            of which nothing but plain tensors is taken.

    Raises:
        ValueError: if the files are damaged, or it is of another class; says why.
    """
    whole = _read_object(config)
    cfg = whole.get("trainer")
    kind = cfg.get("dict_class") if isinstance(cfg, dict) else None
    if not isinstance(cfg, dict) or kind not in DICT_CLASSES:
        raise ValueError(
            f"{config}: the class {kind!r} has neither a number of latents nor thresholds of its "
            f"own, or is unknown. These are read: {', '.join(DICT_CLASSES)}."
        )
    d_in, d_sae = _whole(config, cfg, "activation_dim"), _whole(config, cfg, "dict_size")
    tensors = _read_pickle(weights) if weights.suffix == ".pt" else _read_safetensors(weights)
    size = _sizes(d_in, d_sae, _dictionary_metadata(cfg, whole.get("buffer")))
    if kind == "AutoEncoderTopK":
        k = _k(config, cfg, d_sae)
        if (stored := tensors.get("k")) is not None and stored.tolist() != k:
            raise ValueError(f"{config} says k={k}, and {weights} {stored.tolist()}. {COPY_AGAIN}")
        # It has a threshold too, which its forward does not use.
        return _stock(TopKSAEConfig(k=k, **size), **_dictionary(weights, tensors, d_in, d_sae))
    one = kind in ONE_THRESHOLD
    state = _dictionary(weights, tensors, d_in, d_sae, threshold=() if one else (d_sae,))
    if one and state["threshold"] <= 0:
        raise ValueError(
            f"{weights}: the threshold is {float(state['threshold']):g}, as before training has "
            "set it, and nothing else says which latents a token uses. Train it longer."
        )
    state["threshold"] = state["threshold"].expand(d_sae)
    # JumpReluAutoEncoder does not subtract b_dec; the flag it has for that is not saved.
    return _stock(JumpReLUSAEConfig(apply_b_dec_to_input=one, **size), **state)


def hookpoint_of(config: Path) -> Path:
    """The folder named after sparsify's hookpoint; with several seeds, each has a folder in it."""
    folder = config.parent
    return folder.parent if re.fullmatch(r"seed\d+", folder.name) else folder


def _why_not(cfg: dict[str, Any]) -> str | None:
    """Why a sparsify SAE has no place here; None if it has one."""
    activation = cfg.get("activation", "topk")
    if cfg.get("transcode"):
        return "a transcoder: it predicts another activation than it reads"
    if cfg.get("skip_connection"):
        return "its skip connection reconstructs too, with no latent at all"
    if cfg.get("signed") or "abs" in str(activation):
        return "it keeps negative latents, which have no place in an order by activation"
    if activation == "groupmax":
        return "groupmax keeps the largest latent of each group, not a token's largest ones"
    return None if activation == "topk" else f"the activation {activation!r} is unknown; not topk"


def _sparsify_metadata(config: Path) -> SAEMetadata:
    hookpoint = hookpoint_of(config)
    file = hookpoint.parent / "config.json"
    run = _read_object(file) if file.is_file() else {}
    model = run.get("model")
    hook = "hook_embed" if hookpoint.name in ("embed_tokens", "model.embed_tokens") else None
    if found := HOOKPOINT.fullmatch(hookpoint.name):
        layer, part = found.groups()
        parts = {None: "resid_post", "mlp": "mlp_out"}
        hook = _hook(layer, parts.get(part, "attn_out"), model)
    return _metadata(model, hook, run.get("ctx_len"), run.get("dataset"))


def _dictionary_metadata(trainer: dict[str, Any], buffer: Any) -> SAEMetadata:
    buffer = buffer if isinstance(buffer, dict) else {}
    model, layer, hook = trainer.get("lm_name"), trainer.get("layer"), None
    found = SUBMODULE.fullmatch(str(trainer.get("submodule_name")))
    if found and isinstance(layer, int) and buffer.get("io", "out") == "out":
        hook = _hook(layer, found[1], model)
    metadata = _metadata(model, hook, buffer.get("ctx_len"), None)
    metadata.training_architecture_details = {"k": trainer.get("k")}  # where SAELens has it
    return metadata


def _hook(layer: int | str, part: str, model: Any) -> str | None:
    """TransformerLens' name of it; None where that may be another activation."""
    if part in ("mlp_out", "attn_out") and NORMALISED_PARTS.search(str(model)):
        return None
    return f"blocks.{layer}.hook_{part}"


def _metadata(model: Any, hook: str | None, context_size: Any, dataset: Any) -> SAEMetadata:
    facts = {
        "model_name": (model, str),
        "hook_name": (hook, str),
        "context_size": (context_size, int),
        "dataset_path": (dataset, str),
    }
    return SAEMetadata(**{n: fact for n, (fact, kind) in facts.items() if isinstance(fact, kind)})


def _sizes(d_in: int, d_sae: int, metadata: SAEMetadata) -> dict[str, Any]:
    return {"d_in": d_in, "d_sae": d_sae, "metadata": metadata, "device": "meta"}


def _stock(cfg: TopKSAEConfig | JumpReLUSAEConfig, **state: torch.Tensor) -> Any:
    sae = SAE.get_sae_class_for_architecture(cfg.architecture())(cfg)
    sae.load_state_dict({n: tensor.contiguous() for n, tensor in state.items()}, assign=True)
    return sae.to("cpu")


def _dictionary(
    file: Path, tensors: Tensors, d_in: int, d_sae: int, **more: tuple[int, ...]
) -> Tensors:
    """Its weights under SAELens' names, and ``more`` of these shapes."""
    plain = "W_enc" in tensors
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    theirs = names if plain else ("encoder.weight", "encoder.bias", "decoder.weight", "b_dec")
    shapes: list[tuple[int, ...]] = [(d_in, d_sae), (d_sae,), (d_sae, d_in), (d_in,)]
    if not plain:
        shapes = [shape[::-1] for shape in shapes]
    kept = {
        n: t for n, t in tensors.items() if n not in {"k", "group_sizes", "threshold"} - {*more}
    }
    checked = _checked(file, kept, dict(zip(theirs, shapes, strict=True)) | more)
    values = (checked[name] if plain else checked[name].t() for name in theirs)
    ours = dict(zip(names, values, strict=True))
    return ours | {name: checked[name] for name in more}


def _checked(file: Path, tensors: Tensors, shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """These tensors in float32. Raises ValueError unless they are all, of these shapes, finite."""
    wrong = [f"{name} is missing" for name in shapes if name not in tensors]
    wrong += [f"{name} does not belong there" for name in tensors if name not in shapes]
    for name in (name for name in shapes if name in tensors):
        shape, dtype = tuple(tensors[name].shape), tensors[name].dtype
        if shape != shapes[name]:
            wrong.append(f"{name} has the shape {shape} where the config says {shapes[name]}")
        if not dtype.is_floating_point:
            wrong.append(f"{name} is stored as {dtype}, not in floating point")
    if wrong:
        raise ValueError(f"{file} does not fit: {'; '.join(wrong[:4])}. {COPY_AGAIN}")
    tensors = {name: tensors[name].to(torch.float32) for name in shapes}
    if bad := [name for name, tensor in tensors.items() if not is_finite(tensor)]:
        raise ValueError(f"{file}: {', '.join(bad)} holds NaN or infinite numbers. {COPY_AGAIN}")
    return tensors


def _read_safetensors(file: Path) -> Tensors:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or cut short ({error}). {COPY_AGAIN}") from error


def _read_pickle(file: Path) -> Tensors:
    logger.warning("%s is a pickle: only plain tensors are taken from it, no code is run.", file)
    refusal = f"{file} is damaged, cut short, or holds more than plain tensors"
    fix = "Copy it again, or save its state_dict() as ae.safetensors."
    with open(file, "rb"):
        pass  # may it be read at all? torch raises OSError for damage too
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle may raise any
        # Not with torch's own words: they advise to let the file run code.
        raise ValueError(f"{refusal}. {fix}") from error
    if not isinstance(tensors, Mapping) or not all(map(torch.is_tensor, tensors.values())):
        raise ValueError(f"{refusal}. {fix}")
    return dict(tensors)


def _read_object(file: Path) -> dict[str, Any]:
    cfg = read_json(file)
    if not isinstance(cfg, dict):
        raise ValueError(f"{file} holds {type(cfg).__name__} where names and values belong.")
    return cfg


def _whole(file: Path, cfg: dict[str, Any], name: str) -> int:
    value = cfg.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**30:
        raise ValueError(f"{file}: {name} must be a whole number of at least 1, got {value!r}.")
    return value


def _k(file: Path, cfg: dict[str, Any], d_sae: int) -> int:
    k = _whole(file, cfg, "k")
    if k > d_sae:
        raise ValueError(f"{file}: k={k} exceeds the number of latents, {d_sae}.")
    return k
