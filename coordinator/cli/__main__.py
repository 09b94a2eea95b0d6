"""``python -m coordinator.cli`` is ``shoal``."""

from coordinator.cli import main

main()
