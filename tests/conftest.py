"""Settings shared by all tests."""

import os

from hypothesis import settings

# Shared machines: no deadlines; the same examples in every run, so that a red run can be repeated.
settings.register_profile("warmroute", deadline=None, derandomize=True, max_examples=50)
# `make fuzz`: other examples each time, and many.
settings.register_profile("fuzz", deadline=None, max_examples=20_000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "warmroute"))
