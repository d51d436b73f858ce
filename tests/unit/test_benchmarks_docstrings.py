"""Real rows of uneven length: what is taken of a library's functions."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

# benchmarks/ is run from the repository's root, not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.training.docstrings import QUESTION, documented_functions

SOURCE = '''
class Shelf:
    """A class is no function, however long its docstring is."""

    @property
    async def widths(self, unit="cm"):
        """Widths of all boards of this shelf, from the
        lowest one up.
        """
        # In the order of the list.
        return self._widths[unit]

    def short(self):
        """Too short."""

    def on_one_line(self): """A docstring beside its function's name is left alone."""

    def on_its_last_line(
        self): """One beside the end of what a function is given, too."""

def outer():
    def inner():
        """What stands within another function counts, too."""
        return 1
    return inner
'''


def test_a_row_is_a_function_without_its_docstring_and_the_docstring(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    for path in ("shelf.py", "test/left_out.py"):
        (tmp_path / path).write_text(SOURCE)
    (tmp_path / "broken.py").write_text("def (:\n")
    assert list(documented_functions(tmp_path)) == [
        (
            f"""{QUESTION}async def widths(self, unit="cm"):
    # In the order of the list.
    return self._widths[unit]""",
            "Widths of all boards of this shelf, from the\nlowest one up.",
        ),
        (f"{QUESTION}def inner():\n    return 1", "What stands within another function counts, too."),
    ]


def test_the_library_has_enough_of_every_length() -> None:
    found = list(islice(documented_functions(), 1000))
    assert len(found) == 1000
    lengths = sorted(len(question) + len(docstring) for question, docstring in found)
    assert lengths[100] < 300
    assert lengths[900] > 1000
    assert found == list(islice(documented_functions(), 1000))
