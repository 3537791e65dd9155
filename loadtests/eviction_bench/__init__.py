"""Hit shares of evictions, replayed without time, beside the optimum."""
