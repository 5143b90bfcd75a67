"""Networks in fewer bits.

``kdrt quantize`` makes a new bundle whose UNets multiply in 8 bits, or hold their weights in 4, and
measures what that loses. ``kdrt export --weights int8`` stores weights as bytes, for size alone.

Its files:

    stage         the whole of ``kdrt quantize``
    formats       the formats: fp8, int8, int4-weights
    calibration   what a UNet is given while images are made
    layers        the layers of a graph that can be quantised
    ranges        how large their activations become
    weights       how weights are rounded
    qdq           the graph pass
    sensitivity   how much the output changes when one layer is quantised
    networks      writes the quantised networks of a bundle
    loss          what is lost, measured
    likeness      how alike images are
    roofline      the least time of a run on a GPU, an estimate
    drawing       the scan as a table and a plot
    int8_weights  weights as bytes
"""
