"""Files that nobody should trust: every kind that illama reads, damaged in ten thousand ways.

`python -m tests.fuzz` (or `make test-fuzz`) damages one input after the other and runs a command on it, each in a
process of its own with a limit on memory and time. What counts: an answer (exit code 0), or one line that says what is
wrong (2); never a traceback, a signal, a hang, more than 2 GB, or a change outside of the folder that the command may
write into.

seeds.py   valid inputs, tiny, made once
mutate.py  damage: to bytes, to text, to trees of values, and inside of containers whose sums fit again
kinds.py   which damage, to which input, read by which command
arena.py   one case in a process, and the verdict
"""
