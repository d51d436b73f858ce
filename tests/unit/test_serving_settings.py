"""What a server is set to, as it is served."""

from __future__ import annotations

import pytest
from finetuned_service.engine.allocator import RangeAllocator
from finetuned_service.engine.native.library import PANEL
from finetuned_service.engine.plain import PlainRunner
from finetuned_service.settings import KV_BLOCK_TOKENS, Settings


@pytest.mark.parametrize("granularity", [PANEL, PlainRunner.kv_block_tokens])
def test_a_call_is_promised_no_more_of_the_kv_cache_than_there_is(granularity: int) -> None:
    settings = Settings(kv_cache_tokens=500)
    assert settings.kv_cache_tokens == 512
    assert RangeAllocator(settings.kv_cache_tokens, granularity).capacity == 512
    assert KV_BLOCK_TOKENS % granularity == 0
