"""The house's rules: imports point downwards (docs/house.md), heavy libraries stay in their rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import finetuned
import finetuned_service
import pytest

SERVICE = Path(finetuned_service.__file__).parent
CLIENT = Path(finetuned.__file__).parent
ROOT = Path(__file__).resolve().parents[2]

FLOORS = (
    ("__main__",),
    ("app",),
    ("worker",),
    ("rpc",),
    ("retention",),
    ("serving", "training", "quantization"),
    ("metrics",),
    ("jobs",),
    ("engine",),
    ("adapters", "datasets"),
    ("bases",),
    ("text",),
    ("tenancy",),
    ("storage",),
    ("telemetry", "settings"),
    ("names", "digests", "watching"),
    ("errors", "vocabulary", "__init__"),
    ("_version",),
)
"""From the roof down; rooms of one floor do not import each other."""

FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "accelerate"}
HEAVY_ROOMS = {"engine", "training", "quantization"}
HEAVY_MODULES = {
    f"bases/{module}.py"
    for module in ("conv1d", "convert", "device", "int8", "load", "nf4", "product", "resident")
}


def modules(root: Path) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(root.rglob("*.py")):
        yield str(path.relative_to(root)), ast.parse(path.read_text())


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def room_of(path: str) -> str:
    return path.split("/", maxsplit=1)[0].removesuffix(".py")


def test_imports_point_downwards() -> None:
    upward = []
    for path, tree in modules(SERVICE):
        room = room_of(path)
        for module in imports(tree):
            parts = module.split(".")
            if parts[0] != "finetuned_service" or path == "__main__.py":
                continue
            target = parts[1] if len(parts) > 1 else "__init__"
            if target != room and FLOOR_OF[target] <= FLOOR_OF[room]:
                upward.append(f"{path} imports {module}")
    assert upward == []


def test_heavy_libraries_stay_in_their_rooms() -> None:
    strays = [
        f"{path} imports {module}"
        for path, tree in modules(SERVICE)
        for module in imports(tree)
        if module.split(".")[0] in HEAVY and room_of(path) not in HEAVY_ROOMS and path not in HEAVY_MODULES
    ]
    assert strays == []


def test_generated_types_stop_at_the_rpc_room() -> None:
    strays = [
        f"{path} imports {module}"
        for path, tree in modules(SERVICE)
        for module in imports(tree)
        if module.startswith("finetuned.v1") and room_of(path) != "rpc"
    ]
    assert strays == []


def test_client_never_imports_the_service() -> None:
    strays = [
        f"{path} imports {module}"
        for path, tree in modules(CLIENT)
        for module in imports(tree)
        if module.split(".")[0] in HEAVY
        or (module.split(".")[0] == "finetuned_service" and not path.startswith("cli/"))
    ]
    assert strays == []


@pytest.mark.parametrize("module", ["finetuned_service.app", "finetuned_service.engine.client"])
def test_rpc_process_never_loads_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit(any(name in sys.modules for name in {sorted(HEAVY)!r}))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_links_lead_to_what_the_project_has() -> None:
    """A link to a place of somebody's machine once kept `make` from building an environment there."""
    listed = subprocess.run(
        ["git", "ls-files", "--stage", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    links = [ROOT / line.partition("\t")[2] for line in listed.split("\0") if line.startswith("120000")]
    assert links, "the chart links to the alert rules"
    assert [str(link) for link in links if not link.resolve().is_relative_to(ROOT) or not link.exists()] == []
