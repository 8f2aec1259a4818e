"""Validation of tasks: shallow solvers, and the gate that lets none of them pass above the stated floor."""
