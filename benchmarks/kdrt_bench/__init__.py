"""Benchmarks: kdrt beside its peers, measured so that a figure can be believed.

    jobs        what is measured, and what workers and conductor tell each other
    experiment  what an experiment is
    networks    the untouched networks of diffusers and transformers, which peers run
    peers/      one file a peer: each makes engines of those networks
    runners     runs a workload once, with the time of each stage
    worker      one process, one row: loads, warms up, runs when told to
    conductor   keeps one worker running at a time, in turns
    statistics  percentiles, paired ratios with intervals
    gpu_day/    `benchmarks/gpu.py`: a GPU in some minutes; in_flight: its images in flight
    likeness    PSNR, SSIM, relative error
    image_sheet images beside each other, with labels
    machine     what the figures depend on, and the most this machine can do
    suites      which experiments there are; real_size: those with networks of the size people use
    measure     suite → report
    command     ``kdrt bench``; progress: what it says while it runs
    arrivals    random requests to a service, and what their users saw
    service_simulation  a service on paper, from the times of UNet runs
    static_batching     equal requests wait for each other: the policy
    service     a pipeline serves requests as they come, in one of three ways
    tick_parts  where the time of a tick goes
    service_study       in-flight batching under load, on one model; service_report: for people
    stage_memory        seconds and memory by stage: `benchmarks/real_sizes.py`
    soak/       a server under too much load, for minutes
    mid_size    a model with random weights, between the demo and Stable Diffusion
    report      the report's JSON; page, plots: the same for people

Nothing here is imported by the runtime. Diffusers and the peers are imported in workers only.
"""
