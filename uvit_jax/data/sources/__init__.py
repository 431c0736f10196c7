"""Data sources, one file per kind: `source.py` is their base class, `registry.py` names them.

folder.py    images in a folder and its sub-folders
clips.py     video files in a folder, or of a manifest
tfds.py      prepared data sets of TensorFlow Datasets; tfds_videos.py, their videos
latents.py   latents written by `experiments.encode_latents`
emoji/       the embedded data set
worlds/      rendered scenes with reference images of their subjects

`dreambench.py` reads the photographs and prompts of the DreamBench benchmark. It is not a source:
nothing is trained on it.
"""
