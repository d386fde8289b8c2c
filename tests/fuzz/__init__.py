"""Fuzz targets: readers of untrusted input raise only their documented errors.

    make fuzz SECONDS=60        for each target; installs atheris

A target takes any bytes; an exception is a defect. Its seeds are generated.
"""
