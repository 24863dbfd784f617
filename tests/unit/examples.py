"""The number of examples for each property: few for each change, more in the nightly run."""

import os


def examples(*, ci, nightly):
    """Return the first number, or the second if HYPOTHESIS_PROFILE is "nightly"."""
    return nightly if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else ci
