"""What each part of the screen says: functions from the model to rows. No sockets, no widgets, no decisions.

header.py   the state in one line, what runs         servos.py   worst first, rates
joints.py   all arms, side by side                   events.py   what was said, scrolled and searched
chunks.py   timeline, and where the time goes        keys.py     what keys do, the line that is typed, help
loop.py     lateness, the board                      marks.py    numbers, bars, ages
"""
