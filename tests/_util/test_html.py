"""Tables in pages."""

from __future__ import annotations

import pandas as pd

from hsae_lens._util.html import table_html


def test_names_and_explanations_are_shown_to_the_end() -> None:
    long = "/home/me/" + 30 * "long/" + "layer-12"
    assert long in table_html(pd.DataFrame({"sae": [long]}))
