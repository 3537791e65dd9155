"""What must hold whenever something was admitted, or nothing more can be, by the plain lists."""

from router.core.admission import Admission
from router.core.ticket import Ticket
from tests.support.admission_model import AdmissionModel

LARGEST = 8


class AdmissionChecks:
    """
    Attributes:
        leads: By model, level and pair of tenants who both wait there: how much more the first got,
            now, at least and at most.
    """

    admission: Admission
    model: AdmissionModel
    now: float
    quantum: int
    leads: dict[tuple[str, int, str, str], tuple[int, int, int]]

    def blocked_at_the_limit(self, level: int, but: str = "") -> list[Ticket]:
        """The next of models in this level or a more urgent one, who would fit a replica.

        Args:
            but: Without those of this model.
        """
        models = [model for model in self.admission.queue.models if model != but]
        found = [self.admission.next_of(model) for model in models]
        heads = [one.ticket for one in found if one is not None]
        assert all(self.model.fits_a_replica(one.model, one.tokens) for one in heads)
        return [one for one in heads if one.level <= level]

    def roomy(self) -> dict[str, list[str | None]]:
        """By model the replicas that have any room: who is next there may go."""
        model, found = self.model, dict[str, list[str | None]]()
        for name, routable in model.routable.items():
            beside = model.unplaced(name)
            found[name] = [None]
            found[name] += [one for one in routable if model.has_room(name, one, 1, beside)]
        return found

    def was_served(self, ticket: Ticket, roomy: list[str | None]) -> None:
        """Nobody who may go before it was passed over, and its tenant got no more than a share."""
        level = self.model.most_urgent(ticket.model)
        assert ticket.level == level, "the most urgent first"
        limited = self.admission.capacity.models[ticket.model].limited
        asked = roomy[1:] if limited and self.admission.queue.by_ratio else roomy[:1]
        assert any(ticket in self.model.may_be_next(ticket.model, one, self.now) for one in asked)
        assert not self.blocked_at_the_limit(level - 1, ticket.model), "also of another model"
        self.see_leads()
        for key, (lead, least, most) in self.leads.items():
            model, at, first, second = key
            if (model, at) == (ticket.model, level) and ticket.tenant in (first, second):
                lead += ticket.tokens if ticket.tenant == first else -ticket.tokens
                self.leads[key] = lead, min(least, lead), max(most, lead)
                assert max(most, lead) - min(least, lead) <= self.quantum + 2 * LARGEST

    def see_leads(self) -> None:
        """Only those who both wait are compared, from when they both do."""
        lanes = {(one.ticket.model, one.level, one.ticket.tenant) for one in self.model.waiting}
        for key in list(self.leads):
            model, level, first, second = key
            if not {(model, level, first), (model, level, second)} <= lanes:
                del self.leads[key]
        for model, level, first in lanes:
            for second in "abc":
                if first < second and (model, level, second) in lanes:
                    self.leads.setdefault((model, level, first, second), (0, 0, 0))

    def nothing_waits_that_could_run(self) -> None:
        stopped = self.blocked_at_the_limit(8)
        for ticket in stopped:
            assert any(not self.model.fits_the_limit(one.tokens) for one in stopped)
            assert ticket.level == self.model.most_urgent(ticket.model)
        for name in self.admission.queue.models:
            level = self.model.most_urgent(name)
            waiting = [one for one in self.model.waiting if one.ticket.model == name]
            assert self.admission.next_of(name) is not None or not all(
                self.model.fits_a_replica(name, one.ticket.tokens)
                for one in waiting
                if one.level == level
            ), "whoever is next would fit"
        if stopped:
            first = min(one.level for one in stopped)
            firsts = [one for one in stopped if one.level == first]
            assert any(not self.model.fits_the_limit(one.tokens) for one in firsts)
