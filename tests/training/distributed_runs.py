"""Train from data and online in processes that learn together, and leave as a command does.

Usage: distributed_runs.py FOLDER
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import distributed_online_run
import distributed_run
from leaving import leave_early

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    # The other one changes sizes of the package as it goes.
    distributed_online_run.main(folder)
    distributed_run.main(folder / "two.json")
    leave_early()
