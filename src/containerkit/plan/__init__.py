"""The operations of a start, the tape that they are encoded to, and the program that runs it."""
