"""Progress that tests look at."""


class Watched:
    """A Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.done: list[int] = []

    def stage(self, name: str, total: int) -> None:
        self.stages.append((name, total))
        self.done.append(0)

    def advance(self, nbytes: int) -> None:
        assert nbytes > 0
        self.done[-1] += nbytes
