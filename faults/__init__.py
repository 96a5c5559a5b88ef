"""Faults: a run's directory under kill -9, loss of power, errors of the disk and damage. See docs/reliability.md.

shim.c      stands before the system calls that change files: counts, kills, fails, delays, records
shim.py     compiles it, and sets it up in a process that was started with it
work.py     what a training process does meanwhile, and what must hold afterwards
calls.py    one process for each call and each way in which it can go wrong
power.py    what a loss of power may leave of a recorded run
damage.py   bytes flipped, files cut, files deleted
around.py   clocks, slow and small disks, two processes, lock files
interrupts.py  Ctrl-C at random moments
beside.py   readers of a run that goes on
store.py    a run in an object store: lost requests and answers, several writers
proxy.py    stands between it and an S3 server
matrix.py   the rows, and how their points are carried out
"""
