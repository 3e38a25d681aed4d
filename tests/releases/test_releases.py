"""SAEs by name: the shipped one, one's own, and everything that can be wrong with them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from helpers import training_sae
from helpers.hub import hub
from sae_lens import SAE
from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

import hsae_lens
from hsae_lens import HierarchicalTopKSAE, load_pretrained, register_release
from hsae_lens._util.paths import cache_dir
from hsae_lens.cli import main
from hsae_lens.evaluation import evaluate_budgets
from hsae_lens.models.text_files import cpython_reference
from hsae_lens.models.tokens import tokenize
from hsae_lens.releases import table
from hsae_lens.releases.export import export_sae
from hsae_lens.releases.hub_loader import checksum
from hsae_lens.releases.listing import list_releases
from hsae_lens.releases.opening import open_hierarchical, open_sae

ROOT = Path(__file__).parents[2]
SHIPPED = ("smollm2-135m-res-htopk", "blocks.15.hook_resid_post")
OFFLINE = {"HF_HUB_OFFLINE": "1"}


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, away from the checkout."""
    return subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=Path(sys.executable).parent,
    )


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-c", code, **environment)


def hsae(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(Path(sys.executable).with_name("hsae"), *arguments, **environment)


@pytest.fixture(autouse=True)
def registry_as_before() -> Iterator[None]:
    before = dict(table.RELEASES), dict(get_pretrained_saes_directory())
    yield
    tables = table.RELEASES, get_pretrained_saes_directory()
    for names, entries in zip(tables, before, strict=True):
        names.clear()
        names.update(entries)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of one's own with one small SAE in it, at layer-1."""
    training_sae().save_inference_model(tmp_path / "saes" / "layer-1")
    return tmp_path / "saes"


def entry(folder: Path, **keys: Any) -> dict[str, Any]:
    sha256 = checksum(folder / "layer-1" / "sae_weights.safetensors")
    return {"id": "blocks.1", "path": "layer-1", "sha256": sha256, **keys}


# --- the shipped SAE ---


def test_the_shipped_sae_loads_through_saelens_without_a_network() -> None:
    code = f"""
import hsae_lens
from sae_lens import SAE
sae, cfg, sparsity = SAE.from_pretrained_with_cfg_and_sparsity{SHIPPED}
assert type(sae) is hsae_lens.HierarchicalTopKSAE, type(sae)
assert sae.W_enc.dtype.is_floating_point and str(sae.W_enc.dtype) == "torch.float32"
assert cfg["d_sae"] == sae.cfg.d_sae >= 4096 and sae.cfg.k >= 64
assert sae.cfg.metadata.hook_name == "{SHIPPED[1]}"
assert type(SAE.from_pretrained(*{SHIPPED})) is type(sae)
"""
    done = python(code, **OFFLINE)
    assert done.returncode == 0, done.stderr


def test_saelens_directory_and_config_getters_know_it() -> None:
    lookup = get_pretrained_saes_directory()[SHIPPED[0]]
    assert SHIPPED[1] in lookup.saes_map
    assert lookup.model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    cfg = load_sae_config_from_huggingface(*SHIPPED)
    assert cfg["architecture"] == "hierarchical_topk"
    assert "hsae_lens" not in cfg, "what only our loader needs stays out of the config"


def test_a_budget_is_the_number_of_active_latents() -> None:
    x = 10 * torch.randn(7, 576, generator=torch.Generator().manual_seed(0))
    sae = load_pretrained(*SHIPPED, k=8)
    assert ((sae.encode(x) > 0).sum(-1) == 8).all()
    half = load_pretrained(*SHIPPED, dtype=torch.bfloat16)
    assert half.W_dec.dtype == torch.bfloat16
    assert half.k == half.cfg.k
    with pytest.raises(ValueError, match=r"budget 129 is outside 1..128"):
        load_pretrained(*SHIPPED, k=129)


def test_folding_the_shipped_decoder_is_harmless() -> None:
    sae = SAE.from_pretrained(*SHIPPED, fold_W_dec_norm=True)
    assert torch.equal(sae.W_dec, SAE.from_pretrained(*SHIPPED).W_dec)


def test_the_card_tells_the_truth(smollm: Any) -> None:
    """One point of the saved frontier, measured again on the real model and the same text."""
    sae = load_pretrained(*SHIPPED)
    saved = pd.DataFrame(sae.cfg.metadata.frontier)
    saved = saved[saved["text"].str.contains("CPython") & (saved["k"] == 32)]
    assert len(saved) == 1
    tokens = tokenize(cpython_reference(), smollm.tokenizer, 128, progress=False)[:64]
    table = evaluate_budgets(sae, smollm, tokens, [32], cross_entropy=False, progress=False)
    difference = table["explained_variance"].iloc[0] - saved["explained_variance"].iloc[0]
    assert abs(difference) < 0.01


def test_the_wheel_holds_everything_and_is_small(tmp_path: Path) -> None:
    source = tmp_path / "source"  # building leaves files behind
    shutil.copytree(ROOT / "hsae_lens", source / "hsae_lens")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 20e6
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.startswith("shipped_sae")]
        archive.extractall(tmp_path / "installed")
    code = f"""
import hsae_lens
assert hsae_lens.__file__.startswith({str(tmp_path)!r}), hsae_lens.__file__
hsae_lens.load_pretrained(*{SHIPPED}, k=8)
"""
    done = python(code, PYTHONPATH=str(tmp_path / "installed"), **OFFLINE)
    assert done.returncode == 0, done.stderr


