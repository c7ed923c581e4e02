"""The admission broker and the Consul server of a coordinator CVM: challenges, slots, tokens, the peer registry, the
HTTP API.
"""
