"""Functions of Python's own standard library, each with the docstring that its author wrote: text that nobody made for
a benchmark, at hand wherever this runs, of every length.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

LIBRARY = Path(sysconfig.get_path("stdlib"))
LEFT_OUT = frozenset({"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages"})
"""Tests, applications, and what is installed beside the library."""
LEAST_CHARACTERS = 40
"""Of a docstring."""
QUESTION = "Write the docstring of this function.\n\n"


def documented_functions(library: Path = LIBRARY) -> Iterator[tuple[str, str]]:
    """Questions with a function's source without its docstring, and the docstring; in the order of files and lines."""
    for path in sorted(library.rglob("*.py")):
        if not LEFT_OUT.intersection(path.relative_to(library).parts):
            yield from _of_file(path.read_text(encoding="utf-8", errors="replace"))


def _of_file(source: str) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # the library has files for a compiler to stumble over
        return
    lines = source.splitlines()
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    for node in sorted(functions, key=lambda node: node.lineno):
        told = ast.get_docstring(node)
        if told is None or len(told) < LEAST_CHARACTERS:
            continue
        text = node.body[0]
        end = text.end_lineno or text.lineno
        kept = [*lines[node.lineno - 1 : text.lineno - 1], *lines[end : node.end_lineno]]
        # Functions whose docstring shares a line with other code are left out.
        if not lines[text.lineno - 1][: text.col_offset].strip():
            yield QUESTION + dedent("\n".join(kept)).strip(), told