def test_the_catalogue_shows_each_sae_with_its_frontier(folder: Path) -> None:
    register_release("mine", model="tiny", folder=folder, saes=[entry(folder)])
    register_release("far", model="tiny", repo_id="me/far", saes=[{"id": "a", "path": "a"}])
    register_release("gone", model="tiny", folder=folder, saes=[{"id": "b", "path": "b"}])
    shown = list_releases()
    for words in (*SHIPPED, "576 → 4608 latents", "explained variance", "recovered cross-entropy",
                  "24 → 96 latents, hierarchical_topk, k 1..8", "not downloaded yet",
                  "its files are missing"):  # fmt: skip
        assert words in shown


# --- one's own ---


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
    code = "import hsae_lens; print(hsae_lens.load_pretrained('from-file', 'blocks.1', k=2).k)"
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
    before = dict(table.RELEASES), set(get_pretrained_saes_directory())
    with pytest.raises(ValueError, match=message):
        table.read_user_file()
    with pytest.warns(UserWarning, match=message):
        table.read_tables()
    assert (dict(table.RELEASES), set(get_pretrained_saes_directory())) == before


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
    assert "bad" not in table.RELEASES
    assert "bad" not in get_pretrained_saes_directory()


def test_a_name_is_given_once(folder: Path) -> None:
    """The second of two different releases is refused; what loads by name does not change."""
    register_release("mine", model="tiny", folder=folder, saes=[entry(folder)])
    with pytest.raises(ValueError, match="'mine' is taken, by .*list all SAEs of a release in one"):
        register_release("mine", model="tiny", folder=folder, saes=[entry(folder, id="b")])
    assert load_pretrained("mine", "blocks.1").budget == 8
    assert set(table.RELEASES["mine"].saes) == {"blocks.1"}
    with pytest.raises(ValueError, match="no such home directory"):
        register_release("other", model="tiny", folder="~nosuchuser/x", saes=[entry(folder)])


def test_an_empty_hsae_releases_means_unset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HSAE_RELEASES", "")
    assert table.user_file() == tmp_path / "hsae_lens" / "releases.yaml"
    table.read_tables()
    assert not [w for w in recwarn if "releases" in str(w.message)]


# What Path.home() makes of a user without an entry: expanduser leaves "~" as it is.
HOMELESS = {"HOME": "~", "HSAE_RELEASES": "", "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": "",
            "HSAE_CACHE_DIR": ""}  # fmt: skip


