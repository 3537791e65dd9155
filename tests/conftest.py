"""Settings shared by all tests."""

from hypothesis import settings

# Shared machines: no deadlines; the same examples in every run, so that a red run can be repeated.
settings.register_profile("warmroute", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("warmroute")
