"""Releases of one's own, and everything that can be wrong with their entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.processes import hsae, python
from helpers.releases import SHIPPED, entry
from sae_lens import SAE
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

import hsae_lens
from hsae_lens import HierarchicalTopKSAE, load_pretrained, register_release
from hsae_lens.releases import directory


def test_ones_own_release_loads_by_name_everywhere(folder: Path) -> None:
    saes = [entry(folder, l0=8, variance_explained=0.8)]
    register_release("mine", model="tiny", folder=folder, saes=saes)
    assert register_release("mine", model="tiny", folder=folder, saes=saes).local, "again is fine"
    sae = load_pretrained("mine", "blocks.1", k=3)
    assert (type(sae), sae.budget) == (HierarchicalTopKSAE, 3)
    same = SAE.from_pretrained("mine", "blocks.1")
    assert torch.equal(same.W_dec, SAE.load_from_disk(folder / "layer-1").W_dec)
    assert get_pretrained_saes_directory()["mine"].expected_l0 == {"blocks.1": 8}
    get_pretrained_saes_directory.cache_clear()
    assert load_pretrained("mine", "blocks.1").budget == 8, (
        "it survives SAELens reading its table again"
    )


def test_the_users_file_is_read_on_import(folder: Path, tmp_path: Path) -> None:
    table = {"from-file": {"model": "tiny", "folder": "saes", "saes": [entry(folder)]}}
    file = tmp_path / "releases.yaml"
    file.write_text(yaml.safe_dump(table))
    code = "import hsae_lens; print(hsae_lens.load_pretrained('from-file', 'blocks.1', k=2).budget)"
    done = python(code, HSAE_RELEASES=str(file))
    assert done.stdout == "2\n", done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine: {model: m, folder: f}", "saes missing"),
        ("mine: {model: m, saes: [{id: a, path: a}]}", "either repo_id or folder"),
        ("mine: {folder: f, saes: [{id: a, path: a}]}", "model missing"),
        ("mine: {modell: m, folder: f, saes: []}", "unknown key 'modell'. Did you mean 'model'"),
        ("mine: {model: m, folder: f, saes: []}", "needs a list of saes"),
        ("mine: {model: m, folder: f, saes: [{id: a}]}", "path missing"),
        ("mine: {model: m, folder: f, saes: [{id: a, path: a, sha: b}]}", "unknown key 'sha'"),
        ("mine: [a]", "must map release names"),
        ("mine: {model: m", "cannot be read as YAML"),
        (
            "mine: {model: false, folder: f, saes: [{id: a, path: a}]}",
            "model must be a text.*False",
        ),
        ("mine: {model: 5, folder: f, saes: [{id: a, path: a}]}", "model must be a text, got 5"),
        ("mine: {model: m, folder: [f], saes: [{id: a, path: a}]}", r"folder must be a text.*'f'"),
        ("mine: {model: m, repo_id: [a/b], saes: [{id: a, path: a}]}", "repo_id must be a text"),
        ("mine: {model: m, repo_id: a//b, saes: [{id: a, path: a}]}", "'mine': Repo id must"),
        ("good: {model: m, folder: g, saes: [{id: b, path: b}]}", "'good' is there twice"),
        ("mine: {model: m, folder: ~nosuchuser/f, saes: [{id: a, path: a}]}", "no such home"),
    ],
)
def test_a_broken_release_file_is_a_warning_on_import_and_an_error_when_asked(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "releases.yaml"
    good = "good: {model: m, folder: f, saes: [{id: a, path: a}]}\n"
    file.write_text(good + text)
    monkeypatch.setenv("HSAE_RELEASES", str(file))
    before = dict(directory.RELEASES), set(get_pretrained_saes_directory())
    with pytest.raises(ValueError, match=message):
        directory.read_user_file()
    with pytest.warns(UserWarning, match=message):
        directory.read_tables()
    assert (dict(directory.RELEASES), set(get_pretrained_saes_directory())) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "../other"}, "leaves the release's folder"),
        ({"path": "/etc"}, "leaves the release's folder"),
        ({"path": "C:\\windows"}, "leaves the release's folder"),
        ({"path": "layer/sae.pt"}, "pickled weights. Only safetensors"),
        ({"sha256": "abc"}, "sha256 must be 64 hex digits"),
        ({"size": 3}, "unknown key 'size'"),
    ],
)
def test_bad_entries_register_nothing(change: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        register_release("bad", model="tiny", folder=folder, saes=[entry(folder, **change)])
    assert "bad" not in directory.RELEASES
    assert "bad" not in get_pretrained_saes_directory()


def test_a_name_is_given_once(folder: Path) -> None:
    """The second of two different releases is refused; what loads by name does not change."""
    register_release("mine", model="tiny", folder=folder, saes=[entry(folder)])
    with pytest.raises(ValueError, match="'mine' is taken, by .*list all SAEs of a release in one"):
        register_release("mine", model="tiny", folder=folder, saes=[entry(folder, id="b")])
    assert load_pretrained("mine", "blocks.1").budget == 8
    assert set(directory.RELEASES["mine"].saes) == {"blocks.1"}
    with pytest.raises(ValueError, match="no such home directory"):
        register_release("other", model="tiny", folder="~nosuchuser/x", saes=[entry(folder)])


def test_an_empty_hsae_releases_means_unset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HSAE_RELEASES", "")
    assert directory.user_file() == tmp_path / "hsae_lens" / "releases.yaml"
    directory.read_tables()
    assert not [w for w in recwarn if "releases" in str(w.message)]


# What Path.home() makes of a user without an entry: expanduser leaves "~" as it is.
HOMELESS = {"HOME": "~", "HSAE_RELEASES": "", "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": "",
            "HSAE_CACHE_DIR": ""}  # fmt: skip


def test_importing_needs_no_home(folder: Path, tmp_path: Path) -> None:
    code = f"""
