"""The ways in which the native path can be compiled here."""

from __future__ import annotations

import subprocess

from finetuned_service.engine.native.build import PORTABLE, WITHOUT_TILES, find_compiler


def _defined() -> str:
    """What the compiler defines for this machine."""
    compiler = find_compiler()
    if compiler is None:
        return ""
    asked = (compiler, "-march=native", "-dM", "-E", "-x", "c++", "/dev/null")
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout


HAS_TILES = "__AMX_BF16__" in _defined()
"""Whether processor and compiler have AMX; without it a build that leaves it out is no other."""
BUILDS = {"native": (), "portable": (PORTABLE,)} | ({"without_tiles": (WITHOUT_TILES,)} if HAS_TILES else {})
"""Flags by name: this machine's own instructions, any machine's, those of a processor without AMX."""
