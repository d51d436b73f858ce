"""The whole error tree: each refusal has a reason of the contract, an example, and survives the wire."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from finetuned.v1 import error_reason_pb2
from finetuned_service import errors
from finetuned_service.errors import (
    AdapterIncompatible,
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    EtagMismatch,
    FinetunedError,
    Internal,
    InvalidAdapterFiles,
    InvalidData,
    InvalidField,
    InvalidUpload,
    JobStateConflict,
    NotFound,
    OutOfRange,
    PermissionDenied,
    PromptTooLong,
    QualityGateFailed,
    QueueFull,
    QuotaExceeded,
    RequestIdReused,
    RerunRefused,
    ResourceExhausted,
    ResourceInUse,
    StartRefused,
    Status,
    TrainingDiverged,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Violation,
    concrete_errors,
    from_wire,
)

EXAMPLES: dict[type[FinetunedError], FinetunedError] = {
    InvalidField: InvalidField.one("generate.temperature", "is -1.0; allowed: 0.0 to 10.0"),
    InvalidData: InvalidData(
        "2 lines are not usable; nothing was stored",
        metadata={"invalid_rows": "2"},
        violations=[Violation("line 7", "completion is empty"), Violation("line 9", "is not JSON")],
    ),
    InvalidUpload: InvalidUpload(
        "chunk has offset 4096, expected 65536", metadata={"committed_bytes": "65536"}
    ),
    InvalidAdapterFiles: InvalidAdapterFiles(
        "adapter_model.safetensors has 3 bytes; a safetensors file has at least 8",
        violations=[Violation("adapter_config.json: use_dora", "is True; only null, false or empty")],
    ),
    PromptTooLong: PromptTooLong(
        "the prompt has 9000 tokens; the context has 8192",
        metadata={"prompt_tokens": "9000", "context_tokens": "8192"},
    ),
    NotFound: NotFound.resource("tenants/a/jobs/b"),
    AlreadyExists: AlreadyExists(
        "tenants/a/datasets/b exists with other content", metadata={"resource": "tenants/a/datasets/b"}
    ),
    JobStateConflict: JobStateConflict("the job is finished", metadata={"state": "SUCCEEDED"}),
    RequestIdReused: RequestIdReused("request id 'x' came before with another body"),
    AdapterIncompatible: AdapterIncompatible(
        "the adapter belongs to another base",
        metadata={
            "adapter_base_digest": "sha256:aa",
            "server_base_digest": "sha256:bb",
            "job": "tenants/a/jobs/c",
        },
    ),
    RerunRefused: RerunRefused(
        "the dataset has changed",
        metadata={
            "dataset": "tenants/a/datasets/b",
            "recorded_digest": "sha256:aa",
            "found_digest": "sha256:bb",
        },
    ),
    ResourceInUse: ResourceInUse("a job uses it", metadata={"used_by": "tenants/a/jobs/b"}),
    QualityGateFailed: QualityGateFailed(
        "perplexity rose by 28%; allowed: 5%",
        metadata={"perplexity_rise": "0.28", "max_quality_drop": "0.05"},
    ),
    TrainingDiverged: TrainingDiverged(
        "at step 12 the loss was nan",
        metadata={"step": "12", "last_good_step": "10", "continue_from": "tenants/a/jobs/b"},
    ),
    StartRefused: StartRefused("the data directory belongs to a newer version"),
    EtagMismatch: EtagMismatch("the alias moved", metadata={"current_etag": "3"}),
    OutOfRange: OutOfRange("events before 120 are gone", metadata={"first_kept": "120"}),
    ResourceExhausted: ResourceExhausted("the disk is full", metadata={"subject": "server"}),
    QuotaExceeded: QuotaExceeded(
        "datasets of tenants/a: 10 are there; allowed: 10",
        metadata={"limit": "datasets", "subject": "tenants/a", "used": "10", "allowed": "10"},
        retry_after_seconds=60,
    ),
    QueueFull: QueueFull("256 requests wait", metadata={"limit": "256"}, retry_after_seconds=0.5),
    Unimplemented: Unimplemented.feature("METHOD_IA3", "METHOD_LORA"),
    Unavailable: Unavailable("the engine restarts", retry_after_seconds=2.0),
    Unauthenticated: Unauthenticated("the call has no API key", metadata={"problem": "MISSING"}),
    PermissionDenied: PermissionDenied(
        "bases/a is shared by all tenants", metadata={"role": "user", "needed_role": "admin"}
    ),
    DeadlineExceeded: DeadlineExceeded(
        "a place in the batch is about 12.0 s away and the call's deadline 2.0 s",
        metadata={"stage": "ESTIMATE", "estimated_wait_seconds": "12.000", "remaining_seconds": "2.000"},
    ),
    Cancelled: Cancelled("the caller went away"),
    Internal: Internal.opaque(),
}

ALL = sorted(concrete_errors(), key=lambda cls: cls.__name__)


def test_the_table_of_examples_covers_the_tree() -> None:
    assert set(ALL) == set(EXAMPLES)
    assert all(type(example) is cls for cls, example in EXAMPLES.items())


def test_reasons_are_unique_and_those_of_the_contract() -> None:
    reasons = [cls.reason for cls in ALL]
    assert len(reasons) == len(set(reasons))
    names = error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_name
    contract = {name.removeprefix("ERROR_REASON_") for name in names} - {"UNSPECIFIED"}
    assert contract == set(reasons)


def test_branches_without_a_reason_are_never_raised() -> None:
    """Their reason would be the root's, INTERNAL_FAULT, with a status that is not INTERNAL."""
    branches = {"InvalidArgument", "FailedPrecondition", "Aborted"}
    source = "\n".join(
        path.read_text() for path in Path(errors.__file__).parent.rglob("*.py") if path.name != "errors.py"
    )
    raised = set(re.findall(r"raise (\w+)[.(]", source))
    assert not raised & branches
    assert not any("reason" in getattr(errors, name).__dict__ for name in branches)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_status_is_a_grpc_status(cls: type[FinetunedError]) -> None:
    import grpc

    assert cls.status in {code.name for code in grpc.StatusCode}
    assert (cls.status is Status.INTERNAL) == (cls is Internal)


