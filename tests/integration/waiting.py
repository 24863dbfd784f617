"""Waiting for conditions, in the tests of other processes."""

import time


def wait_for(condition, timeout_s=30.0):
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be in time"
        time.sleep(0.005)
