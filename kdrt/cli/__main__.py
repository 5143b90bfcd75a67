"""``python -m kdrt.cli``: the same as ``kdrt``."""

from kdrt.cli import main

main()
