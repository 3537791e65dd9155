"""Whose turn it is among models that wait in one level for the same limit: start-time fair queuing.

Each model's next request starts at the virtual time at which its last one ended, counted in tokens,
and the one that starts first is next. The virtual time is the start of what was admitted last, and
nobody starts before it: a model that had nothing waiting, or no room on its replicas, or something
more urgent to do, has saved up nothing. While two models wait that both could run, what they are
admitted differs by no more than their largest requests together.

Source: Goyal, Vin & Cheng 1996, Start-time Fair Queuing, all weights equal. Tenants are many, and
their turns must be cheap: see `TenantRing`. Models are few, and some have to be passed over.
"""


class ModelTurns:
    """The turns of one level."""

    def __init__(self) -> None:
        self._ends: dict[str, int] = {}
        self._virtual_time = 0

    def start(self, model: str) -> int:
        """When its next request starts, in virtual tokens: the smallest is next."""
        return max(self._ends.get(model, 0), self._virtual_time)

    def admitted(self, model: str, tokens: int) -> None:
        """It has had its turn."""
        self._virtual_time = self.start(model)
        self._ends[model] = self._virtual_time + tokens
