"""`edgevla push`: a bundle and its runtime on a robot's computer, over ssh, and one word back.

`push_cli.py` is the verb, `line.py` the ssh connection, `own_wheel.py` what is installed there, `there.py` the program
that ssh starts on the robot (the standard library alone: nothing of ours is there yet), `bench.py` what the runtime
there then measures.
"""