def facts(error: FinetunedError) -> dict[str, Any]:
    return {
        "class": type(error),
        "message": error.message,
        "metadata": error.metadata,
        "violations": error.violations,
        "retry_after_seconds": error.retry_after_seconds,
        "text": str(error),
    }


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_the_wire_restores_the_error(cls: type[FinetunedError]) -> None:
    error = EXAMPLES[cls]
    through_json = json.loads(json.dumps(error.to_wire()))
    assert facts(error) == facts(from_wire(through_json))


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_pickle_restores_the_error(cls: type[FinetunedError]) -> None:
    error = EXAMPLES[cls]
    assert facts(error) == facts(pickle.loads(pickle.dumps(error)))


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_the_contract_documents_an_example(cls: type[FinetunedError]) -> None:
    proto = Path(__file__).parents[2] / "protos/finetuned/v1/error_reason.proto"
    comment = re.search(
        rf"// ERROR_REASON_{cls.reason}: (.+?)\n  ERROR_REASON_", proto.read_text(), re.DOTALL
    )
    assert comment is not None
    text = re.sub(r"\s*\n\s*//\s*", " ", comment.group(1))
    assert cls.status in text
    assert f'{{"reason": "{cls.reason}"' in text
    # What the contract's example promises in the metadata, the table's example carries.
    promised = re.search(r'"metadata": (\{.*?\})', text)
    if promised is not None:
        assert set(json.loads(promised.group(1))) == set(EXAMPLES[cls].metadata)


def test_the_drawing_shows_every_class() -> None:
    drawing = errors.__doc__ or ""
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, FinetunedError)
    }
    assert classes == {name for name in re.findall(r"\b[A-Z]\w+\b", drawing) if name in classes}


def test_at_most_twenty_violations_are_kept() -> None:
    error = InvalidData("many", violations=[Violation(f"line {n}", "bad") for n in range(50)])
    assert [f"line {n}" for n in range(20)] == [violation.field for violation in error.violations]


def test_an_unknown_reason_becomes_internal() -> None:
    error = from_wire({"reason": "FROM_THE_FUTURE", "message": "later"})
    assert facts(error) == facts(Internal("later"))


def test_opaque_faults_differ_and_tell_nothing_else() -> None:
    one, other = Internal.opaque(), Internal.opaque()
    assert one.metadata["fault_id"] != other.metadata["fault_id"]
    assert re.fullmatch(
        r"internal fault [0-9a-f]{12}; the server's log has the cause under this id", str(one)
    )


def test_one_field_makes_message_and_violation() -> None:
    error = InvalidField.one("train.lora.rank", "is 0; allowed: 1 to 256")
    assert error.message == "train.lora.rank: is 0; allowed: 1 to 256"
    assert error.violations == (Violation("train.lora.rank", "is 0; allowed: 1 to 256"),)
