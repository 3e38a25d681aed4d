"""Dashboards of latents as one self-contained page. It computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from hsae_lens._util.figures import histogram_svg
from hsae_lens._util.html import write_page
from hsae_lens.evaluation.latents.dashboards import Context, Dashboard


def write_latents(dashboards: Sequence[Dashboard], out: str | Path, sae: str, text: str) -> Path:
    """A page with a section for each latent.

    Args:
        sae, text: which SAE, and on which text, in words.
    """
    head = (
        f"<h1>Latents of {escape(sae)}</h1><p>Contexts are the strongest ones in {escape(text)}, "
        "one from a sequence; the darker a token, the more the latent fires. Its rank is its place "
        "among the token’s latents, so it is part of the code at budgets from there on. Logits are "
        "what its decoder row does on its own, through the final norm and the unembedding.</p>"
    )
    links = " ".join(f'<a href="#l{d.latent}">{d.latent}</a>' for d in dashboards)
    body = "\n".join([head, f"<p>{links}</p>", *(_section(d) for d in dashboards)])
    return write_page(f"Latents of {sae}", body, out)


def _section(dashboard: Dashboard) -> str:
    if not dashboard.contexts:
        return (
            f'<h2 id="l{dashboard.latent}">Latent {dashboard.latent}</h2>'
            "<p>It does not fire in this text.</p>" + _promoted_words(dashboard)
        )
    ranks = [f"rank {low}–{high}" for low, high in dashboard.ranks]
    contexts = "".join(_context_line(context) for context in dashboard.contexts)
    return (
        f'<h2 id="l{dashboard.latent}">Latent {dashboard.latent}</h2>'
        f"<p>Fires on {dashboard.density:.2%} of the tokens, at rank {dashboard.mean_rank:.0f} on "
        "average.</p>"
        f'<div class="figures">{histogram_svg(dashboard.edges, dashboard.histogram, ranks)}'
        f"<div>{_promoted_words(dashboard)}</div></div>"
        f'<ol class="contexts">{contexts}</ol>'
    )


def _promoted_words(dashboard: Dashboard) -> str:
    if not dashboard.promoted:
        return ""
    rows = "".join(
        f"<tr><td>{escape(repr(up))}</td><td>{gain:+.2f}</td>"
        f"<td>{escape(repr(down))}</td><td>{loss:+.2f}</td></tr>"
        for (up, gain), (down, loss) in zip(dashboard.promoted, dashboard.suppressed, strict=True)
    )
    return (
        "<table><tr><th>Promotes</th><th></th><th>Suppresses</th><th></th></tr>" + rows + "</table>"
    )


def _context_line(context: Context) -> str:
    largest = max(context.values)
    marked = "".join(
        f'<span style="background: rgba(0, 114, 178, {0.55 * value / largest:.2f})">'
        f"{_visible_text(token)}</span>"
        if value > 0
        else _visible_text(token)
        for token, value in zip(context.tokens, context.values, strict=True)
    )
    return f"<li>{marked} <small>{largest:.1f}, rank {context.rank}</small></li>"


def _visible_text(token: str) -> str:
    return escape(token.replace("\n", "↵"))
