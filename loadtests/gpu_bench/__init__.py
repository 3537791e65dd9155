"""Parts of `make bench-gpu`: what is measured, and how."""
