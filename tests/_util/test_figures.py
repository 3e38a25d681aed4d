"""What every picture shares."""

from __future__ import annotations

import re

from hsae_lens._util.figures import figure_svg, panel, plain_text


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
