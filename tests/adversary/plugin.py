"""A pytest plugin that takes the check that WITHOUT_CHECK names out of the verifier, for all tests of one process."""

import os

from tests.adversary.checks import checks, without

_gone = without(checks()[os.environ["WITHOUT_CHECK"]])
_gone.__enter__()
