"""From a description to the plan of a start: which operations, in which order."""
