"""The backends, each with `supports(problem) -> None | reason`, `plan(problem, N)` and `run(...)`."""
