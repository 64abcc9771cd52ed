"""The server below the application: uvicorn, with what it lacks.

``server`` owns signals and the drain, ``protocol`` bounds what a client may send and
how long it may take.
"""
