"""What is run: grids, the planner, the runner, the results folder, recipes, and the `stepseer` command."""
