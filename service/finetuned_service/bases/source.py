"""Where a base comes from: what `base_source` and `finetuned base add` understand.

/models/x, ./x, file:///models/x   a directory of this machine
packaged:smollm2-135m-instruct     a base in a Python package
hf://org/name[@revision]           a model of a hub (HF_ENDPOINT, HF_TOKEN)
s3://bucket/prefix and its like    any file system that fsspec knows
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, final
from urllib.parse import unquote, urlsplit

from finetuned_service.bases.manifest import BaseManifest
from finetuned_service.bases.packaged import PACKAGED_BASES, PackagedBase, packaged_base
from finetuned_service.errors import AlreadyExists, InvalidField
from finetuned_service.names import check_id

ALLOWED = (
    "a directory, file:///directory, packaged:NAME, hf://org/name[@revision], or an URL of fsspec such as "
    "s3://bucket/prefix"
)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):(.*)", re.DOTALL)


@final
@dataclass(frozen=True, slots=True)
class DirectorySource:
    """Read where it lies."""

    path: Path

    @property
    def origin(self) -> str:
        # The name alone: manifests are told to callers, paths of the server are not.
        return f"directory {self.path.resolve().name!r}"


@final
@dataclass(frozen=True, slots=True)
class PackagedSource:
    """Restored from the file in an installed Python package."""

    base: PackagedBase

    @property
    def origin(self) -> str:
        return f"{self.base.requirement} (Python package), {Path(self.base.weights_path).name}"


@final
@dataclass(frozen=True, slots=True)
class HubSource:
    """Fetched from a hub that speaks Hugging Face's protocol."""

    repository: str
    """`org/name`."""
    revision: str
    """A branch, a tag or a commit."""

    @property
    def origin(self) -> str:
        return f"hf://{self.repository}@{self.revision}"


@final
@dataclass(frozen=True, slots=True)
class RemoteSource:
    """Fetched through fsspec."""

    url: str
    """Without a slash at its end."""

    @property
    def origin(self) -> str:
        return self.url


FetchedSource: TypeAlias = HubSource | RemoteSource
BaseSource: TypeAlias = DirectorySource | PackagedSource | FetchedSource


def parse_source(text: str) -> BaseSource:
    """Read a source; the name of a packaged base alone means that one.

    Raises:
        InvalidField: if it is none; with what is allowed.
    """
    if text in PACKAGED_BASES:
        return PackagedSource(PACKAGED_BASES[text])
    found = _SCHEME.fullmatch(text)
    if found is None:
        if not text:
            raise InvalidField.one("source", f"is empty; allowed: {ALLOWED}")
        return DirectorySource(Path(text))
    scheme, rest = found.groups()
    if scheme == "packaged":
        return PackagedSource(packaged_base(rest))
    parts = urlsplit(text)
    if "@" in parts.netloc and scheme != "hf":
        # Not shown: what stands before the '@' may be a key.
        raise InvalidField.one(
            "source",
            f"is an URL of {scheme!r} with credentials in it, and the base's record would keep them; give "
            "them in the environment, as the file system's own library reads them",
        )
    if parts.query or parts.fragment or not rest.startswith("//"):
        raise InvalidField.one("source", f"is {text!r}; allowed: {ALLOWED}")
    if scheme == "file":
        if parts.netloc not in {"", "localhost"}:
            raise InvalidField.one("source", f"is {text!r}; a file URL has three slashes: file:///directory")
        return DirectorySource(Path(unquote(parts.path)))
    return _hub(text, rest) if scheme == "hf" else RemoteSource(text.rstrip("/"))


def _hub(text: str, rest: str) -> HubSource:
    # A revision may hold slashes: refs/pr/3.
    word = r"[A-Za-z0-9][A-Za-z0-9._-]*"
    found = re.fullmatch(rf"//({word}/{word})(?:@([A-Za-z0-9._/-]+))?/?", rest)
    if found is None:
        raise InvalidField.one("source", f"is {text!r}; expected hf://org/name or hf://org/name@revision")
    return HubSource(found.group(1), found.group(2) or "main")


def refuse_other(found: BaseManifest, source: BaseSource | None, expected_digest: str) -> None:
    """Refuse a base that is there already and is not the one that is asked for.

    Raises:
        AlreadyExists: its digest is another, or (where no digest says that it is the same) its source.
    """
    if expected_digest:
        if found.digest != expected_digest:
            raise AlreadyExists(
                f"{found.name} exists with the digest {found.digest}; expected {expected_digest}. Give the base "
                "of that digest another name, delete the old one, or correct the digest",
                metadata={"resource": found.name},
            )
    elif source is not None and found.source != source.origin:
        raise AlreadyExists(
            f"{found.name} exists and was made from {found.source}, not from {source.origin}; delete it, or "
            "choose another name",
            metadata={"resource": found.name},
        )


def default_name(source: BaseSource) -> str:
    """The name that a base of this source gets when none is given.

    Raises:
        InvalidField: if its last part cannot be one.
    """
    match source:
        case PackagedSource(base):
            return base.id
        case DirectorySource(path):
            last = path.resolve().name
        case HubSource(repository):
            last = repository
        case RemoteSource(url):
            last = url
    return check_id(re.sub(r"[_.]", "-", last.rsplit("/", 1)[-1].lower()), "name")
