"""Damaged, foreign and unfinished SAEs: one clear line, whichever door they are brought to."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import training_sae
from sae_lens import SAE
from safetensors.torch import load_file, save_file

from hsae_lens import HierarchicalTopKSAE, load_pretrained, register_release
from hsae_lens.cli import main
from hsae_lens.releases import directory
from hsae_lens.releases.listing import list_releases
from hsae_lens.releases.opening import open_sae

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
Door = Callable[[Path], Any]


def _by_name(folder: Path, load: Callable[[str, str], Any]) -> Any:
    saes = [{"id": "one", "path": folder.name}]
    register_release("mine", model="tiny", folder=folder.parent, saes=saes)
    try:
        return load("mine", "one")
    finally:
        directory.RELEASES.pop("mine")
        directory.get_pretrained_saes_directory().pop("mine")


DOORS: dict[str, Door] = {
    "our class": HierarchicalTopKSAE.load_from_disk,
    "open_sae": open_sae,
    "open_sae by name": lambda f: _by_name(f, lambda release, i: open_sae(f"{release}/{i}")),
    "SAE.from_pretrained": lambda folder: _by_name(folder, SAE.from_pretrained),
    "load_pretrained": lambda folder: _by_name(folder, load_pretrained),
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    training_sae().save_inference_model(tmp_path / "saved")
    return tmp_path / "saved"


def change_config(folder: Path, **values: Any) -> None:
    cfg = json.loads((folder / CFG).read_text()) | values
    kept = {key: value for key, value in cfg.items() if value is not ...}
    (folder / CFG).write_text(json.dumps(kept))


def change_weights(folder: Path, **tensors: torch.Tensor | None) -> None:
    state = load_file(folder / WEIGHTS) | tensors
    save_file({n: t for n, t in state.items() if t is not None}, folder / WEIGHTS)


def refused(door: Door, folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        door(folder)
    said = str(caught.value)
    assert "\n" not in said
    return said


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "no k": ({"k": ...}, "k must be a whole number of at least 1, and is missing"),
    "k in words": ({"k": "8"}, "k must be a whole number of at least 1, got '8'"),
    "negative k": ({"k": -8}, "k must be a whole number of at least 1, got -8"),
    "no number": ({"k": float("nan")}, "k must be a whole number of at least 1, got nan"),
    "k above d_sae": ({"k": 97}, "k must be in 1..d_sae=96, got 97"),
    "no d_in": ({"d_in": ...}, "d_in must be a whole number of at least 1, and is missing"),
    "endless d_sae": ({"d_sae": 10**40}, "d_sae must be a whole number of at least 1, got 1000"),
    "a flag in words": ({"apply_b_dec_to_input": "no"}, "must be true or false, got 'no'"),
    "a dtype": ({"dtype": "float99"}, "Invalid dtype: float99"),
    "an architecture": (
        {"architecture": "hierarchical_topK"},
        "the architecture 'hierarchical_topK' is unknown; import the package that has it, if there "
        "is one. Did you mean 'hierarchical_topk'",
    ),
    "a list of architectures": ({"architecture": ["topk"]}, "the architecture ['topk'] is unknown"),
    "shapes of heads": ({"reshape_activations": "hook_q"}, "must be 'none' or 'hook_z'"),
    "metadata": ({"metadata": [1]}, "does not describe an SAE"),
    "a version": ({"metadata": {"sae_lens_version": "six"}}, "does not describe an SAE"),
    "a budget": ({"default_budget": 9}, "default_budget 9 is outside 1..8"),
}


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("door", DOORS)
def test_a_config_that_describes_no_sae(door: str, case: str, saved: Path) -> None:
    values, message = CONFIGS[case]
    change_config(saved, **values)
    said = refused(DOORS[door], saved)
    assert message in said
    # By name the dtype is the caller's, so that one cannot be wrong there.
    assert str(saved / CFG) in said


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00", '{"k": 8', "[" * 10_000])
@pytest.mark.parametrize("door", DOORS)
def test_a_config_that_is_no_json(door: str, text: str, saved: Path) -> None:
    (saved / CFG).write_text(text)
    assert str(saved / CFG) in refused(DOORS[door], saved)
    (saved / CFG).write_bytes(b"\xff\xfe{}")
    assert str(saved / CFG) in refused(DOORS[door], saved)


TENSORS: dict[str, tuple[dict[str, torch.Tensor | None], str]] = {
    "missing": ({"b_enc": None}, "b_enc is missing"),
    "extra": ({"b_out": torch.ones(3)}, "b_out does not belong there"),
    "misshapen": (
        {"W_enc": torch.ones(24, 95)},
        "W_enc has the shape [24, 95] where cfg.json says [24, 96]",
    ),
    "NaN": ({"b_dec": torch.full((24,), torch.nan)}, "b_dec holds NaN or infinite numbers"),
    "infinite": ({"b_enc": torch.full((96,), torch.inf)}, "b_enc holds NaN or infinite numbers"),
    "integers": (
        {"b_dec": torch.ones(24, dtype=torch.int32)},
        "b_dec is stored as I32; an SAE's weights are floating point",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
@pytest.mark.parametrize("door", DOORS)
def test_weights_that_do_not_fit(door: str, case: str, saved: Path) -> None:
    tensors, message = TENSORS[case]
    change_weights(saved, **tensors)
    said = refused(DOORS[door], saved)
    assert message in said
    assert WEIGHTS in said


@pytest.mark.parametrize("case", [c for c in TENSORS if c != "integers"])
def test_saelens_own_door_checks_our_weights_too(case: str, saved: Path) -> None:
    tensors, message = TENSORS[case]
    change_weights(saved, **tensors)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        SAE.load_from_disk(saved)


@pytest.mark.parametrize("case", [c for c in TENSORS if c != "misshapen"])
def test_other_architectures_are_checked(case: str, saved: Path) -> None:
    SAE.load_from_disk(saved).at_k(4).save_model(saved.parent / "stock")
    change_weights(saved.parent / "stock", **TENSORS[case][0])
    said = refused(open_sae, saved.parent / "stock")
    assert WEIGHTS in said
    assert next(iter(TENSORS[case][0])) in said
    change_config(saved.parent / "stock", k=...)  # SAELens would take 100
    assert "k must be a whole number of at least 1, and is missing" in refused(
        open_sae, saved.parent / "stock"
    )


@pytest.mark.parametrize("size", [0, 5, 300, 18_000])
@pytest.mark.parametrize("door", DOORS)
def test_weights_cut_short(door: str, size: int, saved: Path) -> None:
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:size])
    said = refused(DOORS[door], saved)
    assert f"{saved / WEIGHTS} is damaged or cut short" in said


@pytest.mark.parametrize("door", DOORS)
def test_what_is_not_there(door: str, saved: Path) -> None:
    (saved / WEIGHTS).rename(saved / "else")
    with pytest.raises(FileNotFoundError, match=f"No saved SAE at {saved}: {WEIGHTS} missing"):
        DOORS[door](saved)
    (saved / CFG).unlink()
    with pytest.raises(FileNotFoundError, match=f"{CFG} and {WEIGHTS} missing"):
        DOORS[door](saved)
    (saved / WEIGHTS).mkdir()
    (saved / CFG).mkdir()
    with pytest.raises(OSError, match="directory"):
        DOORS[door](saved)


def test_a_file_is_not_a_folder(saved: Path) -> None:
    for door in (HierarchicalTopKSAE.load_from_disk, open_sae):
        with pytest.raises(FileNotFoundError, match="is a file. Give the folder that holds"):
            door(saved / WEIGHTS)


@contextmanager
def unreadable(file: Path) -> Iterator[None]:
    """Nobody's rights inside, for root reads everything."""
    file.chmod(0)
    root = os.geteuid() == 0
    opened = [parent for parent in file.parents if root and not parent.stat().st_mode & 1]
    modes = [parent.stat().st_mode for parent in opened]
    for parent, mode in zip(opened, modes, strict=True):
        parent.chmod(mode | 0o011)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for parent, mode in zip(opened, modes, strict=True):
            parent.chmod(mode)


