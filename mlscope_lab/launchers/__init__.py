"""Where a measurement runs: in this process (`inline`) or in a fresh one a configuration (`subprocess_`)."""
