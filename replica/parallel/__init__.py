"""One replica over several processes, each with its share of the model."""
