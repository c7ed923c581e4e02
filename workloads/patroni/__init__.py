"""PostgreSQL under Patroni as a workload of the mesh: settings, Patroni's configuration, and the supervisor that keeps
the leader key honest.
"""
