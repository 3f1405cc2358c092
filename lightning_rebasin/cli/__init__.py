"""The command line: one file a command, which declares its options and runs.

``main.py`` lists the commands; ``common.py``, ``model.py`` and ``datasets.py`` have the options that several of them
share, ``metrics.py`` what a network is measured by.  Nothing here imports torch before a command runs, so that help is
instant.
"""
