"""How many requests a second each replica was sent lately, as production-stack counts them."""

from collections import deque

# production-stack: --request-stats-window.
WINDOW_S = 60.0


class RequestRates:
    """Routings within a sliding window, by replica."""

    def __init__(self, replicas: int) -> None:
        self._routed_at: list[deque[float]] = [deque() for _ in range(replicas)]
        self._ever = [False] * replicas

    def add(self, replica: int, now: float) -> None:
        self._routed_at[replica].append(now)
        self._ever[replica] = True

    def lowest(self, now: float) -> int:
        """The first that never had a request, else the first with the fewest in the window."""
        fewest, best = None, 0
        for replica, routed_at in enumerate(self._routed_at):
            if not self._ever[replica]:
                return replica
            while routed_at and routed_at[0] <= now - WINDOW_S:
                routed_at.popleft()
            if fewest is None or len(routed_at) < fewest:
                fewest, best = len(routed_at), replica
        return best
