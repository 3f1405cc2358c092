"""What a spec holds, as values; nothing here calls anything above it.

- ``values.py``: groups, components, axis maps, pins and activation addresses.
- ``fields.py``: ``SpecFields``, what a spec holds, as a protocol.
- ``spec.py``: :class:`PermutationSpec`, the value with its methods.  Each method is a function of another file of this
  room.  Those files therefore read a spec through the protocol ``SpecFields`` and never import the class: nothing goes
  in a circle, and a function that makes a new spec (``pin_group``) returns one of the class that it was given.
- ``json.py``: a spec as JSON values and back, with distrust of what is read.
- ``table.py``: classical hand-written tables.
- ``validate.py``: refusing specs that contradict themselves.
- ``text.py``: the table of groups and the story of one tensor, in words.
- ``moved.py``: which positions of a tensor some group moves.
- ``pin.py``: taking a group's symmetries away.
- ``shared_buffers.py``: pinning what would move a buffer that several models have in common.
- ``folds.py``: gains that are folded into their readers, and what is centred.
- ``passed_biases.py``: biases that an attention cancels or passes on.
- ``gauge.py``: the same function in canonical gauge.
- ``untied.py``: the same for networks in which a tied weight has a tensor for each of its uses.
- ``check_state.py``: whether weights have exactly the tensors of a spec.
"""
