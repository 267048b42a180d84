"""A stranger's clone has all that the tests read."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
MOST_BYTES = 40_000_000


def test_no_test_reads_outside_the_checkout():
    outside = ["parents[2].parent", "parents[1].parent", "/".join(["..", "shared"])]
    readers = [
        path.relative_to(TESTS).as_posix()
        for path in TESTS.rglob("*.py")
        if path != Path(__file__) and any(words in path.read_text() for words in outside)
    ]
    assert readers == []


def test_what_the_tests_read_is_small_and_says_where_it_is_from():
    files = [path for path in (TESTS / "fixtures").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    told = (TESTS / "fixtures" / "README.md").read_text()
    for folder in (path for path in (TESTS / "fixtures").iterdir() if path.is_dir()):
        assert f"`{folder.name}/`" in told
    assert "Licence: Apache-2.0" in told
