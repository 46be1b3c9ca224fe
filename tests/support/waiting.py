"""How long tests wait for what is to come."""

import time
from collections.abc import Callable

# Seconds. It ends what hangs and measures nothing: where other work runs, all takes many times as
# long as on a machine that is idle.
PATIENCE = 300.0


def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.01)
