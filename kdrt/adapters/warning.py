"""What is warned of when adapters are loaded; here, so that the command line can name it fast."""

from __future__ import annotations


class AdapterWarning(UserWarning):
    """Part of an adapter has no effect on this model."""
