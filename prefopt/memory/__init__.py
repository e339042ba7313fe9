"""What a run will need, before it starts: `plan`."""

from prefopt.memory.estimate import CARDS, Plan, plan, plan_run
from prefopt.memory.planned_run import Run

__all__ = ["CARDS", "Plan", "Run", "plan", "plan_run"]
