"""What is measured, not asserted: regressors, sweeps, predictions beside published runs, a check on a GPU."""
