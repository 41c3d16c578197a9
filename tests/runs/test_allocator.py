"""Freed memory that stays is not cleared again by the kernel."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys
sys.path.insert(0, "src")
from vat.runs.allocator import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
import torch
before = 0
for turn in range(30):
    if turn == 20:  # an aligned block may have another address the next time, until there is enough room
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(20_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_large_blocks_are_used_again():
    def faults(keep):
        done = subprocess.run([sys.executable, "-c", CODE.format(keep=keep)], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults(False) >= 10 * 80_000_000 // 2**21  # a fault for each page, or huge page, of each block
    assert faults(True) < 10
