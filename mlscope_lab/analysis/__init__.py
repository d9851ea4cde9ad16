"""Pure functions from runs to datasets: no plotting, no printing, no backend."""
