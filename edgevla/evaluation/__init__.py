"""How good is a policy? On recorded episodes: what it would have done. In a task: how often it succeeds.

cli.py       the verb `edgevla eval`: which of them

on recorded episodes
on_dataset.py  step by step                     subjects.py  checkpoints and bundles as one kind of thing
fits.py      whether a dataset is theirs        overlap.py   whether these episodes were trained on
plan.py      which frames                       replayed.py  the loop: observe, predict, keep
figures.py   errors, seams, worst frames        info.py      all of it as JSON
table.py     the same for a terminal            pictures.py  the same for the eye

in a task (played by edgevla/robots/trials)
episodes.py  settings, episodes, their file     statistics.py        intervals, paired comparison, what n can show
verdicts.py  figures of every setting           verdict_info.py      all of it as JSON
verdict_table.py  the same for a terminal       verdict_pictures.py  the same for the eye

on_arm/      a person judges it on an arm       seams.py     how the goals moved where chunks meet
"""
