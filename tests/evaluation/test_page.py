"""What is said fits the terminal."""

from __future__ import annotations

from edgevla.evaluation.page import folded, indented, ruled, table

HEAD = ["cell", "success", "share", "95 %", "in tolerance", "seam p95 (deg)", "within"]
ROWS = [
    ["reach async 200 ms", "3/4", "75.0 %", "30 to 95", "41 %", "8.2", "2.7"],
    ["slow", "0/4", "", "", "", "", "0.1"],
]


def test_a_table_that_is_too_wide_is_cut_between_columns_and_each_part_begins_with_the_first() -> None:
    whole, cut = ruled(table(HEAD, ROWS, None)), ruled(table(HEAD, ROWS, 60))
    assert len(whole) == 4
    assert max(map(len, whole)) > 60
    assert max(map(len, cut)) <= 60
    assert [line.split("  ")[0] for line in cut if line.startswith("cell")] == ["cell", "cell"]
    assert sorted(" ".join(cut).replace("-", "").split()) == sorted(
        [*" ".join(whole).replace("-", "").split(), "cell", "reach", "async", "200", "ms", "slow"]
    )


def test_a_terminal_narrower_than_any_column_gets_one_column_at_a_time() -> None:
    assert len(ruled(table(HEAD, ROWS, 5))) == 6 * 4 + 5
    assert len(indented(table(HEAD, ROWS, 5))) == 6 * 3 + 5


def test_sentences_are_folded_between_words_and_lines_of_a_table_are_not() -> None:
    sentence = "  reach: safety bent the goal at 16.5 % of the ticks (speed wrist_flex.pos 60)"
    assert folded(sentence, 40).split("\n") == [
        "  reach: safety bent the goal at 16.5 %",
        "    of the ticks (speed wrist_flex.pos",
        "    60)",
    ]
    row = "reach  1/2  50.0 %  9 to 91  0.1 s  4"
    assert folded(f"{row}\n\n{row}", 20) == f"{row}\n\n{row}"
    assert folded(sentence, None) == sentence
