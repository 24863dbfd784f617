"""What a start does on the machine before and after the plan is executed."""
