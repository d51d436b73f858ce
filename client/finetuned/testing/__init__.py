"""A server for tests: `FakeServer` speaks the contract over real gRPC, in your process, without torch."""

from finetuned.testing._server import FakeServer

__all__ = ["FakeServer"]