def test_importing_needs_no_home(folder: Path, tmp_path: Path) -> None:
    code = f"""
import hsae_lens
hsae_lens.load_pretrained(*{SHIPPED}, k=8)
from hsae_lens.cache import cache_dir
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


def test_the_cache_may_be_below_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HSAE_CACHE_DIR", "~/x")
    assert cache_dir("models") == tmp_path / "x" / "models"
    (tmp_path / "file").touch()
    monkeypatch.setenv("HSAE_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(OSError, match="No folder for the cache .*Set HSAE_CACHE_DIR to one that"):
        cache_dir("models")


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


def test_swapped_damaged_and_pickled_weights_are_refused(folder: Path) -> None:
    register_release("mine", model="tiny", folder=folder, saes=[entry(folder)])
    free = [{"id": "blocks.1", "path": "layer-1"}]  # no checksum
    register_release("free", model="tiny", folder=folder, saes=free)
    weights = folder / "layer-1" / "sae_weights.safetensors"
    original = weights.read_bytes()

    training_sae(k=7).save_inference_model(folder / "other")
    shutil.copy(folder / "other" / "sae_weights.safetensors", weights)
    swapped = bytearray(original)
    swapped[-1] ^= 1
    weights.write_bytes(swapped)
    with pytest.raises(ValueError, match="is not the file of the release: its SHA-256 is"):
        SAE.from_pretrained("mine", "blocks.1")
    weights.write_bytes(original[:500])
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_pretrained("free", "blocks.1")
    weights.rename(weights.with_name("sae_weights.pt"))
    with pytest.raises(ValueError, match=r"holds sae_weights.pt. Only safetensors are read"):
        load_pretrained("free", "blocks.1")
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="No saved SAE at"):
        load_pretrained("free", "blocks.1")


def test_other_architectures_are_for_saelens(folder: Path) -> None:
    SAE.load_from_disk(folder / "layer-1").at_k(2).save_model(folder / "stock")
    saes = [{"id": "stock", "path": "stock"}]
    register_release("mine", model="tiny", folder=folder, saes=saes)
    assert SAE.from_pretrained("mine", "stock").cfg.architecture() == "topk"
    with pytest.raises(ValueError, match="is a 'topk' SAE, which has no order"):
        load_pretrained("mine", "stock")


# --- the hub ---


def test_published_and_loaded_back_through_a_hub(folder: Path, tmp_path: Path) -> None:
    sae = SAE.load_from_disk(folder / "layer-1")
    sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = "tiny", "blocks.1.hook_resid_post"
    sae.save_model(folder / "layer-1")
    with hub() as server:
        environment = server.environment | {"HF_HOME": str(tmp_path / "hf")}
        done = hsae("publish", folder / "layer-1", "me/saes", **environment)
        assert done.returncode == 0, done.stderr
        uploaded = server.repositories["me/saes"]
        hook = "blocks.1.hook_resid_post"
        assert set(uploaded) == {
            "README.md",
            *(f"{hook}/{n}" for n in ("README.md", "cfg.json", "sae_weights.safetensors")),
        }
        assert b"library_name: saelens" in uploaded["README.md"]

        assert hsae("publish", folder / "layer-1", "me/saes", **environment).returncode == 0, (
            "the same again is fine"
        )
        weights = uploaded[f"{hook}/sae_weights.safetensors"]
        other = SAE.load_from_disk(folder / "layer-1")
        other.b_dec.data += 1
        other.save_model(folder / "other")
        refused = hsae("publish", folder / "other", "me/saes", **environment)
        assert refused.returncode == 1
        assert f"hsae: me/saes holds another SAE under {hook}. Give another id" in refused.stderr
        assert uploaded[f"{hook}/sae_weights.safetensors"] == weights
        replaced = hsae("publish", folder / "other", "me/saes", "--overwrite", **environment)
        assert replaced.returncode == 0, replaced.stderr
        assert uploaded[f"{hook}/sae_weights.safetensors"] != weights
        uploaded[f"{hook}/sae_weights.safetensors"] = weights

        (tmp_path / "releases.yaml").write_text(done.stdout.split("\n\n", 1)[1])
        environment["HSAE_RELEASES"] = str(tmp_path / "releases.yaml")
        load = f"import hsae_lens; print(hsae_lens.load_pretrained('saes', '{hook}', k=5).k)"
        assert python(load, **environment).stdout == "5\n"
        assert python(load, **environment, **OFFLINE).stdout == "5\n", "from the cache"

        uploaded[f"{hook}/sae_weights.safetensors"] += b"\0"
        environment["HF_HOME"] = str(tmp_path / "other")
        assert "is not the file of the release" in python(load, **environment).stderr
        environment["HF_HOME"] = str(tmp_path / "third")
        done = python(load, **environment, **OFFLINE)
        assert "SAEUnavailableError: me/saes/" in done.stderr
        assert "is not in the local cache" in done.stderr
        done = python(load.replace("'saes'", "'me/nothing'"), **environment)
        assert "SAEUnavailableError: The Hugging Face hub has no me/nothing" in done.stderr


def test_no_hub_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    command = ("publish", "/".join(SHIPPED), "me/a")
    done = hsae(*command, HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN="x")
    assert done.returncode == 1
    assert "cannot be reached for me/a" in done.stderr
    assert "Traceback" not in done.stderr
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "Not uploaded (dry run)" in shown
    assert "repo_id: me/a" in shown


# --- out of the package ---


def test_exporting_from_a_folder_and_by_name(folder: Path, tmp_path: Path) -> None:
    for where, k, out in (
        (folder / "layer-1", 3, tmp_path / "a"),
        ("/".join(SHIPPED), 32, tmp_path / "b"),
    ):
        assert main(["export", str(where), "--k", str(k), "--out", str(out)]) == 0
        stock = SAE.load_from_disk(out)
        assert (stock.cfg.architecture(), stock.cfg.k) == ("topk", k)
    x = torch.randn(5, 576)
    with load_pretrained(*SHIPPED).using_budget(32) as ours:
        torch.testing.assert_close(stock(x), ours(x))


def test_exporting_never_replaces_what_it_exports(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder / "layer-1"
    register_release("mine", model="tiny", folder=folder, saes=[entry(folder)])
    (tmp_path / "link").symlink_to(source)
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    for where in (source, "mine/blocks.1", tmp_path / "link"):
        for out in (source, tmp_path / "link", folder / ".." / "saes" / "layer-1"):
            for overwrite in ([], ["--overwrite"]):
                command = ["export", str(where), "--k", "2", "--out", str(out), *overwrite]
                assert main(command) == 1
                assert "holds the SAE that is to be exported" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before


def test_exporting_asks_before_it_replaces_another_sae(folder: Path, tmp_path: Path) -> None:
    training_sae(k=7).save_inference_model(tmp_path / "other")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "cfg.json").write_text("{}")  # whatever it belongs to
    for out in (tmp_path / "other", tmp_path / "half"):
        before = {file.name: file.read_bytes() for file in out.iterdir()}
        with pytest.raises(ValueError, match=r"holds cfg.json.* already. Give another folder, or"):
            export_sae(folder / "layer-1", 2, out)
        assert {file.name: file.read_bytes() for file in out.iterdir()} == before
        export_sae(folder / "layer-1", 2, out, overwrite=True)
        assert SAE.load_from_disk(out).cfg.architecture() == "topk"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").touch()
    export_sae(folder / "layer-1", 2, tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").exists()
    with pytest.raises(ValueError, match=r"mine.txt is a file. Give a folder"):
        export_sae(folder / "layer-1", 2, tmp_path / "notes" / "mine.txt")


def test_a_training_checkpoint_is_made_ready_or_refused(tmp_path: Path) -> None:
    trained = training_sae(dtype="float64")
    trained.save_model(tmp_path / "checkpoint")
    sae = open_sae(tmp_path / "checkpoint")
    x = torch.randn(5, 24, dtype=torch.float64)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(96, dtype=torch.float64))
    torch.testing.assert_close(sae.encode(x), trained.encode(x))
    torch.testing.assert_close(sae(x), trained(x))
    training_sae(normalize_activations="expected_average_only_in").save_model(tmp_path / "early")
    with pytest.raises(ValueError, match="not folded into the weights yet"):
        open_sae(tmp_path / "early")
    training_sae().save_inference_model(tmp_path / "ready")
    open_sae(tmp_path / "ready").at_k(2).save_model(tmp_path / "stock")
    assert open_sae(tmp_path / "stock").cfg.architecture() == "topk"
    with pytest.raises(ValueError, match="is a 'topk' SAE, not a hierarchical one"):
        open_hierarchical(tmp_path / "stock")
    with pytest.raises(FileNotFoundError, match=f"Did you mean '{SHIPPED[0]}/{SHIPPED[1]}'"):
        open_sae("smollm2-135m-res-htopk2/blocks.15.hook_resid_post")


def test_the_package_exports_the_public_names() -> None:
    for name in ("load_pretrained", "register_release"):
        assert name in hsae_lens.__all__
