"""The service on a Ray cluster: one front, and replicas that hold the engines.

The front has the same application as ``kdrt serve``. The replicas hold the same service, each with
its in-flight loop; Ray starts them, watches over them, and chooses one for each request by the
length of their queues.

Its files:

    settings       how many replicas there are, and what each has
    image_replica  what a replica runs
    replicas       the replicas as the front sees them
    figures        metrics of the front
    app            the application: ``build`` is its import path
    cluster        ``kdrt serve --ray``: a cluster, and the application on it until a signal comes
"""
