"""The gate: does a transformed network still compute the same function?

``gate.py`` judges, ``compare.py`` measures the difference between outputs, ``diagnose.py`` names the tensor to blame,
``sandbox.py`` is the float64 copy in which all of it happens, ``precision.py`` what keeps it in float64.
"""
