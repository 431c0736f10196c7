"""The question itself: one sequence against fine-tuning on subject consistency.

config.py      what is compared: networks, arms, settings
questions.py   what every arm is asked: worlds as lists of questions
networks.py    trained or loaded networks, and how they draw
arms.py        how an arm answers: in context, by adapters, by full fine-tuning; the anchors
judging.py     from pictures to numbers: the judges of totems, or any encoder
tables.py      numbers to rows, a manifest and a page
run.py         all of it, resumable piece by piece
"""
