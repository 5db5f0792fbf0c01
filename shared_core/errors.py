"""The one exception type users of this package meet."""

__all__ = ["MemextError"]


class MemextError(ValueError):
    """A request that cannot be honoured.

    The message says, in this order: where (the function, option or layer), what was passed,
    what is allowed, and what to do now.
    """
