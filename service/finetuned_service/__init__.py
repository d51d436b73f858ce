"""The fine-tuning service: one frozen base, many adapters; train, quantize, serve over gRPC."""

from finetuned_service._version import VERSION

__all__ = ["VERSION"]
