"""How good is a policy? Today on recorded episodes: what it would have done against what was done.

cli.py       the verb `edgevla eval`            subjects.py  checkpoints and bundles as one kind of thing
fits.py      whether a dataset is theirs        overlap.py   whether these episodes were trained on
plan.py      which frames                       replayed.py  the loop: observe, predict, keep
figures.py   errors, seams, worst frames        info.py      all of it as JSON
table.py     the same for a terminal            pictures.py  the same for the eye
on_arm/      a person judges it on an arm       seams.py     how the goals moved where chunks meet
"""
