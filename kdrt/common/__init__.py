"""What every room uses and that knows nothing of diffusion.

Its files:

    validation       the checks of arguments, with messages that say what is allowed
    literals         words and defaults that several rooms share
    atomic_io        files and folders that appear whole or not at all
    removal          folders that are removed whole or not at all
    lock             one process at a time on a folder
    progress         who is told of the progress of long work
    terminal_report  that progress on a terminal
    home             ``$KDRT_HOME``: known digests, and what the user trusts
    paths            paths as users type them
    hub              errors of the Hugging Face hub
    placeholders     files that stand for another: Git LFS pointers, web pages
    log              what is logged, and how long stages took
    user_warning     warnings that point at the caller's line
    units            numbers for people
    lru              a least-recently-used cache
    memory           how much is free, and the one sentence when it ran out
    streams          a CUDA stream for each pipeline
    upload           copies to a GPU that wait for nothing
    torch_modes      independence of the caller's grad, autocast and default-dtype modes
"""
