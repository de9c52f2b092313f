"""What the experiments here have in common: their command, trials that can be interrupted, trainings, tables, pictures.

An experiment is a function of a case, which is run for every case there is (`trials`); the records that it gives are
summarised over the seeds (`summarise`), printed, drawn and written (`report`).
"""

import importlib.util

if missing := [name for name in ("rich", "typer", "matplotlib") if not importlib.util.find_spec(name)]:
    raise SystemExit(
        f"{', '.join(missing)} cannot be imported: pip install 'sobolev_kernels[examples]' brings what examples need"
    )

from .command import Effort, Settings, run_command
from .dots import dots, marks_of
from .lines import print_lines
from .pictures import COLOURS, bare, bars, curves, dumbbells, figure_of, legend_of, maps, name_ticks
from .tables import METHODS, number, print_table, report, rows_of, said_of_seeds, summarise, write_csv
from .times import interleaved, report_times
from .training import Method, Plan, Trained, compare, fused, predictions, root_mean_square
from .trials import Outcome, trials

__all__ = [
    "COLOURS", "METHODS", "Effort", "Method", "Outcome", "Plan", "Settings", "Trained", "bare", "bars", "compare",
    "curves", "dots", "dumbbells", "figure_of", "fused", "interleaved", "legend_of", "maps", "marks_of", "name_ticks",
    "number", "predictions", "print_lines", "print_table", "report", "report_times", "root_mean_square", "rows_of",
    "run_command", "said_of_seeds", "summarise", "trials", "write_csv",
]  # fmt: skip
