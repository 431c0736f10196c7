"""Worlds of subjects: pictures of who they are told to show, drawn on the fly with exact facts.

    factors.py        what a totem is: eight factors, 2048 identities, splits, held-out pairs
    totems.py         draws totems: surfaces of revolution seen from any side
    sprites.py        draws emoji: rotated, mirrored, scaled
    backgrounds.py    eight places, and the plain ground of references
    camera.py         shift, zoom, roll; motions of a video
    scenes.py         a scene (who, where, how seen), its caption, and its pictures
    drawing.py        random scenes of a split, a pure function of (seed, index)
    settings.py       the fixed evaluation sets
    source.py         the data source behind `data.name="totems"` and `"emoji_scenes"`

Coordinates: x to the right and y up, the picture is [-1, 1]². Angles are radians. Colours are
float32 in [0, 1] inside the package and [-1, 1] in what it hands out.
"""
