"""Count what code asks of a filesystem."""


class Counted:
    """A filesystem that keeps the names of the operations asked of it."""

    def __init__(self, filesystem):
        self.filesystem, self.asked = filesystem, []

    def __getattr__(self, name):
        self.asked.append(name)
        return getattr(self.filesystem, name)
