"""The steps of a start on the host before and after the plan is executed."""
