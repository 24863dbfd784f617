"""Compile a description to the plan of a start: the operations and their order."""