@pytest.mark.parametrize("name", [CFG, WEIGHTS])
def test_files_that_may_not_be_read(name: str, saved: Path, capsys: Any) -> None:
    export = ["export", str(saved), "--k", "2", "--out"]
    # These import what nobody may not.
    assert [main([*export, str(saved / "before")]) for _ in range(2)] == [0, 1]
    with unreadable(saved / name):
        with pytest.raises(PermissionError):
            HierarchicalTopKSAE.load_from_disk(saved)
        assert main([*export, str(saved / "after")]) == 1
    assert f"hsae: Permission denied: {saved / name}\n" in capsys.readouterr().err


def test_devices_and_dtypes_are_not_blamed_on_the_files(saved: Path) -> None:
    doors: dict[str, Callable[..., Any]] = {
        "class": lambda **with_: HierarchicalTopKSAE.load_from_disk(saved, **with_),
        "open_sae": lambda **with_: open_sae(saved, **with_),
        "names": lambda **with_: _by_name(saved, lambda *name: load_pretrained(*name, **with_)),
        "SAELens": lambda **with_: _by_name(
            saved, lambda *name: SAE.from_pretrained(*name, **with_)
        ),
    }
    for door in doors.values():
        with pytest.raises(ValueError, match="^Unknown device 'banana'"):
            door(device="banana")
        with pytest.raises(ValueError, match="^The device 'cuda:99' was asked for, but"):
            door(device="cuda:99")
        with pytest.raises(ValueError, match="Invalid dtype: float99"):
            door(dtype="float99")


