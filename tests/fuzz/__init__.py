"""Fuzz targets: what is read from others' hands fails only with the errors that it declares.

    make fuzz SECONDS=60        each target so long; needs atheris, which it installs

A target takes any bytes and returns, or raises what is a defect. Its seeds are made by code here.
"""
