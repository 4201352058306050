"""Freed memory is kept where it pays, and only there."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

ALLOCATE = """
import resource, sys
from timm_robust.utils.allocator import keep_freed_memory
print(keep_freed_memory(sys.argv[1]))
def faults(n):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        bytearray(64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(1)
print(faults(20))
"""
PAGES = 64 * 2**20 // 4096

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def allocate(device: str = "cpu", **environment: str) -> tuple[bool, int]:
    """Whether memory is said to be kept, and page faults of twenty allocations of 64 MiB."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATE, device], env=clean | environment, capture_output=True, text=True, check=True
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@glibc
def test_freed_memory_is_used_again_without_page_faults():
    kept, faults = allocate()
    assert kept
    assert faults < PAGES


@glibc
@pytest.mark.parametrize(
    ("device", "environment"),
    [
        ("cuda", {}),
        ("cpu", {"TIMM_ROBUST_KEEP_MEMORY": "0"}),
        ("cpu", {"MALLOC_ARENA_MAX": "2"}),
        ("cpu", {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}),
    ],
    ids=["another device", "switched off", "tuned by variable", "tuned by tunable"],
)
def test_the_allocator_is_left_alone(device, environment):
    kept, faults = allocate(device, **environment)
    assert not kept
    assert faults >= 20 * PAGES // 2  # huge pages may halve them
