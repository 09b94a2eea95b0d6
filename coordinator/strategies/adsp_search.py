"""ADSP's online search: which number of commits per period makes the loss fall fastest.

A trial compares C with its neighbour while training goes on: four segments, C, C + 1, C, C + 1, each of a period and
of two commit intervals at least. Devices take up a segment's rate at their next commit, nobody is held up. So that a
segment's beginning does not blur the comparison, its first quarter is not sampled, and what counts as spent at a rate
is the share of the fleet that trains by it, integrated over time. The samples of all four segments go into one fit
(:mod:`.adsp_fit`).
"""

from __future__ import annotations

from attrs import evolve, field, frozen

SEGMENTS = 4
QUARTERS = 4

REST, UP, DOWN = "rest", "up", "down"


@frozen
class Trial:
    """``low`` commits per period against one more, since ``began``, in segments of ``segment`` seconds.

    ``spent`` are the seconds that the fleet has trained at the low and at the high rate until ``at``; ``samples`` are
    (seconds low, seconds high, loss); ``asked`` has the seconds spent when a version was sent to be measured.
    ``fitting``: the samples are with whoever fits.
    """

    low: int
    began: float
    segment: float
    at: float
    spent: tuple[float, float] = (0.0, 0.0)
    samples: tuple[tuple[float, float, float], ...] = ()
    asked: dict[int, tuple[float, float]] = field(factory=dict)
    fitting: bool = False

    @property
    def ends(self) -> float:
        return self.began + SEGMENTS * self.segment

    @property
    def beat(self) -> float:
        """Seconds from sample to sample."""
        return self.segment / QUARTERS

    def number(self, now: float) -> int:
        """Which segment it is, from 0."""
        return min(max(int((now - self.began) / self.segment), 0), SEGMENTS - 1)

    def next(self, now: float) -> float:
        """When the next sample is due: beats do not drift, however late each comes."""
        return self.began + (int((now - self.began) / self.beat + 1e-6) + 1) * self.beat

    def until(self, now: float, high: float) -> Trial:
        """Since it was last told, a share ``high`` in [0, 1] of the fleet has trained at the high rate."""
        seconds = max(0.0, min(now, self.ends) - self.at)
        spent = self.spent[0] + (1 - high) * seconds, self.spent[1] + high * seconds
        return evolve(self, at=max(now, self.at), spent=spent)

    def sampled(self, loss: float, version: int | None = None) -> Trial:
        """A loss of now, or of a ``version`` that was sent to be measured."""
        if version is None:
            return evolve(self, samples=(*self.samples, (*self.spent, loss)))
        if version not in self.asked:
            return self
        left = {other: spent for other, spent in self.asked.items() if other != version}
        return evolve(self, samples=(*self.samples, (*self.asked[version], loss)), asked=left)

    def columns(self) -> dict[str, tuple[float, ...]]:
        """The samples as the fit takes them."""
        ordered = sorted(self.samples)
        return {name: tuple(sample[at] for sample in ordered) for at, name in enumerate(("x", "y", "loss"))}


@frozen
class Search:
    """``settled`` commits per period are in use where nothing is tried; the next search begins at ``due``.

    ``way`` says what is to be tried, one more or one less; ``climbed``: this search has found a higher rate.
    ``checked`` is the loss at the last check between searches, of which ``checking`` is the version being measured.
    """

    settled: int
    due: float
    way: str = REST
    climbed: bool = False
    trial: Trial | None = None
    checked: float | None = None
    checking: int | None = None

    def rate(self, now: float) -> int:
        """Commits per period that devices are to make."""
        if self.trial is None or now >= self.trial.ends:
            return self.settled
        return self.trial.low + self.trial.number(now) % 2

    def start(self, top: int) -> Search:
        """A search begins: upwards first, where there is room below ``top``."""
        way = UP if self.settled < top else DOWN if self.settled > 1 else REST
        return evolve(self, way=way, climbed=False)

    def trying(self, now: float, period: float) -> Search:
        """The trial that ``way`` asks for."""
        low = self.settled if self.way == UP else self.settled - 1
        return evolve(self, trial=Trial(low, now, period * max(1.0, 2 / low), now))

    def decided(self, better: bool, top: int) -> Search:
        """After a trial: ``better`` if the rate that it tried wins over the settled one."""
        settled, way = self.settled, self.way
        if better:
            settled += 1 if way == UP else -1
        climbed = self.climbed or (better and way == UP)
        if way == UP and not better and not climbed and settled > 1:
            way = DOWN
        elif not better or (settled >= top if way == UP else settled <= 1):
            way = REST
        return evolve(self, settled=settled, way=way, climbed=climbed, trial=None, checked=None)

    def rose(self, loss: float, by: float) -> tuple[Search, bool]:
        """The loss at a check; whether it rose by the share ``by`` since the last one."""
        rose = self.checked is not None and loss - self.checked >= by * abs(self.checked)
        return evolve(self, checked=loss, checking=None), rose
