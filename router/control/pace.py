"""Long work on the event loop, a millisecond at a time: requests are served in between."""

import asyncio

_SLICE_S = 0.001


class Pace:
    """Shared by all who have long work: together they take one slice a turn of the loop."""

    def __init__(self) -> None:
        self._slice_ends_at = 0.0
        self._turn = asyncio.Lock()

    async def pause(self) -> None:
        """To be called again and again; lets others run when the slice is over."""
        clock = asyncio.get_running_loop().time
        if clock() < self._slice_ends_at:
            return
        async with self._turn:
            await asyncio.sleep(0)
            self._slice_ends_at = clock() + _SLICE_S

    def woken(self) -> None:
        """Work begins after a wait: others have just run."""
        now = asyncio.get_running_loop().time()
        if now >= self._slice_ends_at:
            self._slice_ends_at = now + _SLICE_S
