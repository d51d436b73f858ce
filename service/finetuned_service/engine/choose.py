"""Which path computes a base: the native one where it exists for machine and base, else the plain one."""

from __future__ import annotations

from pathlib import Path

import structlog

from finetuned_service.bases.device import CPU, resolve_device
from finetuned_service.bases.family import family_of
from finetuned_service.bases.manifest import read_config
from finetuned_service.engine.encoders.model import EncoderModel
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.native.build import CannotCompile
from finetuned_service.engine.native.geometry import NotNative
from finetuned_service.engine.native.library import Library
from finetuned_service.engine.native.model import NativeModel
from finetuned_service.engine.runner import Model
from finetuned_service.errors import StartRefused
from finetuned_service.vocabulary import Family

_log = structlog.get_logger()


def load_model(
    directory: Path, *, device: str = "cpu", compute: str = "auto", cache_directory: str = ""
) -> Model:
    """The base in `directory`, on the device and the path that `EngineConfig` asks for.

    Raises:
        StartRefused: if there is no such device, or the native path is asked for and cannot be taken; the message
            says why.
        Unimplemented: if no path computes it.
    """
    # Who asks for the native path and for no device asks for the CPU.
    where = CPU if compute == "native" and device == "auto" else resolve_device(device)
    if family_of(read_config(directory)) is not Family.DECODER:
        if compute == "native":
            raise StartRefused(
                f"the native path computes decoders; {directory.name} encodes: choose compute 'auto' or 'plain'"
            )
        return EncoderModel.load(directory, device=where)
    if compute == "plain" or (compute == "auto" and where.type != "cpu"):
        return EngineModel.load(directory, device=where)
    if where.type != "cpu":
        raise StartRefused(
            f"the native path computes on the CPU, not on {where}: choose device 'cpu', or compute 'auto' or 'plain'"
        )
    try:
        return NativeModel.load(directory, Library.of_machine(cache_directory))
    except (CannotCompile, NotNative, OSError) as error:
        if compute == "native":
            raise StartRefused(
                f"the native path cannot compute {directory.name}: {error}; choose compute 'auto' or 'plain'"
            ) from error
        _log.warning("engine_plain", reason=str(error), note="it serves, but slower")
        return EngineModel.load(directory, why_plain=str(error))
