"""The orders in which prompts are computed, by the names configurations give them."""

from collections.abc import Callable, Mapping
from typing import Literal

from replica.core.block_pool import BlockPool
from replica.core.queue_order import FirstComeFirstServed, QueueOrder
from replica.core.response_ratio import ResponseRatio

QueueOrderName = Literal["response_ratio", "fcfs"]

QUEUE_ORDERS: Mapping[QueueOrderName, Callable[[BlockPool], QueueOrder]] = {
    "response_ratio": ResponseRatio,
    "fcfs": lambda _: FirstComeFirstServed(),
}
"""Each makes an empty one for the sequences of that pool."""
