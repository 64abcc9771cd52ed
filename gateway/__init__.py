"""Sluice, a streaming-first gateway for large language models.

The packages read like the way of a request, and imports go only downwards::

    cli | main > server > app | demo > api > exchange > admission | routing
        > auth | providers > telemetry > settings | errors | drain > streaming
"""
