"""The processor's time, which what runs beside a training does not change."""

import time

TICK = max(time.get_clock_info("process_time").resolution, 1e-9)


def since(start: float) -> float:
    """Seconds of `time.process_time` since then, and never 0: a clock may tick more slowly than a short training."""
    return max(time.process_time() - start, TICK)
