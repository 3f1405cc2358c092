"""When a callback acts: at listed steps, every n steps or epochs, or at logarithmically spaced steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_rebasin.errors import ConfigurationError


@dataclass(frozen=True)
class StepSchedule:
    """A set of optimizer steps.

    Args:
        listed: Exactly these steps.
        every: Every multiple of this number, 0 included.
        per_decade: So many steps per factor of ten, evenly spaced in the logarithm, from step 1; and step 0.

    Example:
        >>> schedule = StepSchedule(per_decade=3)
        >>> [step for step in range(101) if schedule.due(step - 1, step)]
        [0, 1, 2, 5, 10, 22, 46, 100]
    """

    listed: tuple[int, ...] = ()
    every: int | None = None
    per_decade: int | None = None

    def due(self, last: int, now: int) -> bool:
        """Whether a scheduled step lies in ``(last, now]``: several optimizers move the step count by more than one."""
        if any(last < step <= now for step in self.listed):
            return True
        if self.every is not None and now // self.every > last // self.every:
            return True
        return self.per_decade is not None and any(
            last < step <= now for step in self._logarithmic(now)
        )

    def _logarithmic(self, up_to: int) -> tuple[int, ...]:
        assert self.per_decade is not None
        steps, power = [0], 0
        while steps[-1] < up_to:
            steps.append(round(10 ** (power / self.per_decade)))
            power += 1
        return tuple(steps)


@dataclass(frozen=True)
class ValidationSchedule:
    """In which validations a callback acts; in all of them without options.

    Args:
        every_n_epochs: In those of every n-th epoch.
        every_n_validations: In every n-th one.
        at_steps: In the first one at or after each of these optimizer steps.

    Raises:
        ConfigurationError: More than one option, or one that is not positive.

    Example:
        >>> schedule = ValidationSchedule(at_steps=[10])
        >>> [step for last, step in ((0, 8), (8, 16), (16, 24)) if schedule.due(1, 0, last, step)]
        [16]
    """

    every_n_epochs: int | None = None
    every_n_validations: int | None = None
    at_steps: Sequence[int] | None = None

    def __post_init__(self) -> None:
        options = (
            self.every_n_epochs,
            self.every_n_validations,
            self.at_steps,
        )
        if sum(option is not None for option in options) > 1:
            raise ConfigurationError(
                "choose one of every_n_epochs, every_n_validations and at_steps"
            )
        positive("every_n_epochs", self.every_n_epochs)
        positive("every_n_validations", self.every_n_validations)
        if self.at_steps is not None:
            steps = steps_from("at_steps", self.at_steps)
            object.__setattr__(self, "at_steps", steps)

    def due(self, count: int, epoch: int, last: int, step: int) -> bool:
        """Whether the callback acts.

        Args:
            count: Which validation this is, from 1.
            epoch: The epoch, from 0.
            last: The step at which the callback acted last.
            step: Optimizer steps taken.
        """
        if self.at_steps is not None:
            return StepSchedule(tuple(self.at_steps)).due(last, step)
        if self.every_n_epochs is not None:
            return (epoch + 1) % self.every_n_epochs == 0
        return count % (self.every_n_validations or 1) == 0


def positive(name: str, value: int | None) -> int | None:
    """``value`` if it is ``None`` or at least 1.

    Raises:
        ConfigurationError: It is smaller.
    """
    if value is not None and value < 1:
        raise ConfigurationError(f"{name}={value}: must be 1 or more")
    return value


def steps_from(name: str, steps: Sequence[int] | None) -> tuple[int, ...]:
    """A sorted tuple of steps.

    Raises:
        ConfigurationError: A step is negative.
    """
    listed = tuple(sorted({int(step) for step in steps or ()}))
    if listed and listed[0] < 0:
        raise ConfigurationError(f"{name}: step {listed[0]} is negative")
    return listed
