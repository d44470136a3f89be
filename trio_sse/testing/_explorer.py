"""The interleaving explorer: what if this happened just then, for every then?

A race is a bug in one order of steps out of many, and a test sees one order. Trio's
scheduler makes the orders countable: a task runs undisturbed from one checkpoint to the
next, so that whatever else happens, happens between two *task steps*. `explore` runs a
scenario once to count them, and then once more for each, with an injection right there.

Time is Trio's mock clock, which jumps: deadlines cost nothing. The scheduler's choices
are made repeatable, and that they repeat is checked in each run.
"""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, final

import outcome
import trio
import trio.testing

from .._groups import no_lone_group

Scenario = Callable[["Moment"], Awaitable[object]]

MAX_STEPS: Final = 100_000
"""A run that takes more task steps than this is taken not to end."""


@final
class BrokenInterleaving(AssertionError):
    """A scenario that holds in some interleavings does not in this one.

    What went wrong is the exception's cause.

    Attributes:
        at: seed and step, for ``explore(scenario, only=at)``; the step is ``None`` if
            nothing was injected.
    """

    def __init__(self, message: str, at: tuple[int, int | None]) -> None:
        super().__init__(message)
        self.at = at


@final
class Deadlock(Exception):
    """Every task waits, and for no deadline; or none ever stops running."""


@final
class NotRepeatable(Exception):
    """The scenario took other steps than in its first run, though nothing differed yet."""


@final
@dataclass(frozen=True, slots=True)
class Exploration:
    """What was explored.

    Attributes:
        interleavings: how many runs had an injection; each at another step or seed.
        steps: how many task steps there were to inject at, for each seed.
    """

    interleavings: int
    steps: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.interleavings} interleavings, {len(self.steps)} scheduling orders"


