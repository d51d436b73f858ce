"""The keys file: read at start and again whenever it changes; edited by `finetuned keys`.

One file is the only place of keys, written by the command line in a data directory or mounted from a
Kubernetes Secret, so there is one format, one parser and one way to make a change known.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from finetuned_service.errors import FinetunedError, StartRefused, Unauthenticated
from finetuned_service.storage.files import write_atomically
from finetuned_service.telemetry.logs import logger
from finetuned_service.tenancy.authenticator import Presented
from finetuned_service.tenancy.caller import Caller
from finetuned_service.tenancy.keys import ApiKeys

KEYS_FILE = "keys.json"
"""Its name in a data directory."""
MAX_FILE_BYTES = 8 * 1024 * 1024
_LOG = logger("tenancy")
_REMEDY = "'finetuned keys' writes such files; restore the last good one"


def read_keys(path: Path) -> ApiKeys:
    """The keys of a file.

    Raises:
        StartRefused: it cannot be read, others may write to it, or it holds what is not allowed.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IWOTH:
                raise StartRefused(f"keys file {path} can be written by everybody; run 'chmod o-w {path}'")
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StartRefused(
            f"keys file {path} cannot be read: {error.strerror}; 'finetuned keys create' makes one"
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise StartRefused(
            f"keys file {path} has more than {MAX_FILE_BYTES} bytes; revoke keys, or split them"
        )
    try:
        return ApiKeys.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "its content"
        raise StartRefused(f"keys file {path} is malformed: {place}: {first['msg']}. {_REMEDY}") from error


def edit_keys(path: Path, change: Callable[[ApiKeys], ApiKeys]) -> None:
    """Change the file as a whole, one editor at a time; a file that is not there yet holds no keys.

    Raises:
        StartRefused: the file is there and cannot be used, or cannot be written.
        FinetunedError: from `change`; the file is left as it is.
    """
    try:
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            changed = change(read_keys(path) if path.exists() else ApiKeys())
            write_atomically(path, changed.model_dump_json(indent=1).encode() + b"\n")
    except OSError as error:
        raise StartRefused(
            f"keys file {path} cannot be written: {error.strerror}; a mounted Secret is changed by applying "
            "another: edit a copy with --keys-file"
        ) from error


class KeysFile:
    """Authenticates by API keys of a file.

    Every call looks whether the file has changed (one `stat`), so that a revocation holds from the next call
    on. A changed file that cannot be used is logged and leaves the keys as they were: half a Secret locks
    nobody out and lets nobody in.
    """

    def __init__(self, path: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Raises StartRefused: the file cannot be used."""
        self._path = path
        self._now = now
        self._seen = _identity(path)
        self._keys = read_keys(path)

    @property
    def usable(self) -> int:
        """How many keys are accepted now."""
        return sum(
            not key.expired(self._now()) and key.tenant not in self._keys.deleted_tenants
            for key in self._keys.keys
        )

    async def authenticate(self, presented: Presented) -> Caller:
        """The caller of a `Bearer ftk_…` authorization.

        Raises:
            Unauthenticated: there is none, or not one that is accepted.
        """
        self._refresh()
        return self._keys.caller(_bearer(presented), self._now())

    def _refresh(self) -> None:
        found = _identity(self._path)
        if found == self._seen:
            return
        self._seen = found
        try:
            self._keys = read_keys(self._path)
        except FinetunedError as error:
            _LOG.error("keys_not_reloaded", problem=error.message, keys=len(self._keys.keys))
        else:
            _LOG.info("keys_reloaded", keys=len(self._keys.keys))


def _bearer(presented: Presented) -> str:
    match presented.authorizations:
        case ():
            raise Unauthenticated(
                "the call has no API key; set FINETUNED_API_KEY, or send 'authorization: Bearer ftk_…'",
                metadata={"problem": "MISSING"},
            )
        case (one,) if one[:7].lower() == "bearer ":
            return one[7:].strip()
        case _:
            raise Unauthenticated(
                "the call's authorization is not understood; send one, 'Bearer ftk_…'",
                metadata={"problem": "MALFORMED"},
            )


def _identity(path: Path) -> tuple[int, ...]:
    """Differs when the file does: both a rename and the links of a mounted Secret give another inode."""
    with suppress(OSError):
        found = path.stat()
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
    return ()
