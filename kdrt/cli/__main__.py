"""``python -m kdrt.cli``: the same as ``kdrt``."""

from kdrt.__main__ import main

main()
