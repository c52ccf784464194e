"""What the embedded Firestore costs, as ratios to a handler that does nothing:
`python -m loadtests.firestore`.

The bare handler has the same stack (grpc.aio, uvloop, generic handlers) and returns the
very bytes that the embedded Firestore returned, without looking at what is asked. So a
ratio says how much of a call is ours. Queries are compared with themselves over fewer
documents: that is what indexes are for.
"""
