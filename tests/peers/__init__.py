"""The side-by-side benchmark: sharedrag and the stores that people use instead, on the same rows, asked the same.

`make bench-peers` (`python -m tests.peers` in an environment of its own) loads each peer once and measures seven things:

    load       bulk load of all rows, with texts and metadata, until the index stands
    query      p50 and p99 at recall@10 >= 0.95, unfiltered and under a filter that 1 % of the rows match
    opening    a new process opens the store and asks its first question
    memory     what one more reader process holds for itself
    visible    from a write in one process to a query in another that finds it
    writers    1, 2 and 4 writer processes, single records and batches of 32, beside a reader
    kills      a writer is killed 20 times with SIGKILL; what was acknowledged must be there

    protocol.py    what an adapter is: `Peer`
    adapters/      one small module per peer; each names the settings it uses
    corpus.py      the rows and questions: real sentence vectors, and what the right answers are
    measures/      one module per measure; each runs in a process of its own, which the runner ends when its time is up
    runner.py      peers one after the other; servers are started and stopped here
    report.py      JSON, a Markdown table; plots.py: PNG

Nothing here is collected by pytest, and no peer is imported outside the peers' own environment. A peer that cannot do a
thing says so in the table, with the reason.
"""