@final
class Moment:
    """One run's handle: what to inject, and what must hold meanwhile."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    @property
    def injected(self) -> bool:
        """Whether it has happened in this run. In one run of each seed it never does."""
        return self._run.injected

    def inject(self, function: Callable[..., object], *args: object) -> None:
        """Call ``function(*args)`` before one of the task steps from here on.

        It is called between two steps, as if by a task that ran just then. What it
        returns is awaited in such a task, if it can be: async functions will do.

        Raises:
            RuntimeError: on the second call in one run.
        """
        if self._run.injection is not None:
            raise RuntimeError(
                "moment.inject() was called already, and a run has one injection: "
                "to inject two things together, inject a function that does both"
            )
        self._run.injection = lambda: function(*args)

    def end(self) -> None:
        """From here on nothing is injected any more: the rest is for looking at the outcome."""
        self._run.is_over = True

    def invariant(self, check: Callable[[], object]) -> None:
        """Call ``check()`` after every task step from here on; it raises what is wrong."""
        self._run.invariants.append(check)


def explore(
    scenario: Scenario,
    *,
    seeds: Iterable[int] = (0,),
    only: tuple[int, int | None] | None = None,
) -> Exploration:
    """Run ``scenario`` with its injection at every task step.

    Call it from a plain function, not from an async one::

        def test_a_session_may_end_at_any_time() -> None:
            async def scenario(moment: Moment) -> None:
                ended = []
                hub = trio_sse.Hub()
                hub.hooks.on_unregister(lambda session, reason: ended.append(reason))
                async with hub, testing.open_stream(Endpoint(hub)) as stream:
                    [session] = hub.sessions.values()
                    moment.inject(session.end, "by an operator")
                    await hub.publish(Event("hello"))
                assert len(ended) == 1

            print(explore(scenario))

    The scenario must make everything anew that it uses, must come to an end with and
    without the injection, and must not depend on chance, on real time or on threads.

    Args:
        scenario: ``async def scenario(moment)``; calls `Moment.inject` and asserts.
        seeds: each is another order in which the scheduler takes the tasks that are
            ready at the same time.
        only: a seed and a step, from `BrokenInterleaving.at`: run this one alone.

    Raises:
        BrokenInterleaving: the scenario raised, ended in a deadlock, or is not
            repeatable. The first such interleaving ends the exploration.
        RuntimeError: the scenario ended without having called `Moment.inject`.
    """
    with _repeatable_scheduling() as schedule:
        if only is not None:
            schedule(only[0])
            run = _run_once(scenario, only, None)
            return Exploration(int(run.injected), (len(run.trace),))
        counts: list[int] = []
        for seed in seeds:
            schedule(seed)
            reference = _run_once(scenario, (seed, None), None)
            if reference.injection is None:
                raise RuntimeError(
                    "the scenario injects nothing: it should call moment.inject(function), "
                    "as in moment.inject(session.end, 'by an operator')"
                )
            for step in range(len(reference.trace)):
                schedule(seed)
                _run_once(scenario, (seed, step), reference.trace)
            counts.append(len(reference.trace))
    return Exploration(sum(counts), tuple(counts))


def _run_once(
    scenario: Scenario, at: tuple[int, int | None], expected: Sequence[int] | None
) -> _Run:
    seed, step = at
    run = _Run(step, expected)
    error: BaseException | None = None
    try:
        trio.run(
            run.main,
            scenario,
            clock=trio.testing.MockClock(autojump_threshold=0),
            instruments=[run],
        )
    except Exception as exc:
        error = exc
    error = run.failure or error
    if error is not None:
        where = "nothing" if step is None else f"the injection before step {step} ({run.before})"
        raise BrokenInterleaving(
            f"with {where}, seed {seed}: {type(error).__name__}, as above; "
            f"to run it alone: explore(scenario, only=({seed}, {step}))",
            at,
        ) from error
    return run


@contextmanager
def _repeatable_scheduling() -> Generator[Callable[[int], object], None, None]:
    """Have the scheduler take ready tasks in an order that a seed alone decides.

    What is yielded takes the seed for the next run. Trio shuffles them, and has no public
    switch. What is used here is what its own Hypothesis plug-in uses, present since Trio
    0.10: a flag that makes the order before the shuffle that of the tasks' creation
    rather than of their addresses, and the random generator that shuffles. Should Trio
    drop them, exploring goes on, and the check that runs repeat themselves
    (`NotRepeatable`) says if that is not enough.
    """
    scheduler = importlib.import_module("trio._core._run")
    flag = "_ALLOW_DETERMINISTIC_SCHEDULING"
    rng: Any = getattr(scheduler, "_r", None)
    was_allowed = getattr(scheduler, flag, None)
    state = None if rng is None else rng.getstate()
    if was_allowed is not None:
        setattr(scheduler, flag, True)
    try:
        yield (lambda seed: None) if rng is None else rng.seed
    finally:
        if rng is not None:
            rng.setstate(state)
        if was_allowed is not None:
            setattr(scheduler, flag, was_allowed)


@final
class _Run(trio.abc.Instrument):
    """One Trio run, watched from its instrument."""

    def __init__(self, step: int | None, expected: Sequence[int] | None) -> None:
        self.step = step
        self.expected = expected
        self.injection: Callable[[], object] | None = None
        self.injected = False
        self.invariants: list[Callable[[], object]] = []
        self.failure: BaseException | None = None
        self.before = "not reached"
        # Which task took each step since there was an injection to make: as a number,
        # because names and addresses differ from run to run.
        self.trace: list[int] = []
        self._numbers: dict[trio.lowlevel.Task, int] = {}
        self._steps = 0
        self._steps_at_last_wait = -1
        self.is_over = False  # the scenario, or as much of it as is to be explored
        self._is_stuck = False
        self._nursery: trio.Nursery
        self._root: trio.lowlevel.Task

    async def main(self, scenario: Scenario) -> None:
        self._root = trio.lowlevel.current_task()
        with no_lone_group():
            async with trio.open_nursery() as self._nursery:
                try:
                    await scenario(Moment(self))
                finally:
                    self.is_over = True

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self._numbers[task] = len(self._numbers)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._steps += 1
        if self._steps == MAX_STEPS:
            self._fail(Deadlock(f"after {MAX_STEPS} task steps it still runs"))
        if self.injection is None or self.is_over:
            return
        number = self._numbers[task]
        at = len(self.trace)
        if not self.injected and self.expected is not None:
            if at >= len(self.expected) or self.expected[at] != number:
                self._fail(NotRepeatable(f"step {at} was another task's, not {task.name!r}'s"))
        self.trace.append(number)
        if at == self.step:
            self.before = task.name
            self.injected = True
            self._inject(self.injection)

    def _inject(self, injection: Callable[[], object]) -> None:
        try:
            result = injection()
            if inspect.isawaitable(result):
                self._nursery.start_soon(_await, result, name="the injection")
        except Exception as exc:
            self._fail(exc)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        try:
            for check in self.invariants:
                check()
        except Exception as exc:
            self.invariants.clear()
            self._fail(exc)

    def before_io_wait(self, timeout: float) -> None:
        stuck = self._steps == self._steps_at_last_wait
        self._steps_at_last_wait = self._steps
        if stuck and trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf"):
            if self._is_stuck:
                self._break_up()
            else:
                self._is_stuck = True
                self._fail(Deadlock(f"every task waits for another:\n{self._where()}"))

    def _fail(self, failure: BaseException) -> None:
        """End the run; the first failure is the one that is told."""
        if self.failure is None:
            self.failure = failure
        self._nursery.cancel_scope.cancel(reason=repr(failure))

    def _leaves(self) -> list[trio.lowlevel.Task]:
        """The tasks that do not just wait for their children."""
        found: list[trio.lowlevel.Task] = []
        unseen = [self._root]
        while unseen:
            task = unseen.pop()
            children = [child for n in task.child_nurseries for child in n.child_tasks]
            unseen += children
            if not children:
                found.append(task)
        return found

    def _where(self) -> str:
        lines: list[str] = []
        for task in self._leaves():
            lines.append(f"task {task.name}\n")
            lines += traceback.StackSummary.extract(task.iter_await_frames()).format()
        return "".join(lines)

    def _break_up(self) -> None:
        # They ignore cancellation: shielded, and without a deadline. What they wait for
        # is left in disorder, which matters no more.
        for task in self._leaves():
            trio.lowlevel.reschedule(task, outcome.Error(Deadlock("shielded without a deadline")))


async def _await(awaitable: Awaitable[object]) -> None:
    await awaitable
