"""Synthetic scenes with reference images of their subjects, rendered when they are read.

A world is a set of subjects and the way to render them: `totems` or `emoji_scenes`.

    worlds.py            `World`, and the two of them
    factors.py           a totem's eight factors, 2048 identities, splits, held-out pairs
    totems.py            renders totems: surfaces of revolution seen from any side
    sprites.py           renders emoji: rotated, mirrored, scaled
    backgrounds.py       eight backgrounds, and the plain one of references
    scene_camera.py      shift, zoom, roll of the camera
    scene_motion.py      motions of a video: of the camera and of subjects
    scenes.py            a scene (subjects, positions, views), its caption, and its images
    random_scenes.py     random scenes of a split, a pure function of (split, index)
    evaluation_sets.py   the fixed evaluation sets
    scene_source.py      the data source of `data.name="totems"` and `"emoji_scenes"`
    scene_video_source.py  that of `data.name="totem_videos"`

Coordinates: x to the right and y up, the image is [-1, 1]². Angles are in radians. Colours are
float32, in [0, 1] while rendering and in [-1, 1] in the resulting images.
"""
