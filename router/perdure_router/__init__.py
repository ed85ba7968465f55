"""The router process: the directory of the workers, and the way in for whoever knows no slot map.

`routing` decides (pure), `links` and `backlog` hold what waits for workers and for clients (pure),
`process` is the shell of sockets, timers and signals around them.
"""
