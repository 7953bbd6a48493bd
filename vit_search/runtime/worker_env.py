"""The environment variables of a process that trains. They are read when it starts."""

from __future__ import annotations

from vit_search.runtime.pickles import no_pickles

WORKER_ENV = {  # glibc keeps freed pages; getting them again at each step costs 4 to 7 % on a CPU
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
    "PYTHONSAFEPATH": "1",  # import nothing from the folder where the search was started
} | no_pickles()
"""Environment variables of a process that trains."""
