"""Leaving a call early ends it on the server; the server here holds its calls until they are cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, Self

import grpc
import pytest
from both_clients import open_client, write_rows
from finetuned import AsyncClient
from finetuned.errors import DeadlineExceeded
from finetuned.v1 import dataset_service_pb2, serving_service_pb2

WAIT_SECONDS = 30.0
"""A bound for a test that hangs; none waits for it."""


class HeldServer:
    """Answers ServeAdapter with `started` and then nothing, UploadDataset not at all."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.cancelled = threading.Event()
        serve = grpc.unary_stream_rpc_method_handler(
            self._serve,
            serving_service_pb2.ServeAdapterRequest.FromString,
            serving_service_pb2.ServeAdapterResponse.SerializeToString,
        )
        receive = grpc.stream_unary_rpc_method_handler(
            self._receive,
            dataset_service_pb2.UploadDatasetRequest.FromString,
            dataset_service_pb2.UploadDatasetResponse.SerializeToString,
        )
        services = (
            grpc.method_handlers_generic_handler("finetuned.v1.ServingService", {"ServeAdapter": serve}),
            grpc.method_handlers_generic_handler("finetuned.v1.DatasetService", {"UploadDataset": receive}),
        )
        self._server = grpc.server(ThreadPoolExecutor(max_workers=4), handlers=services)
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def _serve(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        context.add_callback(self.cancelled.set)  # a cancelled generator is not resumed after its yield
        started = serving_service_pb2.Started()
        yield serving_service_pb2.ServeAdapterResponse(started=started)
        self._hold(context)

    def _receive(self, requests: Iterator[Any], context: grpc.ServicerContext) -> NoReturn:
        context.add_callback(self.cancelled.set)
        for _ in requests:
            pass
        self._hold(context)

    def _hold(self, context: grpc.ServicerContext) -> NoReturn:
        self.reached.set()
        self.cancelled.wait(WAIT_SECONDS)
        context.abort(grpc.StatusCode.CANCELLED, "the client went away")

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def held() -> Iterator[HeldServer]:
    with HeldServer() as server:
        yield server


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_leaving_a_stream_cancels_the_request(held: HeldServer, kind: str) -> None:
    with open_client(kind, held.endpoint) as client:
        with client.stream("x", plain_base=True) as stream:
            assert stream.served_by.adapter_version == ""
            assert not held.cancelled.is_set()
        assert held.cancelled.wait(WAIT_SECONDS)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_deadline_ends_a_reply_that_does_not_come(held: HeldServer, kind: str) -> None:
    with open_client(kind, held.endpoint) as client, pytest.raises(DeadlineExceeded):
        client.within(0.2).generate("x", plain_base=True)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_deadline_ends_an_upload(held: HeldServer, kind: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl")
    with open_client(kind, held.endpoint) as client, pytest.raises(DeadlineExceeded):
        client.within(0.2).datasets.upload(path)


async def test_cancelling_the_task_of_an_upload_cancels_the_call(held: HeldServer, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl")
    async with AsyncClient(held.endpoint) as client:
        task = asyncio.create_task(client.datasets.upload(path))
        assert await asyncio.to_thread(held.reached.wait, WAIT_SECONDS)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(held.cancelled.wait, WAIT_SECONDS)


async def test_cancelling_the_task_of_a_reply_cancels_the_call(held: HeldServer) -> None:
    async with AsyncClient(held.endpoint) as client:
        task = asyncio.create_task(client.generate("x", plain_base=True))
        assert await asyncio.to_thread(held.reached.wait, WAIT_SECONDS)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(held.cancelled.wait, WAIT_SECONDS)
