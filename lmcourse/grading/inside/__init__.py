"""What enters the jail, and nothing else: no expected value, no point, no verdict.

This package uses the standard library, NumPy, torch and lmcore only. It is bound
read-only into the sandbox; the grader outside imports `wire` and `world` from it.
"""
