"""The environment of a process that trains; read as it starts."""

from __future__ import annotations

from vit_search.runtime.pickles import no_pickles

WORKER_ENV = {  # glibc keeps freed pages instead of faulting them in again at each step: 4 to 7 % on CPU
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
    "PYTHONSAFEPATH": "1",  # nothing is imported from the folder that the search was started in
} | no_pickles()
"""What a process that trains is started with."""
