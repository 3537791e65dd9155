"""A device that is only a clock: steps take as long as a timing says, answers are words."""
