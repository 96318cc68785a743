"""Walks through all states of a model, the nearest first, so that what it finds is told by the shortest way there."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

State = TypeVar("State")


class Model(Protocol[State]):
    """What is walked through. States are equal where they are the same."""

    def start(self) -> State:
        """Return the state that it begins in."""

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """Yield what can happen next: what it is called, and the state after it."""

    def wrong(self, state: State, *, over: bool) -> str | None:
        """Say what is wrong with a state, `over` telling that nothing can happen any more; None for nothing."""


@dataclass
class Walk(Generic[State]):
    """What came of a walk.

    Attributes:
        states: How many states there are.
        steps: How many steps lead from one to another.
        wrong: The shortest ways to what is wrong, by what it is: each step's name, in order.
        all_wrong: The last states of all the ways, by what is wrong with them.
    """

    states: int = 0
    steps: int = 0
    wrong: dict[str, list[str]] = field(default_factory=dict)
    all_wrong: dict[str, list[State]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.states} states, {self.steps} steps"]
        for what, way in self.wrong.items():
            lines += [f"{what}, in {len(self.all_wrong[what])} states; the shortest way:"]
            lines += [f"  {number:2}. {step}" for number, step in enumerate(way, 1)]
        return "\n".join(lines)


def explore(model: Model[State]) -> Walk[State]:
    """Walk through a model; what is wrong is not gone on from."""
    walk: Walk[State] = Walk()
    start = model.start()
    before: dict[State, tuple[State, str] | None] = {start: None}
    ahead = deque([start])
    while ahead:
        state = ahead.popleft()
        walk.states += 1
        following = list(model.steps(state))
        what = model.wrong(state, over=not following)
        if what is not None:
            walk.all_wrong.setdefault(what, []).append(state)
            if what not in walk.wrong:
                walk.wrong[what] = _way(before, state)
            continue
        for name, then in following:
            walk.steps += 1
            if then not in before:
                before[then] = state, name
                ahead.append(then)
    return walk


def _way(before: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    way = []
    while (came := before[state]) is not None:
        state, name = came
        way.append(name)
    return way[::-1]
