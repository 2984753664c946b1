"""Waiting for another process."""

import time


def wait(condition, seconds=300):
    "Until the condition holds; a failed test where it never does."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
