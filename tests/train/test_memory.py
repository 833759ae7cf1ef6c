"""Freed memory stays with the process: seen from the system's count of page faults."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys
import numpy as np
from enrobe.train.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    parts = [np.ones(250_000) for _ in range(20)]
step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is asked")
def test_a_step_uses_the_memory_of_the_last_one() -> None:
    taken = {
        how: int(subprocess.check_output([sys.executable, "-c", CODE, how]))
        for how in ("kept", "given back")
    }
    # 40 MB a step are 10,000 pages; glibc's own rule moves up with what it sees, so compare.
    assert taken["kept"] < 1000, taken
    assert taken["kept"] < taken["given back"] / 5, taken
