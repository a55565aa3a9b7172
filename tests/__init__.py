"""The tests are the same tree as the package; `tests.support` holds what several of them share."""

import os

# Processes side by side have more threads than there are cores: a thread that waits must not hold a core. OpenMP reads
# this once, when torch is imported; subprocesses inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
