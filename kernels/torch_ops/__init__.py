"""The reference operations in plain torch: they define what is right."""
