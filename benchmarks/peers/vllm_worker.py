"""vLLM-CPU by its offline interface, `LLM.generate`: the fastest it has, because no HTTP stands between.

Settings: `base`, `max_loras` (0 leaves LoRA out; rank 16), `sequences`, `context_tokens`.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from benchmarks.peers.worker import Generate, Row, Settings, serve


def start(settings: Settings) -> Generate:
    lora = {}
    if settings["max_loras"]:
        lora = {
            "enable_lora": True,
            "max_loras": settings["max_loras"],
            "max_cpu_loras": settings["max_loras"],
            "max_lora_rank": 16,
        }
    engine = LLM(
        model=settings["base"],
        dtype="bfloat16",
        max_model_len=settings["context_tokens"],
        max_num_seqs=settings["sequences"],
        enable_prefix_caching=False,
        seed=0,
        **lora,
    )
    numbers: dict[str, int] = {}

    def generate(rows: Sequence[Row], new_tokens: int) -> int:
        sampling = [
            SamplingParams(
                temperature=row.temperature,
                top_p=row.top_p,
                max_tokens=new_tokens,
                ignore_eos=True,
                detokenize=True,
            )
            for row in rows
        ]
        requests = []
        for row in rows:
            if row.adapter is None:
                requests.append(None)
            else:
                number = numbers.setdefault(row.adapter, len(numbers) + 1)
                requests.append(LoRARequest(row.adapter, number, row.adapter))
        outputs = engine.generate(
            [{"prompt_token_ids": row.token_ids} for row in rows],
            sampling,
            lora_request=requests if settings["max_loras"] else None,
            use_tqdm=False,
        )
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return generate


if __name__ == "__main__":
    serve(start)
