"""Room for compiled programs: a process that compiles thousands of them dies by a segmentation fault on Linux.

Every program that XLA compiles for the CPU takes some memory maps (a fit, with all its programs, several hundred) and
keeps them. Linux allows a process 65,530 (`vm.max_map_count`); the compiler does not survive a refusal.
"""

from __future__ import annotations

import gc
from pathlib import Path

MAPS, LIMIT = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
PORTION = 0.5  # one call between two looks may still compile a great deal


def make_room(portion: float = PORTION) -> bool:
    """Drops JAX's compiled programs where they hold more than `portion` of the maps allowed; True where it did.

    What is needed again is compiled again. Without such a limit (macOS) it does nothing. 10 ms at 30,000 maps.
    """
    try:
        with MAPS.open("rb") as lines:
            held = sum(1 for _ in lines)
        allowed = int(LIMIT.read_text())
    except (OSError, ValueError):
        return False
    if held <= portion * allowed:
        return False
    import jax

    jax.clear_caches()
    gc.collect()
    return True
