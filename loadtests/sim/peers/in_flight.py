"""What is in flight at each replica by the router's own count: requests, and their tokens."""

from dataclasses import dataclass


@dataclass(slots=True)
class _Flight:
    replica: int
    tokens: int
    before_first_token: bool = True


class InFlight:
    """Counts kept through route, first token and end of each request.

    Attributes:
        requests: By replica: routed, not ended.
        tokens: By replica: what `add` was told of those requests.
        prefill_tokens: The same, of those that have not said their first token.
    """

    def __init__(self, replicas: int) -> None:
        self.requests = [0] * replicas
        self.tokens = [0] * replicas
        self.prefill_tokens = [0] * replicas
        self._flights: dict[int, _Flight] = {}

    def add(self, number: int, replica: int, tokens: int) -> None:
        """Request `number` goes to `replica` and weighs `tokens` there."""
        assert number not in self._flights, f"request {number} is in flight already"
        self._flights[number] = _Flight(replica, tokens)
        self.requests[replica] += 1
        self.tokens[replica] += tokens
        self.prefill_tokens[replica] += tokens

    def first_token(self, number: int) -> None:
        flight = self._flights[number]
        assert flight.before_first_token, f"request {number} has said its first token already"
        flight.before_first_token = False
        self.prefill_tokens[flight.replica] -= flight.tokens

    def done(self, number: int) -> None:
        """Request `number` has ended, with a first token or without one."""
        flight = self._flights.pop(number)
        self.requests[flight.replica] -= 1
        self.tokens[flight.replica] -= flight.tokens
        if flight.before_first_token:
            self.prefill_tokens[flight.replica] -= flight.tokens

    def lost(self, replica: int) -> list[int]:
        """Forgets what was in flight there: the numbers of those requests."""
        numbers = [number for number, one in self._flights.items() if one.replica == replica]
        for number in numbers:
            self.done(number)
        return numbers

    def check(self) -> None:
        """Asserts that the sums are those of the requests in flight."""
        for replica in range(len(self.requests)):
            flights = [one for one in self._flights.values() if one.replica == replica]
            waiting = [one for one in flights if one.before_first_token]
            assert self.requests[replica] == len(flights)
            assert self.tokens[replica] == sum(one.tokens for one in flights)
            assert self.prefill_tokens[replica] == sum(one.tokens for one in waiting)
