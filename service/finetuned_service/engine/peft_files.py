"""Read a LoRA adapter in PEFT's layout into serving form, or refuse it whole.

The files are checked in full again, now against the sites of the base that is in memory, and must have
the digest under which they were asked for: an adapter is applied in full and as it is, or not at all.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from finetuned_service.adapters.files import CONFIG_FILE, WEIGHTS_FILE, check_adapter
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.lora_config import LoraConfig
from finetuned_service.adapters.peft_config import parse_lora_config
from finetuned_service.engine.lora_bank import LoraWeights
from finetuned_service.engine.messages import AdapterHandle
from finetuned_service.engine.sites import SiteTable
from finetuned_service.errors import InvalidAdapterFiles, Unavailable

_ANY_RANK = 2**31
"""Residency refuses what the banks cannot hold, and says how much room there is."""
_PREFIX, _SUFFIX = "base_model.model.", ".lora_A.weight"


class AdapterReader:
    """Reads adapters for one base: its sites and its dtype."""

    def __init__(self, table: SiteTable, dtype: torch.dtype) -> None:
        self._geometry = BaseGeometry(digest="", root_digest="", linear_shapes=table.linear_shapes())
        self._locate = table.locate()
        self._dtype = dtype

    def size_bytes(self, handle: AdapterHandle) -> int:
        """At most so many bytes will the adapter have when read; looks only at the file's size.

        Raises:
            Unavailable: if the files cannot be reached.
        """
        try:
            stored_bytes = (Path(handle.directory) / WEIGHTS_FILE).stat().st_size
        except OSError as error:
            raise _unreachable(handle) from error
        return stored_bytes * self._dtype.itemsize // 2

    @torch.inference_mode()
    def read(self, handle: AdapterHandle) -> LoraWeights:
        """The whole adapter, ready to be copied into the banks.

        Raises:
            InvalidAdapterFiles: if its files are not whole, do not fit the base, or are another's.
            Unavailable: if the files cannot be reached.
        """
        directory = Path(handle.directory)
        try:
            facts = check_adapter(directory, self._geometry, _ANY_RANK)
            config = parse_lora_config((directory / CONFIG_FILE).read_bytes())
            tensors = load_file(directory / WEIGHTS_FILE)
        except (OSError, RuntimeError) as error:
            # safetensors says RuntimeError when the file is deleted between its opening and its reading.
            raise _unreachable(handle) from error
        if facts.digest != handle.digest:
            raise InvalidAdapterFiles(
                f"the files of adapter {handle.digest} now have the digest {facts.digest}; import it again",
                metadata={"adapter_digest": handle.digest},
            )
        sites = [name[len(_PREFIX) : -len(_SUFFIX)] for name in tensors if name.endswith(_SUFFIX)]
        pairs = {site: self._pair(site, config, tensors) for site in sites}
        if not all(bool(torch.isfinite(t).all()) for pair in pairs.values() for t in pair):
            raise InvalidAdapterFiles(
                f"adapter {handle.digest} has values that are not finite in {self._dtype}; train it again "
                "with a smaller learning rate or alpha",
                metadata={"adapter_digest": handle.digest},
            )
        ranks: dict[int, int] = {}
        for site, (a, _) in pairs.items():
            kind, _ = self._locate[site]
            ranks[kind] = max(ranks.get(kind, 0), a.shape[0])
        return LoraWeights(pairs, ranks)

    def _pair(self, site: str, config: LoraConfig, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        a = tensors[f"{_PREFIX}{site}.lora_A.weight"]
        b = tensors[f"{_PREFIX}{site}.lora_B.weight"]
        scaled = b.to(torch.float32).mul(config.scaling_of(site)).t()
        return a.to(self._dtype, copy=True), scaled.to(self._dtype).contiguous()


def _unreachable(handle: AdapterHandle) -> Unavailable:
    return Unavailable(
        f"the files of adapter {handle.digest} cannot be read now; try again, or import it again",
        retry_after_seconds=5.0,
    )
