"""The bench: what sharedrag does in figures, each beside what is demanded of it and what the machine itself could do.

`python -m tests.bench [--only NAME] [--size tiny|quick|full] [--json FILE]`. Every timed loop runs in a process of its own,
on records made before it starts; a figure is the median over rounds. Figures on a machine that others use are lower
bounds of what it can do: compare a figure with the limit beside it, which was measured in the same minute.
"""
