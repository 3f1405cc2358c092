"""``lightning-rebasin landscape``: commands that measure and learn paths through weight space, one file each.

``job.py`` has what they share: the checkpoints, the network, the data, and the folder that the results go to.
"""

HELP = (
    "curves, stars, planes and more between checkpoints (a group of commands)"
)
DESCRIPTION = (
    "The loss landscape between trained networks.  Every command writes its numbers (JSON, CSV) and a picture (PNG)\n"
    "into one folder."
)
#: In the order in which they answer bigger questions; each is a file of this folder.
COMMANDS = (
    "curve",
    "star",
    "plane",
    "layers",
    "profile",
    "predict",
    "geodesic",
    "instability",
)
