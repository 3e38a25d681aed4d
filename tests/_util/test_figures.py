"""What every picture shares."""

from __future__ import annotations

import re

import pandas as pd

from hsae_lens._util.figures import COLOURS, each_curve, figure_svg, panel, plain_text


def test_any_text_is_drawn_as_it_is() -> None:
    assert plain_text("_a$b$") == r" _a\$b\$"
    assert plain_text("a\nb\x00\tc") == "a↵b\\x00 c"
    long = plain_text("/home/me/" + 30 * "long/" + "layer-12", 30)
    assert (len(long), long[:9], long[-8:]) == (30, "/home/me/", "layer-12")


def test_pictures_of_one_page_have_no_id_in_common() -> None:
    def ids(title: str) -> set[str]:
        figure, axes = panel()
        axes.set_title(title)
        return set(re.findall(r'\bid="([^"]+)"', figure_svg(figure)))

    first, second = ids("a"), ids("b")
    assert first
    assert not first & second


def test_curves_of_one_name_share_a_colour_and_rules_have_lines_of_their_own() -> None:
    table = pd.DataFrame({"sae": ["$b", "$b", "a", "$b"], "k": [1, 2, 3, 4]})
    plain = [(style["color"], style["linestyle"], style["label"]) for style, _ in each_curve(table)]
    assert plain == [(COLOURS[0], "-", r"\$b"), (COLOURS[1], "-", "a")]
    table["rule"] = ["fixed", "mean", "fixed", "error"]
    drawn = {style["label"]: (style, rows["k"].tolist()) for style, rows in each_curve(table)}
    assert {label: k for label, (_, k) in drawn.items()} == {
        r"\$b": [1], r"\$b, on average": [2], r"\$b, by error": [4], "a": [3],
    }  # fmt: skip
    ours = [style for label, (style, _) in drawn.items() if "b" in label]
    assert {style["color"] for style in ours[:3]} == {COLOURS[0]}
    assert len({style["linestyle"] for style in ours[:3]}) == 3
