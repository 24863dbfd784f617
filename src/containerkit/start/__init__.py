"""What a start needs of the machine before and after the plan is walked."""
