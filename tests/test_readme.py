"""The README's code runs as written, in order, with the run made shorter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(snippets) == 5
    assert "500_000" in snippets[0]
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet.replace("500_000", "8_192"), namespace)
    table = namespace["table"]
    assert list(table["k"]) == [1, 8, 64]
    assert table["explained_variance"].is_monotonic_increasing
    assert namespace["stack"].shape == (2, 10, 576)
    assert set(namespace["curve"]["k"]) == {8, 32, 128}


def test_the_shell_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_named_files_exist() -> None:
    for name in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`([\w/]+\.py|\w+/)`", README):
        places = (ROOT / "hsae_lens", ROOT / "hsae_lens" / "kernels", ROOT)
        assert any((place / name).exists() for place in places), name
