"""What a replica is to the router: a table of states and the events that change them.

                 probe_ok      probe_failed   request_ok   connect failed   stream failed
    starting     ready         -              -            -                -
    ready        -             suspect        -            ejected          suspect
    suspect      ready         ejected        ready        ejected          ejected
    ejected      suspect       -              -            -                -
    draining     -             -              -            -                -

    drain: any state → draining.  undrain: draining → starting (a probe must say that it is ready).

Only ready replicas get requests; suspect ones only while none is ready. A refused connection means
that nobody is there: the traffic moves at once, without waiting for a probe. A broken stream may be
one bad request, so it takes a second sign. An ejected replica comes back in two probes, by way of
suspect, so that one that flaps gets nothing while others are well. What a request says of a replica
that was ejected or is starting is old news: only probes count there.
"""

from enum import StrEnum


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    SUSPECT = "suspect"
    EJECTED = "ejected"
    DRAINING = "draining"


class StateEvent(StrEnum):
    PROBE_OK = "probe_ok"
    PROBE_FAILED = "probe_failed"
    REQUEST_OK = "request_ok"
    REQUEST_FAILED_CONNECT = "request_failed_connect"
    REQUEST_FAILED_STREAM = "request_failed_stream"
    DRAIN = "drain"
    UNDRAIN = "undrain"


# Whatever is not here changes nothing.
TRANSITIONS: dict[tuple[State, StateEvent], State] = {
    (State.STARTING, StateEvent.PROBE_OK): State.READY,
    (State.READY, StateEvent.PROBE_FAILED): State.SUSPECT,
    (State.READY, StateEvent.REQUEST_FAILED_CONNECT): State.EJECTED,
    (State.READY, StateEvent.REQUEST_FAILED_STREAM): State.SUSPECT,
    (State.SUSPECT, StateEvent.PROBE_OK): State.READY,
    (State.SUSPECT, StateEvent.REQUEST_OK): State.READY,
    (State.SUSPECT, StateEvent.PROBE_FAILED): State.EJECTED,
    (State.SUSPECT, StateEvent.REQUEST_FAILED_CONNECT): State.EJECTED,
    (State.SUSPECT, StateEvent.REQUEST_FAILED_STREAM): State.EJECTED,
    (State.EJECTED, StateEvent.PROBE_OK): State.SUSPECT,
    (State.STARTING, StateEvent.DRAIN): State.DRAINING,
    (State.READY, StateEvent.DRAIN): State.DRAINING,
    (State.SUSPECT, StateEvent.DRAIN): State.DRAINING,
    (State.EJECTED, StateEvent.DRAIN): State.DRAINING,
    (State.DRAINING, StateEvent.UNDRAIN): State.STARTING,
}


def after(state: State, event: StateEvent) -> State:
    """The state that `event` leads to."""
    return TRANSITIONS.get((state, event), state)