import hsae_lens
hsae_lens.load_pretrained(*{SHIPPED}, k=8)
from hsae_lens._util.paths import cache_dir
try:
    cache_dir("models")
except OSError as error:
    print(error)
"""
    done = python(code, **HOMELESS)
    assert done.returncode == 0, done.stderr
    assert "hsae_lens did not read your releases: ~" in done.stderr
    assert done.stdout.startswith("No folder for the cache (~")
    assert "Set HSAE_CACHE_DIR" in done.stdout
    assert done.stdout.count("\n") == 1
    done = hsae("releases", **HOMELESS)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "hsae: ~/.config: there is no such home directory; set HOME, or write" in done.stderr
    file = tmp_path / "releases.yaml"
    file.write_text("a: {model: m, folder: ~nosuchuser/f, saes: [{id: a, path: a}]}")
    done = python("import hsae_lens", HSAE_RELEASES=str(file))
    assert done.returncode == 0, done.stderr
    assert "~nosuchuser/f: there is no such home directory" in done.stderr


def test_taken_names(folder: Path) -> None:
    saes = [entry(folder)]
    for name in (SHIPPED[0], "gemma-scope-2b-pt-res"):
        with pytest.raises(ValueError, match=f"'{name}' is taken"):
            register_release(name, model="tiny", folder=folder, saes=saes)
    with pytest.raises(ValueError, match="lists the SAE 'blocks.1' twice"):
        register_release("mine", model="tiny", folder=folder, saes=saes * 2)
    for repo_id, message in (("mine", "must be owner/name"), ("../up", "Repo id must")):
        with pytest.raises(ValueError, match=message):
            register_release("mine", model="tiny", repo_id=repo_id, saes=saes)


def test_unknown_names_answer_with_the_nearest(folder: Path) -> None:
    with pytest.raises(ValueError, match=f"Did you mean '{SHIPPED[0]}'"):
        load_pretrained("smollm2-135m-res-htop", SHIPPED[1])
    with pytest.raises(ValueError, match=f"Did you mean '{SHIPPED[1]}'"):
        load_pretrained(SHIPPED[0], "blocks.15.hook_resid_pots")


def test_the_package_exports_the_public_names() -> None:
    for name in ("load_pretrained", "register_release"):
        assert name in hsae_lens.__all__
