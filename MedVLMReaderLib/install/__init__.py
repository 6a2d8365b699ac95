"""Sets up the Python that reads: says what it would install and how much, asks, installs, mends half an install.

Plain Python: no qt, no slicer, no torch. `child` runs in the Python that is set up; `plan` decides; `running` does it.
"""
