"""An exchange, one client request and its answer: estimate, reserve, attempt, relay.

``exchange`` is the way of a request as code; ``ask`` is what comes in, ``client`` where
the answer goes, ``charge`` what it costs, ``answer`` how a provider's body is taken.
"""
