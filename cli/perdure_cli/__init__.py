"""The command line of Perdure and the supervisor behind `perdure run`.

commands      options and arguments (click)
supervisor    the process that spawns, watches and restarts the others (asyncio, signals, sockets)
children      what each child is started with (pure)
places        where a run listens
free_space    when a disk that gets full is warned of (pure)
supervision   its decisions: events in, actions out (pure)
state         what it must remember across its own death (pure)
datadir       the directory on disk: lock, state file, run directory, endpoint file
shards        which shards the directory holds: provisioning, change of the number of workers
check         `perdure check`: looks for damage in a stopped data directory
errors        what can end `perdure run`, and its exit codes
"""
