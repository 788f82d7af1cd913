"""From run folders to frames, statistics and figures.

::

    from clmeta.analysis import load_runs, save_plots, summary_table

    runs = load_runs("runs")
    print(summary_table(runs))
    save_plots(runs, "figures")
"""

from clmeta.analysis.accuracy import (
    accuracy_per_task,
    cumulative_accuracy,
    final_accuracy,
    summary_table,
)
from clmeta.analysis.load import block_names, load_runs, melt_alphas
from clmeta.analysis.plots import (
    PLOTS,
    NothingToPlot,
    plot,
    plot_accuracy_per_task,
    plot_cumulative_accuracy,
    plot_switches,
    plot_test_accuracy_per_task,
    plot_trajectories,
)
from clmeta.analysis.save import save_plots
from clmeta.analysis.statistics import mean_over_seeds, paired_differences
from clmeta.analysis.switches import (
    average_windows,
    boundary_windows,
    end_over_start,
    response_table,
    switch_response,
)
from clmeta.ground.names import method_labels
from clmeta.record.find import find_runs

__all__ = [
    "PLOTS",
    "NothingToPlot",
    "accuracy_per_task",
    "average_windows",
    "block_names",
    "boundary_windows",
    "cumulative_accuracy",
    "end_over_start",
    "final_accuracy",
    "find_runs",
    "load_runs",
    "mean_over_seeds",
    "melt_alphas",
    "method_labels",
    "paired_differences",
    "plot",
    "plot_accuracy_per_task",
    "plot_cumulative_accuracy",
    "plot_switches",
    "plot_test_accuracy_per_task",
    "plot_trajectories",
    "response_table",
    "save_plots",
    "summary_table",
    "switch_response",
]
