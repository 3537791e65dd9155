"""A timer for the event loop that is not a millisecond late: the kernel's timerfd.

uvloop's own timers count whole milliseconds, in which a router answers several requests.
"""

import asyncio
import ctypes
import os
import time
from types import TracebackType

_ABSOLUTE = 1  # TFD_TIMER_ABSTIME
_libc = ctypes.CDLL(None, use_errno=True)


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class Timer:
    """Waits until given times of `time.monotonic()`. A context manager, for one waiter."""

    def __enter__(self) -> "Timer":
        self._fd = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._fired = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._fire)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    async def until(self, at_s: float) -> None:
        """At once when that time is past."""
        self._fired.clear()
        whole = int(at_s)
        spec = _TimerSpec(_TimeSpec(0, 0), _TimeSpec(whole, int((at_s - whole) * 1e9)))
        if _libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        await self._fired.wait()

    def _fire(self) -> None:
        os.read(self._fd, 8)
        self._fired.set()
