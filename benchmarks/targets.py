"""What each figure should reach. A figure without a line here is told for what it is worth."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.figures import Figure


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on a figure's ratio, or on its value where it stands alone."""

    bound: float
    at_least: bool = True
    of_value: bool = False

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        return f"{sign} {self.bound:g}" + ("" if self.of_value else "x")

    def verdict(self, figure: Figure) -> str:
        """`met`, `missed`, or `no peer` where there was nobody to compare with."""
        found = figure.value if self.of_value else figure.ratio
        if found is None:
            return "no peer"
        met = found >= self.bound if self.at_least else found <= self.bound
        return "met" if met else "missed"


def _at_most(bound: float) -> Target:
    return Target(bound, at_least=False)


TARGETS = {
    "base_1_vs_vllm": Target(1.0),
    "base_1_vs_peft": Target(1.0),
    "base_1_step_ms": Target(20.0, at_least=False, of_value=True),
    "base_8_vs_vllm": Target(1.0),
    "base_8_vs_peft": Target(1.0),
    "base_8_vs_llamacpp": Target(1.0),
    "base_32_vs_vllm": Target(1.0),
    "base_32_vs_peft": Target(1.0),
    "base_32_vs_llamacpp": Target(1.0),
    "mixed_8_vs_vllm": Target(5.0),
    "mixed_8_vs_peft": Target(7.0),
    "mixed_8_vs_llamacpp": Target(6.0),
    "mixed_32_vs_vllm": Target(6.0),
    "mixed_32_on_32_vs_vllm": Target(6.0),
    "mixed_8_vs_own_base": Target(0.80),
    "mixed_32_vs_own_base": Target(0.85),
    "mixed_32_on_32_vs_own_base": Target(0.70),
    "mixed_ranks_8_vs_rank_16": Target(0.90),
    "mixed_ranks_32_vs_rank_16": Target(0.90),
    "prefill_vs_vllm": Target(1.3),
    "prefill_lora_vs_vllm": Target(15.0),
    "prefill_lora_vs_own_base": Target(0.90),
    "decode_step_base_1_vs_floor": _at_most(1.8),
    "decode_step_base_8_vs_floor": _at_most(1.8),
    "decode_step_mixed_8_vs_floor": _at_most(1.8),
    "cold_adapter_extra_ttft_ms": Target(30.0, at_least=False, of_value=True),
    "p99_inter_token_100_loads_vs_undisturbed": _at_most(1.2),
    "zipf_1000_on_32_vs_resident": Target(0.85),
    "grpc_vs_engine_32": Target(0.95),
    "inter_token_while_training_vs_idle": _at_most(1.3),
    "training_while_serving_vs_solo": Target(0.20),
    "training_at_half_load_vs_solo": Target(0.50),
    "sft_supervised_tokens_vs_trl": Target(2.0),
    "sft_short_supervised_tokens_vs_trl": Target(2.0),
    "sft_peak_memory_vs_trl": _at_most(0.6),
    "qlora_base_bytes_vs_bf16": _at_most(0.5),
    "estimate_memory_error": Target(0.15, at_least=False, of_value=True),
    "estimate_time_error": Target(0.30, at_least=False, of_value=True),
    "ready_after_start_seconds": Target(15.0, at_least=False, of_value=True),
}


def verdict(figure: Figure) -> tuple[str, str]:
    """The target as written, and whether it is met."""
    target = TARGETS.get(figure.figure)
    return ("", "") if target is None else (str(target), target.verdict(figure))
