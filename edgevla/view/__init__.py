"""`edgevla view`: episodes and runs as pictures, and as files for Rerun and Foxglove.

view_cli.py    what is typed                   sheet.py       a scene as a picture (matplotlib)
scene.py       what all of them have           rerun_file.py  scenes for Rerun
of_dataset.py  an episode as a scene           mcap_file.py   scenes for Foxglove and its like
of_run.py      a run, or a saved moment of it
"""
