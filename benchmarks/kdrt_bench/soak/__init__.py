"""A server under twice the load that it can carry, for minutes: does it lose or leak anything?

asks      the mix of requests, in the dialects that the server speaks, and what makes an answer
          to each of them whole
honest    clients that wait for what they asked for
rude      clients that vanish, send garbage, or stall
arrivals  requests at random times, with a bound on how many are under way
server    a server in a process of its own, and what it takes of the machine
run       the phases: capacity, load, what is left afterwards
report    what was seen; markdown and plot of it
verdict   what must not have happened
"""
