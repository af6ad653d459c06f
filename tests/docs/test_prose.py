"""The pages use the words of the trade; what checks that finds what it is made for."""

from __future__ import annotations

import pytest
from docs._ext.prose import WORDS, findings, main, plain

from tests.docs.pages import DOCS, PAGES
from tests.harness import ROOT

#: What each rule is for, and what it leaves alone.
FOUND = [
    "The watchdog looks after chords.",
    "Each worker takes a look.",
    "The report tells what was done.",
    "What it finds it mends.",
    "Nobody ends the chord.",
    "Whoever counts the last member claims the chord.",
    "The one who ends the chord died.",
    "It puts off the check.",
    "Chord X ends late.",
    "This value makes no sense.",
    "It waits for ever.",
    "It is seldom sent.",
    "This is raised as chance has it.",
    "This is what is the matter with it.",
    "All members did well.",
    "The chord stands in a ledger.",
    "Another worker is at it.",
    "The chord is left alone.",
]
FINE = [
    "The watchdog checks chords that are due.",
    "Members look the same.",
    "See [the report](how.md#tells) and `tell()`.",
    "A member that does not return is lost; the body receives an error.",
    "It ends with the results that exist.",
]


@pytest.mark.parametrize("sentence", FOUND)
def test_private_words_are_found(sentence):
    assert list(findings(sentence))


@pytest.mark.parametrize("sentence", FINE)
def test_plain_sentences_are_fine(sentence):
    assert [] == list(findings(sentence))


def test_every_rule_says_what_to_write():
    assert all(WORDS.values())


def test_code_is_no_prose_and_lines_keep_their_numbers(tmp_path, capsys):
    text = "`tell`\n\n```python\nlook_after = 'somebody'\n```\n[x](tells.md)\nIt tells.\n"

    assert [(7, "tells", WORDS[r"tell(s|ing)?|told"])] == list(findings(text))
    assert text.count("\n") == plain(text).count("\n")
    path = tmp_path / "page.md"
    path.write_text(text)
    assert 1 == main([str(path)])
    assert f"{path}:7: 'tells'" in capsys.readouterr().out


def test_comments_and_texts_of_python_are_checked(tmp_path, capsys):
    path = tmp_path / "module.py"
    path.write_text('"""It tells.\n\nAnd mends `tell`.\n"""\ntells = look_at("x")  # somebody\n')

    assert 1 == main([str(path)])
    found = [line.split(":")[1:3] for line in capsys.readouterr().out.splitlines()]
    assert [["1", " 'tells'"], ["3", " 'mends'"], ["5", " 'somebody'"]] == found


def test_pages_are_clean(capsys):
    pages = [DOCS / page for page in PAGES if page != "changelog.md"]
    code = main([str(page) for page in (ROOT / "README.md", *pages)])

    assert (0, "") == (code, capsys.readouterr().out)
