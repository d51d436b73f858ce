"""What an engine has done since its start, for the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetuned_service.engine.chunks import Chunk
from finetuned_service.engine.histogram import STEP_SECONDS, STEP_SEQUENCES, STEP_TOKENS, Histogram
from finetuned_service.engine.messages import HistogramCounts

_COUNTERS = (
    "steps",
    "prefill_tokens",
    "prefix_tokens_reused",
    "decode_tokens",
    "step_seconds",
    "step_failures",
    "deadlines_estimate",
    "deadlines_queue",
    "deadlines_running",
)


class EngineCounts:
    """Counters by name, and the distribution of steps."""

    def __init__(self) -> None:
        self._counters: dict[str, float] = dict.fromkeys(_COUNTERS, 0.0)
        self._histograms = {
            "step_seconds": Histogram(STEP_SECONDS),
            "step_sequences": Histogram(STEP_SEQUENCES),
            "step_tokens": Histogram(STEP_TOKENS),
        }

    def add(self, counter: str, amount: float = 1.0) -> None:
        """Raises KeyError if there is no such counter."""
        self._counters[counter] += amount

    def add_step(self, chunks: Sequence[Chunk], seconds: float) -> None:
        """One step that computed these chunks."""
        self.add("steps")
        self.add("step_seconds", seconds)
        self._histograms["step_seconds"].observe(seconds)
        self._histograms["step_sequences"].observe(len(chunks))
        self._histograms["step_tokens"].observe(sum(chunk.rows for chunk in chunks))

    def counters(self) -> Mapping[str, float]:
        return dict(self._counters)

    def histograms(self) -> Mapping[str, HistogramCounts]:
        return {name: histogram.read() for name, histogram in self._histograms.items()}
