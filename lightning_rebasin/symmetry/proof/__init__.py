"""The gate: does a transformed network still compute the same function?"""