def test_numbers_too_large_for_the_dtype_are_said(saved: Path) -> None:
    change_weights(saved, b_enc=torch.full((96,), 1e6))
    assert "holds NaN or infinite numbers in torch.float16" in refused(
        lambda folder: open_sae(folder, dtype="float16"), saved
    )


def test_the_command_says_it_in_one_line(saved: Path, capsys: Any) -> None:
    change_weights(saved, b_dec=torch.full((24,), torch.nan))
    assert main(["export", str(saved), "--k", "2", "--out", str(saved / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("hsae: ")
    assert "b_dec holds NaN" in error
    assert error.count("\n") == 1
    assert not (saved / "out").exists()


# --- checkpoints ---


@pytest.mark.parametrize("door", [door for door in DOORS if door != "our class"])
def test_a_checkpoint_by_name_is_as_by_folder(door: str, tmp_path: Path) -> None:
    trained = training_sae()
    trained.save_model(tmp_path / "checkpoint")
    sae = DOORS[door](tmp_path / "checkpoint")
    assert not sae.cfg.rescale_acts_by_decoder_norm
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(96))
    x = torch.randn(5, 24)
    torch.testing.assert_close(sae(x), trained(x))
    torch.testing.assert_close(sae.encode(x), trained.encode(x))
    for scaling in ("expected_average_only_in", "covariance_whitening"):
        training_sae(normalize_activations=scaling).save_model(tmp_path / scaling)
        said = refused(DOORS[door], tmp_path / scaling)
        assert (
            f"is a training checkpoint: the scaling of its input ({scaling}) is not folded" in said
        )


def test_a_checkpoint_with_tensors_that_do_not_fit(tmp_path: Path) -> None:
    training_sae().save_model(tmp_path / "checkpoint")
    change_weights(tmp_path / "checkpoint", W_dec=torch.ones(95, 24))
    for door in DOORS.values():
        assert "W_dec has the shape [95, 24] where" in refused(door, tmp_path / "checkpoint")


# --- a catalogue, and damage at random ---


def test_the_catalogue_survives_a_damaged_sae(saved: Path) -> None:
    def shown() -> str:
        return _by_name(saved, lambda *_: list_releases())

    change_config(saved, metadata={"sae_lens_version": "6.54.0", "frontier": "none"})
    assert "24 → 96 latents, hierarchical_topk, k 1..8" in shown()
    change_config(saved, metadata={"sae_lens_version": "6.54.0", "frontier": [{"k": 1}, 3]})
    assert "24 → 96 latents" in shown()
    (saved / CFG).write_text("{")
    assert f"{saved / CFG} is damaged: it is no JSON" in shown()
    assert "576 → 4608 latents" in shown()


def test_mutated_files_end_in_an_sae_or_in_one_line(saved: Path) -> None:
    """Bytes of the config and of the weights' header changed at random, 200 times, seeded."""
    chance = random.Random(0)
    original = {name: (saved / name).read_bytes() for name in (CFG, WEIGHTS)}
    refusals: list[str] = []
    for n in range(200):
        name = (CFG, WEIGHTS)[n % 2]
        content = bytearray(original[name])
        for _ in range(chance.randint(1, 3)):
            content[chance.randrange(min(600, len(content)))] = chance.randrange(256)
        (saved / name).write_bytes(content)
        try:
            assert open_sae(saved).cfg.d_in == 24
        except ValueError as error:
            refusals.append(str(error))
        assert (saved / name).read_bytes() == content
        (saved / name).write_bytes(original[name])
    assert 100 < len(refusals) < 200
    assert not [said for said in refusals if "\n" in said]
