"""Pictures of the shipped experiments, each drawn from the tables in figures/data alone."""
