"""Virtual token counters: how much service each of several clients has had. Pure logic, no torch.

After Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), algorithm 2: who has the least
is served next, and a client that begins to wait is lifted to the least of those that wait, so that nobody
saves up for later by asking for nothing. Between two clients that both wait all the time the difference
stays below twice the cost of the largest request or batch (theorem 4.4 there).
"""

from __future__ import annotations

PROMPT_WEIGHT = 1
COMPLETION_WEIGHT = 2
"""A token that is generated costs a step of its own; those of a prompt share one. The paper's figures."""

Rank = tuple[int, int, int]
"""The smallest is served next: least service, then longest without a turn, then longest waiting."""


class VirtualCounters:
    """Clients are names. Owns their counters; who waits is told by `enter` and `leave`."""

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._last_turn: dict[str, int] = {}
        self._waiting: dict[str, int] = {}
        """When each began to wait, by `_clock`."""
        self._last_to_leave = ""
        self._floor = 0
        self._clock = 0

    def __len__(self) -> int:
        return len(self._served)

    def served(self, client: str) -> int:
        """Weighted tokens."""
        return self._served.get(client, 0)

    def rank(self, client: str) -> Rank:
        return (self.served(client), self._last_turn.get(client, 0), self._waiting.get(client, 0))

    def enter(self, client: str) -> None:
        """The client begins to wait."""
        self._raise_floor()
        self._served[client] = max(self.served(client), self._floor)
        self._clock += 1
        self._waiting[client] = self._clock

    def leave(self, client: str) -> None:
        """Nothing of the client waits any more; what it is given from now on still counts."""
        self._waiting.pop(client, None)
        self._last_to_leave = client

    def take_turn(self, client: str, cost: int) -> None:
        """The client was chosen."""
        self._clock += 1
        self._last_turn[client] = self._clock
        self.charge(client, cost)

    def charge(self, client: str, cost: int) -> None:
        """Count weighted tokens; negative for what was charged and not given."""
        self._served[client] = self.served(client) + cost

    def forget_caught_up(self) -> None:
        """Drop the clients of whom nothing would be remembered anyway: `enter` would lift them."""
        self._raise_floor()
        for client, served in list(self._served.items()):
            if client not in self._waiting and served <= self._floor:
                del self._served[client]
                self._last_turn.pop(client, None)

    def _raise_floor(self) -> None:
        # With nobody waiting, who comes next begins where the last one is.
        least = min(map(self.served, self._waiting or (self._last_to_leave,)))
        self._floor = max(self._floor, least)
