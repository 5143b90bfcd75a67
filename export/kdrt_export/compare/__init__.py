"""Where two engines, or two bundles, of one network begin to differ: ``kdrt compare``.

The same inputs go through both, with layers marked as outputs, and Polygraphy runs and compares
them. The first layer whose error jumps is the answer to "black image in fp16".

Its files:

    sides       what is compared with what, and whether that can run here
    layers      the layers of a graph, by the names that people know
    cutting     a graph that computes certain layers and nothing more
    inputs      what goes in: a real denoising step, or random numbers
    runners     Polygraphy's runners of a graph
    comparison  runs both sides in groups of layers, and finds the first that differs
    drawing     the errors over the depth, as a plot and as a table in a file
"""
