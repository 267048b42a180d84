"""Evaluation on an arm by a person: `edgevla eval BUNDLE [BUNDLE] --robot so101 --episodes 20`.

options.py    what is asked, judged before a process is started
rounds.py     which policy runs when, blindly and balanced
journal.py    episodes.jsonl: every verdict at once, and what is left to do after anything
keys.py       the person's keys, alone or not at all
flow.py       what each key means in each state: one table
contestants.py, stage.py    the deployment: policies that follow each other on one arm
rollouts.py   the dataset        measures.py   what was measured meanwhile
session.py    flow, stage, rollouts and journal in one loop
verb.py       deployments until all is judged
result.py     eval_info.json and the table
"""
