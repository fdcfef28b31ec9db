"""What a process does with memory that its tensors no longer need."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from dreamset.core import device
{first}
def round():
    return [np.ones(2_500_000) for _ in range(3)]
round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    round()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(first: str) -> int:
    """Pages that a process had mapped anew in twenty rounds of allocating 60 MB and giving them up."""
    code = FAULTS.format(first=first)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_that_is_given_up_is_kept_for_what_comes() -> None:
    assert 10 * faults("device.keep_memory()") < faults("")
