"""A simulator in virtual time: real routing and scheduling, a timing model in place of devices."""
