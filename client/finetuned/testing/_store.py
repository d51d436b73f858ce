"""What the fake server holds: plain dictionaries of the contract's own messages, behind one lock."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias, TypeVar, final

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from finetuned.errors import FinetunedError, InvalidField, NotFound, RequestIdReused
from finetuned.v1 import adapter_service_pb2, base_service_pb2, common_pb2, dataset_service_pb2, job_pb2

Item = TypeVar("Item")
Answer = TypeVar("Answer", bound=Message)

BASE = "bases/fake"
BASE_DIGEST = "sha256:" + "ba5e" * 16
REPLICA = "fake-0"
CONTEXT_TOKENS = 2048
MAX_BATCH_REQUESTS = 1000
MAX_SAMPLES = 16
METHODS = ("lora", "qlora", "ia3", "bottleneck", "head", "layers", "full")
"""Of training for text generation, as the contract names their fields."""
MAX_REPLIES = 64
MAX_CONSTRAINT_BYTES = 65_536

_ID = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_START_TIME = datetime(2026, 1, 1, tzinfo=UTC)


@final
@dataclass(slots=True)
class Upload:
    dataset: str
    data: bytearray = field(default_factory=bytearray)


Happening: TypeAlias = Callable[[job_pb2.Job, job_pb2.JobEvent], None]
"""Fills in the event and changes the job accordingly."""


@final
@dataclass(slots=True)
class RunningJob:
    """A job with the events that are still to happen."""

    job: job_pb2.Job
    events: list[job_pb2.JobEvent]
    to_come: list[Happening]
    first_kept: int = 1
    paused: list[Happening] = field(default_factory=list[Happening])
    """What is to come once the job is resumed."""


@final
@dataclass(slots=True)
class AdapterState:
    adapter: adapter_service_pb2.Adapter
    versions: dict[int, adapter_service_pb2.AdapterVersion]
    aliases: dict[str, adapter_service_pb2.Alias]
    files: dict[int, dict[str, bytes]]
    last_version: int = 0


@final
@dataclass(slots=True)
class Store:
    lock: threading.RLock = field(default_factory=threading.RLock)
    datasets: dict[str, dataset_service_pb2.Dataset] = field(
        default_factory=dict[str, dataset_service_pb2.Dataset]
    )
    uploads: dict[str, Upload] = field(default_factory=dict[str, Upload])
    jobs: dict[str, RunningJob] = field(default_factory=dict[str, RunningJob])
    adapters: dict[str, AdapterState] = field(default_factory=dict[str, AdapterState])
    bases: dict[str, base_service_pb2.Base] = field(default_factory=dict[str, base_service_pb2.Base])
    job_errors: list[FinetunedError] = field(default_factory=list[FinetunedError])
    methods_left_open: set[str] = field(default_factory=set[str])
    """TrainJobs that named none; a rerun on another base chooses again."""
    jobs_made: int = 0
    resident: str = BASE
    """The name of the base that the server holds."""
    _answers: dict[tuple[str, str], tuple[bytes, Message]] = field(
        default_factory=dict[tuple[str, str], tuple[bytes, Message]]
    )
    _ticks: int = 0

    def __post_init__(self) -> None:
        self.hold(BASE, BASE_DIGEST)

    def hold(self, name: str, digest: str) -> None:
        """Be a server that was started with this base."""
        self.resident = name
        for base in self.bases.values():
            base.resident = False
        if name in self.bases:
            self.bases[name].resident = True
            return
        self.bases[name] = base_service_pb2.Base(
            name=name,
            digest=digest,
            root_digest=digest,
            architecture="EchoForCausalLM",
            weight_format=common_pb2.WEIGHT_FORMAT_BF16,
            parameters=1000,
            weight_bytes=2000,
            context_tokens=CONTEXT_TOKENS,
            source="finetuned.testing",
            resident=True,
            create_time=self.now(),
            family=common_pb2.MODEL_FAMILY_DECODER,
        )

    def now(self) -> Timestamp:
        """A clock that moves one second with every look, so that a test sees the same times in every run."""
        self._ticks += 1
        found = Timestamp()
        found.FromDatetime(_START_TIME + timedelta(seconds=self._ticks))
        return found

    def once(self, parent: str, request_id: str, request: Message, make: Callable[[], Answer]) -> Answer:
        """`make()`, or what it made when the request came before.

        Raises:
            RequestIdReused: the request id came with another body.
        """
        if not request_id:
            return make()
        body = request.SerializeToString(deterministic=True)
        known = self._answers.get((parent, request_id))
        if known is None:
            answer = make()
            self._answers[parent, request_id] = (body, answer)
            return answer
        if known[0] != body:
            raise RequestIdReused(f"request_id {request_id!r} came before with another body; use a new one")
        return known[1]  # pyright: ignore[reportReturnType]  # equal bodies are of one RPC, so is the answer


def check_name(name: str, pattern: str, field_name: str = "name") -> tuple[str, ...]:
    """The ids in `name`; `{}` in the pattern stands for one.

    Raises:
        InvalidField: it has another form.
    """
    found = re.fullmatch(pattern.replace("{}", f"({_ID})"), name)
    if found is None:
        raise InvalidField.one(field_name, f"is {name!r}; expected {pattern.replace('{}', '{id}')}")
    return found.groups()


def lookup(items: dict[str, Item], name: str) -> Item:
    found = items.get(name)
    if found is None:
        raise NotFound(f"{name!r} does not exist or is not yours", metadata={"resource": name})
    return found


def page(items: Sequence[Item], request: Any) -> tuple[Sequence[Item], str]:
    """A page of `items` and the token of the next one: the number of items before it, and what list it is of."""
    if not 0 <= request.page_size <= 1000:
        raise InvalidField.one("page_size", f"is {request.page_size}; allowed: 0 to 1000")
    listed = type(request)()
    listed.CopyFrom(request)
    for name in ("page_size", "page_token"):
        listed.ClearField(name)
    body = request.DESCRIPTOR.full_name.encode() + listed.SerializeToString(deterministic=True)
    mark = hashlib.sha256(body).hexdigest()[:16]
    found, _, start = request.page_token.partition(".")
    if request.page_token and (found != mark or not start.isdecimal()):
        raise InvalidField.one("page_token", "is not a next_page_token of this list; leave it empty")
    end = int(start or 0) + (request.page_size or 50)
    return items[int(start or 0) : end], f"{mark}.{end}" if end < len(items) else ""
