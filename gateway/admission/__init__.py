"""May this exchange start, and what did it cost: estimate, reserve, renew, settle.

``estimate`` says how much, ``ledger`` is the port, ``redis_ledger`` its only
implementation in the product, ``reservation`` owns one hold from start to end.
"""
