"""One forward pass written down: the tape of its operations.

- ``tape.py``: what a tape is: values, nodes, references, and which of them the results depend on.
- ``mode.py``: the dispatch mode that writes it, and turns writes into memory into new values.
- ``record.py``: running a model under that mode, without leaving a trace in the model.
- ``contractions.py``: the operations at whose operands units can be observed.
- ``batch_example.py``: how to run a network on what its data loader gives.
"""
