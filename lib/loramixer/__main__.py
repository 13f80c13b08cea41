"""``python -m loramixer``."""

from loramixer.cli import main

main()
