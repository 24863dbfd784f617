"""How many examples of a property are tried: a few at each change, all of them in the nightly run."""

import os


def examples(*, ci, nightly):
    """Return the one number, or the other where HYPOTHESIS_PROFILE is "nightly"."""
    return nightly if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else ci
