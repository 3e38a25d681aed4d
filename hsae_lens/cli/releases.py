"""``hsae releases``, ``hsae export`` and ``hsae publish``."""

from __future__ import annotations

import argparse
from typing import Any

from hsae_lens.cli.flags import add_command


def add_sharing(commands: Any) -> None:
    add_command(
        commands,
        "releases",
        _releases,
        help="list the SAEs that load by name, with their frontiers",
        description=(
            "Lists the releases in the package and in your own file (HSAE_RELEASES, else "
            "~/.config/hsae_lens/releases.yaml). Downloads nothing."
        ),
    )

    saved = "a folder with a saved SAE, or RELEASE/SAE_ID"
    export = add_command(
        commands,
        "export",
        _export,
        help="write a stock SAELens TopK SAE at one budget, which loads without this package",
    )
    export.add_argument("path", help=saved)
    export.add_argument("--k", type=int, required=True, help="the budget")
    export.add_argument("--out", required=True, help="folder to write")
    export.add_argument(
        "--overwrite", action="store_true", help="replace another SAE that is in that folder"
    )

    publish = add_command(
        commands,
        "publish",
        _publish,
        help="upload an SAE to the Hugging Face hub, with a card and a release entry",
    )
    publish.add_argument("path", help=saved)
    publish.add_argument("repo", help="the repository, owner/name; made if it does not exist")
    publish.add_argument("--sae-id", help="its folder and id there (default: its hook's name)")
    publish.add_argument("--release", help="name in the entry to paste (default: the repository's)")
    publish.add_argument("--dry-run", action="store_true", help="show the card, upload nothing")
    publish.add_argument(
        "--overwrite", action="store_true", help="replace another SAE that is there under that id"
    )


def _releases(_: argparse.Namespace) -> None:
    from hsae_lens.releases.directory import read_user_file, user_file
    from hsae_lens.releases.listing import list_releases

    read_user_file()
    print(list_releases())
    print(f"\nYour own go into {user_file()}.")


def _export(parsed: argparse.Namespace) -> None:
    from hsae_lens.releases.export import export_sae

    out = export_sae(parsed.path, parsed.k, parsed.out, parsed.overwrite)
    print(f"Wrote {out}, a TopK SAE with k={parsed.k}: SAE.load_from_disk({str(out)!r}).")


def _publish(parsed: argparse.Namespace) -> None:
    from hsae_lens.releases.directory import user_file
    from hsae_lens.releases.publish import publish_sae

    card, entry = publish_sae(
        parsed.path,
        parsed.repo,
        parsed.sae_id,
        parsed.release,
        dry_run=parsed.dry_run,
        overwrite=parsed.overwrite,
    )
    done = f"{card}\nNot uploaded (dry run)." if parsed.dry_run else f"Uploaded to {parsed.repo}."
    print(f"{done} To load it by name, put this into {user_file()}:\n\n{entry}")
