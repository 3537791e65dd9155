"""What crosses a process boundary: wire structs and framing. msgspec and stdlib only."""
