"""What a run will need, before it starts: `plan`."""

from prefopt.planning.plan import CARDS, Plan, plan, plan_run
from prefopt.planning.run import Run

__all__ = ["CARDS", "Plan", "Run", "plan", "plan_run"]
